"""The floor of agreement under adapters that are not zero."""

from __future__ import annotations

import tiny
import torch

from r1lab.config.recipe import LoraSettings, ModelSettings, OptimizerSettings, SamplingRecipe
from r1lab.grpo.mismatch_baseline import measure_mismatch_baseline, perturbed_adapters
from r1lab.grpo.policy import Policy
from r1lab.model.adapters import add_lora
from r1lab.model.load import load_base
from r1lab.prompts import TEMPLATES
from r1lab.rollout.hf_sampler import TransformersSampler
from r1lab.rollout.source import RolloutSource
from r1lab.types import Problem


class Problems:
    """Problem i asks for a memorised beginning."""

    def __getitem__(self, index: int) -> Problem:
        row = tiny.sequences()[index % tiny.NUM_SEQUENCES, :24]
        return Problem(str(index), tiny.tokenizer().decode(row), "", "none")


def test_the_floor_of_adapters_is_measured_while_they_are_not_zero(tmp_path) -> None:
    from accelerate import Accelerator

    folder = tiny.save(tiny.trained_v3(40), tmp_path)
    base, tokenizer, _ = load_base(ModelSettings(path=str(folder), dtype="bfloat16"))
    model = add_lora(base, LoraSettings(rank=4))
    policy = Policy(
        model, optimizer=OptimizerSettings(), total_updates=1, temperature=1.0,
        accelerator=Accelerator(cpu=True),
    )  # fmt: skip
    settings = SamplingRecipe(questions_per_step=8, group_size=4, max_tokens=16)
    source = RolloutSource(
        Problems(), TransformersSampler(folder, tokenizer), tokenizer, TEMPLATES["plain"], settings
    )
    source.start(policy)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    zero, _ = policy.sampler_mismatch(source.probe())
    with perturbed_adapters(model, seed=0):
        source.sync(policy)
        stirred, _ = policy.sampler_mismatch(source.probe())
    source.sync(policy)
    state = source.state_dict()
    measure_mismatch_baseline(policy, source, seed=0)
    assert source.guard.floor == stirred != zero
    # Nothing else has moved: weights, sampler, stream.
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    assert policy.sampler_mismatch(source.probe())[0] == zero
    assert source.state_dict() == {**state, "guard": source.guard.state_dict()}
    # A floor that is there stays: a resumed run has one.
    source.guard.floor = 1.0
    measure_mismatch_baseline(policy, source, seed=1)
    assert source.guard.floor == 1.0
