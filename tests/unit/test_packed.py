"""Sequences packed end to end: loss, log-probs and gradient as of padded rows; no padding."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from test_shared import batch_of, model_of
from torch import Tensor
from transformers import AttentionInterface

from r1lab.config.diff import check_changes
from r1lab.config.reading import load_recipe
from r1lab.config.recipe import AlgorithmSettings, ModelSettings, OptimizerSettings
from r1lab.grpo.batch import MicroBatch, microbatches
from r1lab.grpo.logprobs import token_logprobs
from r1lab.grpo.micro_loss import micro_loss
from r1lab.grpo.policy import Policy
from r1lab.grpo.sequence_packing import causal_blocks, fill_rows, longest, packed_microbatches
from r1lab.model import attention
from r1lab.model.load import load_base
from r1lab.types import Batch, RecipeError

ALGORITHM = AlgorithmSettings(num_minibatches=2, kl_coefficient=0.1, tokens_per_microbatch=150)


@pytest.fixture(scope="module")
def batch() -> Batch:
    """Old and reference log-probs near those of a model that knows nothing, so that all counts."""
    made = batch_of()
    draw = torch.Generator().manual_seed(0)
    shape = made.token_ids.shape
    return replace(
        made,
        logp_old=-4.8 + 0.3 * torch.randn(shape, generator=draw),
        logp_ref=-4.8 + 0.3 * torch.randn(shape, generator=draw),
    )


Result = tuple[float, Tensor, Tensor]


def update(model: Any, micros: list[MicroBatch], num_tokens: int, mask: Any = None) -> Result:
    """(loss, log-probs of the packed batch, gradient); `mask` makes the mask of a micro-batch."""
    total, flat = 0.0, torch.zeros(num_tokens)
    model.zero_grad()
    for micro in micros:
        hidden = model.get_decoder()(
            input_ids=micro.token_ids, attention_mask=mask(micro) if mask else micro.mask,
            position_ids=micro.position_ids, use_cache=False,
        ).last_hidden_state  # fmt: skip
        logp, entropy = token_logprobs(
            hidden, model.get_output_embeddings(), micro.token_ids, micro.completion_mask,
            predictors=micro.predictors,
        )  # fmt: skip
        loss, _ = micro_loss(micro, logp, entropy, ALGORITHM)
        loss.backward()
        total += float(loss.detach())
        flat[micro.positions] = logp.detach()
    return total, flat, gradient_of(model)


def gradient_of(model: Any) -> Tensor:
    return torch.cat([p.grad.flatten().double() for p in model.parameters()])


def cosine(one: Tensor, other: Tensor) -> float:
    return float(torch.nn.functional.cosine_similarity(one, other, dim=0))


def blocks(micro: MicroBatch) -> Tensor:
    assert micro.cu_seqlens is not None
    return causal_blocks(micro.cu_seqlens)


@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
@pytest.mark.parametrize("kind", ["v3", "llama"])
@pytest.mark.parametrize("budget", [60, 4096])
def test_loss_and_gradient_are_those_of_padded_rows(
    kind: str, kernel: str, budget: int, batch: Batch
) -> None:
    model, num_tokens = model_of(kind), batch.token_ids.numel()
    model.set_attn_implementation(kernel)
    packed = list(packed_microbatches(batch, budget))
    loss, logp, gradient = update(model, packed, num_tokens, blocks)
    expected = update(model, list(microbatches(batch, 150)), num_tokens)
    assert loss == pytest.approx(expected[0], rel=1e-5)
    torch.testing.assert_close(logp, expected[1], atol=2e-5, rtol=0)
    assert cosine(gradient, expected[2]) > 1 - 1e-9
    assert float(gradient.norm() / expected[2].norm()) == pytest.approx(1.0, abs=1e-5)
    # Sequences that see each other give something else: the mask is what is tested here.
    if budget == 4096:
        seen = update(model, packed, num_tokens, lambda micro: blocks(micro)[..., -1:, :] * 0)
        assert not torch.allclose(seen[1], logp, atol=1e-2)


def test_rows_have_no_padding_and_keep_to_the_budget(batch: Batch) -> None:
    lengths = batch.lengths.tolist()
    for budget in (45, 80, 4096):
        places = []
        micros = list(packed_microbatches(batch, budget))
        for micro in micros:
            assert micro.token_ids.shape[0] == 1 and micro.attention_mask.all()
            assert micro.token_ids.numel() <= budget
            assert torch.equal(micro.token_ids, batch.token_ids[micro.where])
            cu = micro.cu_seqlens
            assert cu is not None and cu.dtype == torch.int32 and micro.position_ids is not None
            assert int(cu[0]) == 0 and int(cu[-1]) == micro.token_ids.numel()
            for start, end in pairwise(cu.tolist()):
                assert micro.position_ids[0, start:end].tolist() == list(range(end - start))
            assert longest(cu) == max(b - a for a, b in pairwise(cu.tolist()))
            places += micro.where.flatten().tolist()
        assert sorted(places) == list(range(sum(lengths)))
        assert len(micros) <= len(list(microbatches(batch, budget)))
    assert fill_rows([3, 9, 5, 2], 8) == [[1], [2, 0], [3]]  # 9 alone; 5 and 3; 2
    assert list(packed_microbatches(batch_of(prompts=()), 100)) == []


def test_what_belongs_to_tokens_and_sequences_goes_with_them(batch: Batch) -> None:
    marked = replace(batch, logp_old=torch.arange(batch.token_ids.numel()).float())
    for micro in packed_microbatches(marked, 90):
        assert micro.logp_old is not None and micro.predictors is not None
        assert torch.equal(micro.logp_old, micro.positions.float())
        assert micro.where.flatten()[micro.predictors].tolist() == (micro.positions - 1).tolist()
        assert int(micro.completion_lens.sum()) == len(micro.positions)
        assert len(micro.advantages) == len(micro.stale) == len(micro.completion_lens)


# --- the way through the policy --------------------------------------------------------------


def varlen_reference(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: None, **given: Any
) -> tuple[Tensor, None]:
    """Attention of variable length in plain PyTorch, told of sequences as the kernels are.

    query, key, value [1, heads, t, d]; returns [1, t, heads, d].
    """
    assert attention_mask is None, "a kernel of variable length takes no mask"
    ends = given["cu_seq_lens_q"]
    assert ends is given["cu_seq_lens_k"]
    assert given["max_length_q"] == given["max_length_k"] == longest(ends)
    out = [
        torch.nn.functional.scaled_dot_product_attention(
            query[:, :, a:b], key[:, :, a:b], value[:, :, a:b], is_causal=True,
            scale=given["scaling"], enable_gqa=True,
        )
        for a, b in pairwise(ends.tolist())
    ]  # fmt: skip
    return torch.cat(out, 2).transpose(1, 2), None


@pytest.fixture
def policy_by() -> Iterator[Callable[..., Policy]]:
    """Policies of the same weights, under an attention of the given name."""
    AttentionInterface.register("varlen_reference", varlen_reference)
    attention.VARLEN["varlen_reference"] = "this file"

    def make(kind: str, kernel: str) -> Policy:
        model = model_of(kind)
        model.set_attn_implementation(kernel)
        return Policy(
            model, optimizer=OptimizerSettings(), total_updates=9, temperature=1.0,
            accelerator=Accelerator(cpu=True),
        )  # fmt: skip

    yield make
    del attention.VARLEN["varlen_reference"]
    del AttentionInterface._global_mapping["varlen_reference"]


@pytest.mark.parametrize("kind", ["v3", "llama"])
def test_a_policy_packs_where_the_kernel_takes_it(
    kind: str, batch: Batch, policy_by: Callable[..., Policy]
) -> None:
    plain, packed = policy_by(kind, "sdpa"), policy_by(kind, "varlen_reference")
    assert all(m.cu_seqlens is None for m in plain.microbatches(batch, 150))
    assert all(m.cu_seqlens is not None for m in packed.microbatches(batch, 150))
    algorithm = ALGORITHM if kind == "llama" else ALGORITHM.model_copy(
        update={"router_bias_speed": 0.01}
    )  # fmt: skip
    expected, found = (p.forward_backward(batch, algorithm) for p in (plain, packed))
    assert found.means == pytest.approx(expected.means, rel=1e-4, abs=1e-6)
    assert found.sync_kl == pytest.approx(expected.sync_kl, rel=1e-4)
    assert cosine(gradient_of(packed.model), gradient_of(plain.model)) > 1 - 1e-9
    if kind == "v3":
        # Every expert gets the same tokens, and those that were recorded are replayed.
        assert packed._load is not None and torch.equal(packed._load, plain._load)
        logp, experts = packed.completion_logprobs(batch, 150, record_experts=True)
        _, theirs = plain.completion_logprobs(batch, 150, record_experts=True)
        assert experts is not None and torch.equal(experts, theirs)
        reversed_ = replace(batch, experts=(7 - experts).to(torch.int16))
        elsewhere, again = (p.completion_logprobs(reversed_, 150)[0] for p in (packed, plain))
        torch.testing.assert_close(elsewhere, again, atol=2e-5, rtol=0)
        assert not torch.allclose(elsewhere, logp, atol=1e-2)


# --- the recipe's key ------------------------------------------------------------------------


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what a machine without a GPU says")
@pytest.mark.parametrize("name", ["flash_attention_2", "flash_attention_3", "flash_attention_4"])
def test_a_kernel_for_gpus_is_refused_without_one(name: Any) -> None:
    with pytest.raises(RecipeError, match=rf"^model\.attention: '{name}' needs a CUDA GPU") as said:
        load_base(ModelSettings(path="nano", attention=name))
    assert "\n" not in str(said.value)


def test_the_kernel_is_the_one_that_is_named() -> None:
    for name, expected in (("eager", "eager"), ("sdpa", "sdpa"), ("auto", "sdpa")):
        model, _, _ = load_base(ModelSettings(path="nano", attention=name))
        assert model.config._attn_implementation == expected
        assert not attention.takes_packed_rows(model.config)


def test_a_run_goes_on_under_another_kernel() -> None:
    recipe = load_recipe("quickstart", [("model.attention", "eager")])
    before = recipe.model_dump(mode="json")
    del before["model"]["attention"]  # from before there was the key
    assert check_changes(before, recipe, force=False) == ["model.attention: 'auto' -> 'eager'"]


def test_a_run_goes_on_that_began_before_a_key_was_there() -> None:
    """What the schema has gained is at its default in a recipe that does not have it."""
    recipe = load_recipe("quickstart")
    before = recipe.model_dump(mode="json")
    del (
        before["model"]["attention"],
        before["problems"]["curriculum"],
        before["sampling"]["max_lag"],
    )
    assert check_changes(before, recipe, force=False) == []
    gone = before | {"a_key_that_is_gone": 1}
    with pytest.raises(RecipeError, match="a_key_that_is_gone: 1 -> None"):
        check_changes(gone, recipe, force=False)
