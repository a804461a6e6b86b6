"""Log-probs in training against each architecture's own forward: what a model does after its head.

Small random models of many families (scripts/families.py), with logits of 8 and more. A scale, a
cap or a norm that training left out would move log-probs by far more than rounding does.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from accelerate import Accelerator
from families import FAMILIES, FORWARD_ONLY, peaked_model, random_model
from test_update import batch_of, policy_of
from torch import Tensor

from r1lab.config.recipe import AlgorithmSettings, ModelSettings, TrainRecipe
from r1lab.grpo.logprobs import token_logprobs
from r1lab.grpo.policy import Policy
from r1lab.grpo.setup import build_rollout_source, check_forward, load_policy
from r1lab.grpo.step import rl_step
from r1lab.model.head import OutputHead
from r1lab.model.load import load_base
from r1lab.prompts import TEMPLATES
from r1lab.rollout.build import build_sampler
from r1lab.rollout.source import RolloutSource
from r1lab.types import Batch, RecipeError, RunStopped
from r1lab.verify import Verifiers


def model_of(family: str) -> Any:
    if family in FORWARD_ONLY:
        return peaked_model(family)
    model = random_model(family, tiny.tokenizer()).eval()
    with torch.no_grad():
        while model(input_ids=torch.arange(8, 72)[None]).logits.abs().max() < 8:
            model.get_output_embeddings().weight.mul_(1.6)
    return model


@torch.no_grad()
def own_logprobs(model: Any, batch: Batch) -> Tensor:
    """As `Policy.completion_logprobs`: by the model's own forward, a sequence at a time."""
    found = []
    rows = torch.split(batch.token_ids, batch.lengths.tolist())
    for row, first in zip(rows, batch.prompt_lens.tolist(), strict=True):
        logp = model(input_ids=row[None]).logits[0, :-1].log_softmax(-1)
        logp = logp.gather(-1, row[1:, None])[:, 0]
        found += [torch.zeros(first), logp[first - 1 :]]
    return torch.cat(found)


def small_batch(vocabulary: int) -> Batch:
    batch = batch_of()
    batch.token_ids.remainder_(vocabulary - 8).add_(8)
    return batch


def test_at_least_24_families_are_compared() -> None:
    assert len(FAMILIES) <= 12 and len({*FAMILIES, *FORWARD_ONLY}) >= 24


@pytest.mark.parametrize("family", [*FAMILIES, *FORWARD_ONLY])
def test_logprobs_are_those_of_the_models_own_forward(family: str) -> None:
    model = model_of(family)
    policy = policy_of(model, with_reference=True)
    batch = small_batch(96)
    own = own_logprobs(model, batch)
    algorithm = AlgorithmSettings(kl_coefficient=0.1, num_minibatches=2)
    remembered = policy.with_old_and_ref_logprobs(batch, algorithm)
    for found in (remembered.logp_old, remembered.logp_ref):
        assert found is not None and torch.allclose(found, own, atol=1e-4)
    check_forward(policy, family)


@pytest.mark.parametrize("family", ["gemma2", "cohere", "granite", "hyperclovax", "minicpm3"])
def test_the_gradient_passes_through_all_of_the_head_in_chunks_too(family: str) -> None:
    model = model_of(family)
    ids = torch.arange(8, 28)[None]
    mask = torch.ones_like(ids, dtype=torch.bool)
    mask[0, 0] = False
    logp = model(input_ids=ids).logits[0, :-1].log_softmax(-1).gather(-1, ids[0, 1:, None])
    logp.sum().backward()
    own = {name: p.grad.clone() for name, p in model.named_parameters()}
    for max_logits in (2**24, 96 * 7):
        model.zero_grad()
        output = model.get_decoder()(input_ids=ids, use_cache=False)
        head = OutputHead(model, output)
        found, _ = token_logprobs(output.last_hidden_state, head, ids, mask, max_logits=max_logits)
        found.sum().backward()
        for name, parameter in model.named_parameters():
            assert torch.allclose(parameter.grad, own[name], rtol=1e-3, atol=1e-4), name


def test_the_decoder_is_its_own_again_after_an_error() -> None:
    model = model_of("granite")
    output = model.get_decoder()(input_ids=torch.arange(8, 16)[None])
    with pytest.raises(RuntimeError):
        OutputHead(model, output)(torch.zeros(4, 7))
    assert "forward" not in vars(model.get_decoder())


@pytest.mark.parametrize("kind", ["bert"])
def test_an_architecture_that_training_would_compute_otherwise_is_refused(kind: str) -> None:
    """BERT's attention sees what comes after, so a row's padding changes its log-probs."""
    policy = policy_of(peaked_model(kind))
    with pytest.raises(RecipeError, match=rf"model\.path: 'there' is a {kind}"):
        check_forward(policy, "there")


def test_a_base_is_refused_as_it_is_loaded(tmp_path: Path) -> None:
    folder = tiny.save(peaked_model("bert", vocab_size=tiny.VOCAB), tmp_path / "model")
    with pytest.raises(RecipeError, match=r"model\.path: .*\(bert\)"):
        load_policy(recipe_of(folder.parent), Accelerator(cpu=True))


def test_an_architecture_with_other_inputs_is_refused() -> None:
    model = peaked_model("llama", vocab_size=96)
    model.get_decoder().forward = lambda **inputs: 1 / len(inputs["pixels"])
    policy: Policy = policy_of(model)
    with pytest.raises(RecipeError, match="cannot be trained here"):
        check_forward(policy, "there")


def recipe_of(folder: Path, **sampling: Any) -> TrainRecipe:
    task = folder / "task.py"
    task.write_text(
        "from r1lab.types import Problem\n"
        "def load(split):\n"
        "    return [Problem(str(i), f'w{i} w{i + 1}', '', 'none') for i in range(40)]\n"
        "def reward(problem, completion):\n"
        "    return float(sum(completion.token_ids) % 2)\n"
    )
    return TrainRecipe.model_validate({
        "name": "head", "template": "plain",
        "model": {"path": str(folder / "model"), "dtype": "float32"},
        "problems": {"sources": [{"source": f"{task}:load"}]},
        "rewards": [{"reward": f"{task}:reward", "isolate": False}],
        "sampling": {"engine": "transformers", "questions_per_step": 8, "group_size": 4,
                     "max_tokens": 4, **sampling},
    })  # fmt: skip


def pieces_of(recipe: TrainRecipe, folder: Path) -> tuple[Policy, RolloutSource]:
    policy, tokenizer, _ = load_policy(recipe, Accelerator(cpu=True))
    sampler = build_sampler("transformers", folder, tokenizer, dtype="float32")
    return policy, build_rollout_source(recipe, sampler, tokenizer, policy)


@pytest.mark.parametrize("kind", ["gemma2", "cohere", "granite", "hyperclovax"])
def test_a_step_of_an_architecture_with_scaled_or_capped_logits_agrees_at_rounding(
    kind: str, tmp_path: Path
) -> None:
    """Granite and Cohere stopped here, Gemma 2 trained another policy than it sampled."""
    settings = {"gemma2": {"final_logit_softcapping": 12.0}, "granite": {"logits_scaling": 4.0},
                "cohere": {"logit_scale": 0.25}}  # fmt: skip
    model = peaked_model(kind, vocab_size=tiny.VOCAB, **settings.get(kind, {}))
    folder = tiny.save(model, tmp_path / "model")
    recipe = recipe_of(tmp_path)
    policy, source = pieces_of(recipe, folder)
    source.start(policy)
    verifiers = Verifiers(recipe.rewards, template=TEMPLATES["plain"])
    steps = [rl_step(policy, source, verifiers, recipe).metrics for _ in range(2)]
    measured = [kl for metrics in steps if (kl := metrics["sync_kl"]) is not None]
    assert measured and all(kl < 1e-9 for kl in measured)
    assert all(metrics["sync_kl_bound"] == 1e-6 for metrics in steps)


def test_in_float32_on_a_cpu_a_disagreement_above_rounding_stops_the_first_step(
    tmp_path: Path,
) -> None:
    """A sampler that caps its logits a little otherwise, over a few tokens: a KL of some 1e-4."""
    model = peaked_model("gemma2", vocab_size=tiny.VOCAB, final_logit_softcapping=12.0)
    folder = tiny.save(model, tmp_path / "model")
    model.config.final_logit_softcapping = 12.5
    other = tiny.save(model, tmp_path / "other")
    recipe = recipe_of(tmp_path)
    policy, source = pieces_of(recipe, other)
    assert folder != other and not source.guard.allow_chance
    kl, num_tokens = policy.sampler_mismatch(source.probe())
    assert kl is not None and 1e-6 < kl < 1e-2 and num_tokens < 200
    source.start(policy)  # the weights are the trainer's, the configuration is not
    verifiers = Verifiers(recipe.rewards, template=TEMPLATES["plain"])
    with pytest.raises(RunStopped, match=r"the bound is 1e-06"):
        rl_step(policy, source, verifiers, recipe)


@pytest.mark.parametrize("kind", ["falcon_h1", "mamba", "recurrent_gemma"])
def test_a_recurrent_state_is_refused_by_the_sampler_that_cannot_keep_it(
    kind: str, tmp_path: Path
) -> None:
    folder = tiny.save(peaked_model(kind, vocab_size=tiny.VOCAB), tmp_path / "model")
    with pytest.raises(RecipeError, match=r"sampling\.engine: 'transformers'.*vllm"):
        build_sampler("transformers", folder, tiny.tokenizer(), dtype="float32")


def test_a_family_without_a_number_of_positions_is_sampled_up_to_the_recipes(
    tmp_path: Path,
) -> None:
    folder = tiny.save(peaked_model("bloom", vocab_size=tiny.VOCAB), tmp_path / "model")
    with pytest.raises(RecipeError, match=r"sampling\.max_model_len"):
        build_sampler("transformers", folder, tiny.tokenizer(), dtype="float32")
    options = {"dtype": "float32", "max_model_len": 64}
    assert build_sampler("transformers", folder, tiny.tokenizer(), **options).max_model_len == 64


@pytest.mark.parametrize("kind", ["gemma2", "vaultgemma"])
def test_capped_attention_scores_are_computed_and_sdpa_which_cannot_is_refused(
    kind: str, tmp_path: Path
) -> None:
    model = peaked_model(kind, vocab_size=tiny.VOCAB, attn_logit_softcapping=0.01)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.mul_(100 if "q_proj" in name else 1)  # scores far above the cap
    folder = tiny.save(model, tmp_path / "model")
    ids = torch.arange(8, 40)[None]
    without_cap = model(input_ids=ids).logits  # by transformers' own choice, sdpa
    model.set_attn_implementation("eager")
    capped = model(input_ids=ids).logits
    loaded = load_base(ModelSettings(path=str(folder), dtype="float32"))[0]
    assert torch.equal(loaded.eval()(input_ids=ids).logits, capped)
    assert (capped - without_cap).abs().max() > 1e-3
    with pytest.raises(RecipeError, match=r"model\.attention"):
        load_base(ModelSettings(path=str(folder), dtype="float32", attention="sdpa"))
