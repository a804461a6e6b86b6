"""Every family of causal LMs: sampled by real vLLM, trained a step, synced, equal at the floor.

In float32, where the floor is a rounding of the log-probs themselves (1e-13 nats): what a kernel
gets wrong by a millionth shows. scripts/check_families.py measures on weights trained for longer.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny
import torch
from accelerate import Accelerator
from families import FAMILIES, is_mixture, random_model

from r1lab.config.recipe import (
    LoraSettings,
    ModelSettings,
    OptimizerSettings,
    ProblemSettings,
    RewardSettings,
    SamplingRecipe,
    SourceSettings,
    TrainRecipe,
)
from r1lab.grpo.mismatch_baseline import perturbed_adapters
from r1lab.grpo.policy import Policy
from r1lab.grpo.step import rl_step
from r1lab.model.adapters import add_lora
from r1lab.model.load import load_base
from r1lab.model.weights import checkpoint_weights
from r1lab.problems.registry import load_mixture
from r1lab.prompts import TEMPLATES
from r1lab.rollout.build import build_sampler
from r1lab.rollout.sampler import Sampler
from r1lab.rollout.source import RolloutSource
from r1lab.types import R1labError
from r1lab.verify import Verifiers

# An engine takes several seconds each; the rest is for `make test-long`.
IN_SHORT = ("llama", "qwen2_moe", "deepseek_v3")
RATE = {"full": 3e-3, "lora": 1e-2}
HIGHEST_FLOOR = 1e-10

PROBLEMS = """
from r1lab.types import Problem

def load(split, *, texts):
    return [Problem(str(i), text, "", "odd", "tiny", {}) for i, text in enumerate(texts)]

def odd(problem, completion):
    return float(sum(completion.token_ids) % 2)
"""


@pytest.mark.parametrize(
    "family",
    [name if name in IN_SHORT else pytest.param(name, marks=pytest.mark.long) for name in FAMILIES],
)
def test_a_step_and_a_sync_of(family: str, tmp_path: Path) -> None:
    tokenizer = tiny.tokenizer()
    model = random_model(family, tokenizer)
    tiny.train(model, tiny.sequences(), 70)  # away from uniform outputs, which hide faults
    folder = tiny.save(model, tmp_path / "model")
    sampler = build_sampler("vllm", folder, tokenizer, dtype="float32", kv_cache_gib=0.1)
    try:
        for way in ("full", "lora"):
            takes_a_step(way, sampler, folder, tmp_path / "task.py")
        if is_mixture(family):
            names_what_was_not_sent(sampler, folder)
    finally:
        sampler.close()


def takes_a_step(way: str, sampler: Sampler, folder: Path, task: Path) -> None:
    task.write_text(PROBLEMS)
    model, tokenizer, _ = load_base(ModelSettings(path=str(folder), dtype="float32"))
    if way == "lora":
        model = add_lora(model, LoraSettings(rank=8), seed=0)
    options = {"texts": [tokenizer.decode(prompt) for prompt in tiny.prompts(24)]}
    recipe = TrainRecipe(
        name="family", steps=2, template="plain",
        problems=ProblemSettings(sources=(SourceSettings(source=str(task), options=options),)),
        rewards=(RewardSettings(reward=f"{task}:odd", isolate=False),),
        sampling=SamplingRecipe(questions_per_step=24, group_size=4, max_tokens=24),
        optimizer=OptimizerSettings(learning_rate=RATE[way], warmup_steps=0),
    )  # fmt: skip
    policy = Policy(
        model, optimizer=recipe.optimizer, total_updates=2, temperature=1.0,
        accelerator=Accelerator(cpu=True),
    )  # fmt: skip
    template = TEMPLATES[recipe.template]
    source = RolloutSource(
        load_mixture(recipe.problems, "train"), sampler, tokenizer, template, recipe.sampling
    )
    before = {name: tensor.clone() for name, tensor in policy.checkpoint_weights()}
    with perturbed_adapters(model, seed=0):  # full weights have none
        source.sync(policy)
        floor, _ = policy.sampler_mismatch(source.probe())
    assert floor is not None and floor < HIGHEST_FLOOR

    source.start(policy)
    metrics = rl_step(policy, source, Verifiers(recipe.rewards, template=template), recipe).metrics
    assert metrics["sync_kl"] < 3 * floor and metrics["grad_norm"] > 0
    assert metrics["entropy"] < 0.9 * torch.tensor(tiny.VOCAB).log(), "peaked enough to tell"
    after, num_tokens = policy.sampler_mismatch(source.probe())
    assert after < 3 * floor and num_tokens > 1000

    sampler.sync(before.items(), policy.version)
    stale, _ = policy.sampler_mismatch(source.probe())
    assert stale > 1e6 * floor


def names_what_was_not_sent(sampler: Sampler, folder: Path) -> None:
    model = load_base(ModelSettings(path=str(folder), dtype="float32"))[0]
    weights = [(n, t) for n, t in checkpoint_weights(model) if ".experts." not in n]
    with pytest.raises(R1labError, match=r"weight sync to version 9: \d+ of .*experts"):
        sampler.sync(weights, 9)
