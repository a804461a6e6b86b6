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

from r1lab.grpo.logprobs import token_logprobs
from r1lab.grpo.pieces import check_forward, load_policy
from r1lab.grpo.policy import Policy
from r1lab.model.head import OutputHead
from r1lab.recipe import AlgorithmSettings, TrainRecipe
from r1lab.types import Batch, RecipeError


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
    remembered = policy.remember(batch, algorithm)
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


@pytest.mark.parametrize("kind", ["bert", "doge"])
def test_an_architecture_that_training_would_compute_otherwise_is_refused(kind: str) -> None:
    """BERT's attention sees what comes after, so a row's padding changes its log-probs."""
    policy = policy_of(peaked_model(kind))
    with pytest.raises(RecipeError, match=rf"model\.path: 'there' is a {kind}"):
        check_forward(policy, "there")


def test_a_base_is_refused_as_it_is_loaded(tmp_path: Path) -> None:
    folder = tiny.save(peaked_model("bert", vocab_size=tiny.VOCAB), tmp_path / "model")
    recipe = TrainRecipe.model_validate({
        "name": "x", "problems": {"sources": [{"source": "boxes"}]},
        "model": {"path": str(folder), "dtype": "float32"},
    })  # fmt: skip
    with pytest.raises(RecipeError, match=r"is a bert"):
        load_policy(recipe, Accelerator(cpu=True))


def test_an_architecture_with_other_inputs_is_refused() -> None:
    model = peaked_model("llama", vocab_size=96)
    model.get_decoder().forward = lambda **inputs: 1 / len(inputs["pixels"])
    policy: Policy = policy_of(model)
    with pytest.raises(RecipeError, match="cannot be trained here"):
        check_forward(policy, "there")
