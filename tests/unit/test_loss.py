"""The loss against worked values, finite differences in float64, and what it may not depend on."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from records import scored_group
from torch import Tensor, nn

from r1lab.grpo.advantage import group_advantages
from r1lab.grpo.batch import microbatches, pack
from r1lab.grpo.loss import (
    LOSSES,
    LossStats,
    denominator,
    find_loss,
    policy_loss,
    token_logprobs,
)
from r1lab.types import Batch, Rollout, Scored

VOCABULARY, WIDTH = 11, 6


class TinyLM(nn.Module):
    """A causal model whose hidden state leans on all tokens before it: a running mean."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.head = nn.Linear(WIDTH, VOCABULARY)
        self.double()

    def hidden(self, token_ids: Tensor) -> Tensor:
        count = torch.arange(1, token_ids.shape[1] + 1, dtype=torch.float64)
        return torch.tanh(self.embedding(token_ids).cumsum(1) / count[:, None])


# ------------------------------------------------------------------------------ log-probs


def test_token_logprobs_are_those_of_the_next_token() -> None:
    model = TinyLM()
    ids = torch.tensor([[1, 2, 3, 4, 5], [6, 7, 8, 0, 0]])
    mask = torch.tensor([[0, 0, 1, 1, 1], [0, 1, 1, 0, 0]], dtype=torch.bool)
    logp, entropy = token_logprobs(model.hidden(ids), model.head, ids, mask)
    expected, entropies = [], []
    for row, prefix in ((0, 2), (0, 3), (0, 4), (1, 1), (1, 2)):
        # from nothing but the tokens before it
        with torch.no_grad():
            probs = model.head(model.hidden(ids[row : row + 1, :prefix])[0, -1]).softmax(-1)
        expected.append(math.log(float(probs[ids[row, prefix]])))
        entropies.append(-sum(float(p) * math.log(float(p)) for p in probs))
    assert logp.tolist() == pytest.approx(expected, abs=1e-12)
    assert entropy.tolist() == pytest.approx(entropies, abs=1e-12)
    assert not entropy.requires_grad


def test_temperature_is_that_of_the_sampler() -> None:
    model = TinyLM()
    ids = torch.tensor([[1, 2, 3]])
    mask = torch.tensor([[False, False, True]])
    hidden = model.hidden(ids)
    logp, _ = token_logprobs(hidden, model.head, ids, mask, temperature=0.5)
    expected = (model.head(hidden[0, 1]) / 0.5).log_softmax(-1)[3].detach()
    assert float(logp.detach()) == pytest.approx(float(expected), abs=1e-12)


@pytest.mark.parametrize("as_function", [False, True])
def test_chunks_change_nothing(as_function: bool) -> None:
    model = TinyLM()
    ids = torch.randint(0, VOCABULARY, (3, 9))
    mask = torch.zeros(3, 9, dtype=torch.bool)
    mask[0, 2:], mask[1, 4:8], mask[2, 1:3] = True, True, True
    head: Callable[[Tensor], Tensor] = (lambda h: model.head(h)) if as_function else model.head
    results = []
    for max_logits in (10**6, 4 * VOCABULARY, 1):
        model.zero_grad()
        logp, entropy = token_logprobs(model.hidden(ids), head, ids, mask, max_logits=max_logits)
        (logp * torch.arange(len(logp))).sum().backward()
        grads = [p.grad.clone() for p in model.parameters() if p.grad is not None]
        results.append([logp, entropy, *grads])
    for other in results[1:]:
        for one, two in zip(results[0], other, strict=True):
            torch.testing.assert_close(one, two, atol=1e-12, rtol=0)


def test_no_completion_token_gives_empty_tensors() -> None:
    model = TinyLM()
    ids = torch.ones(2, 3, dtype=torch.long)
    logp, entropy = token_logprobs(
        model.hidden(ids), model.head, ids, torch.zeros(2, 3, dtype=torch.bool)
    )
    assert logp.shape == entropy.shape == (0,)


def test_half_precision_is_scored_in_float32() -> None:
    model = TinyLM().to(torch.bfloat16)
    ids = torch.tensor([[1, 2, 3]])
    mask = torch.tensor([[False, True, True]])
    logp, entropy = token_logprobs(model.hidden(ids).to(torch.bfloat16), model.head, ids, mask)
    assert logp.dtype == entropy.dtype == torch.float32


# --------------------------------------------------------------------------- worked values

# Two sequences of 2 and 1 tokens. Ratios 1.5, 1.0 with A = 2, and 0.5 with A = -1; clip 0.2:
#   -min(1.5 * 2, 1.2 * 2) = -2.4;  -min(2, 2) = -2;  -min(-0.5, -0.8) = 0.8
LOGP_OLD = torch.tensor([-1.0, -2.0, -0.5], dtype=torch.float64)
LOGP = LOGP_OLD + torch.tensor([1.5, 1.0, 0.5], dtype=torch.float64).log()
ADVANTAGES = torch.tensor([2.0, -1.0], dtype=torch.float64)
LENGTHS = torch.tensor([2, 1])
WORKED = {"grpo": (-2.2 + 0.8) / 2, "token_mean": -3.6 / 3, "dr_grpo": -3.6 / (2 * 5)}


def worked(loss: str, logp: Tensor = LOGP, **options: float) -> tuple[Tensor, LossStats]:
    return policy_loss(
        logp, LOGP_OLD, ADVANTAGES, LENGTHS,
        loss=loss, denominator=denominator(loss, 2, 3, max_tokens=5), **options,
    )  # fmt: skip


@pytest.mark.parametrize("name", WORKED)
def test_worked_values(name: str) -> None:
    loss, stats = worked(name, entropy=torch.tensor([0.3, 0.6, 0.0]))  # type: ignore[arg-type]
    assert float(loss) == pytest.approx(WORKED[name], abs=1e-12)
    means = stats.means()
    assert means["tokens"] == 3
    assert means["sequences"] == 2
    assert means["loss"] == pytest.approx(WORKED[name], abs=1e-12)
    assert means["clipped_high"] == pytest.approx(1 / 3)  # ratio 1.5, A > 0
    assert means["clipped_low"] == pytest.approx(1 / 3)  # ratio 0.5, A < 0
    k3 = [ratio - 1 - math.log(ratio) for ratio in (1.5, 1.0, 0.5)]
    assert means["kl_old"] == pytest.approx(sum(k3) / 3, abs=1e-12)
    assert means["entropy"] == pytest.approx(0.3)


def test_every_loss_has_worked_values() -> None:
    assert set(WORKED) == set(LOSSES)


def test_clip_higher() -> None:
    loss, stats = worked("token_mean", clip_high=0.6)
    assert float(loss) == pytest.approx((-3.0 - 2.0 + 0.8) / 3, abs=1e-12)
    assert stats.means()["clipped_high"] == 0


def test_gradient_of_a_clipped_token_is_zero() -> None:
    logp = LOGP.clone().requires_grad_()
    loss, _ = worked("token_mean", logp)
    loss.backward()
    # d/dlogp of -ratio * A / 3 where not clipped
    assert logp.grad is not None
    assert logp.grad.tolist() == pytest.approx([0.0, -2.0 / 3, 0.0], abs=1e-12)


@pytest.mark.parametrize("name", LOSSES)
def test_first_update_is_the_policy_gradient(name: str) -> None:
    logp = LOGP.clone().requires_grad_()
    total, stats = policy_loss(
        logp, None, ADVANTAGES, LENGTHS, loss=name, denominator=denominator(name, 2, 3, 5)
    )
    total.backward()
    weights = {"grpo": [1 / 4, 1 / 4, 1 / 2], "token_mean": [1 / 3] * 3, "dr_grpo": [0.1] * 3}
    expected = [-w * a for w, a in zip(weights[name], [2.0, 2.0, -1.0], strict=True)]
    assert logp.grad is not None
    assert logp.grad.tolist() == pytest.approx(expected, abs=1e-12)
    assert stats.means()["kl_old"] == stats.means()["clipped_low"] == 0


@pytest.mark.parametrize("name", LOSSES)
def test_finite_differences(name: str) -> None:
    """torch's gradcheck: central differences in float64, through head, shift and loss."""
    model = TinyLM()
    torch.manual_seed(1)
    ids = torch.randint(0, VOCABULARY, (2, 6))
    mask = torch.zeros(2, 6, dtype=torch.bool)
    mask[0, 2:6], mask[1, 1:3] = True, True
    hidden = model.hidden(ids).detach()
    with torch.no_grad():
        reference, _ = token_logprobs(hidden, model.head, ids, mask)
    old = reference + 0.3 * torch.randn(6, dtype=torch.float64)

    def loss_of(hidden: Tensor, weight: Tensor) -> Tensor:
        logp, _ = token_logprobs(
            hidden, lambda h: h @ weight.T + model.head.bias, ids, mask, max_logits=2 * VOCABULARY
        )
        return policy_loss(
            logp, old, ADVANTAGES, torch.tensor([4, 2]),
            loss=name, denominator=denominator(name, 2, 6, 8),
        )[0]  # fmt: skip

    weight = model.head.weight.detach().clone().requires_grad_()
    assert torch.autograd.gradcheck(loss_of, (hidden.requires_grad_(), weight))


# ------------------------------------------------------------------------------ invariance


def gradient(model: TinyLM, batch: Batch, name: str, budget: int, pad: int = 0) -> list[Tensor]:
    """[loss, gradients..., sums of the stats] of a whole batch through micro-batches."""
    model.zero_grad()
    stats = LossStats.zeros()
    for micro in microbatches(batch, budget, pad_token_id=pad):
        logp, entropy = token_logprobs(
            model.hidden(micro.token_ids), model.head, micro.token_ids, micro.completion_mask
        )
        old = logp.detach() + 0.4 * torch.sin(micro.token_ids[micro.completion_mask].double())
        loss, part = policy_loss(
            logp, old, micro.advantages.double(), micro.completion_lens,
            loss=name, denominator=micro.denominator, entropy=entropy,
        )  # fmt: skip
        loss.backward()
        stats = stats + part
    grads = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    return [stats.sums[LossStats.FIELDS.index("loss")], *grads, stats.sums]


def assert_same(one: list[Tensor], two: list[Tensor]) -> None:
    for a, b in zip(one, two, strict=True):
        torch.testing.assert_close(a, b, atol=1e-10, rtol=1e-10)


def groups() -> list[Scored]:
    return [
        scored_group([1.0, 0.0, 0.3], lengths=[4, 2, 7], prompt_len=3, seed=1, vocabulary=11),
        scored_group([1.0, 1.0], lengths=[5, 8], prompt_len=2, seed=2, vocabulary=11),
        scored_group([0.0, 1.0], lengths=[1, 6], prompt_len=5, seed=3, vocabulary=11),
    ]


def packed(scored: list[Scored], name: str, drop: bool = True) -> Batch:
    advantages = group_advantages(scored, "group_std")
    return pack(scored, advantages, loss=name, max_tokens=10, drop_zero_advantage=drop)


@pytest.mark.parametrize("name", LOSSES)
class TestInvariance:
    def test_microbatch_split_and_padding(self, name: str) -> None:
        model, batch = TinyLM(), packed(groups(), name)
        whole = gradient(model, batch, name, budget=10_000)
        for budget in (1, 12, 25):
            assert_same(gradient(model, batch, name, budget), whole)
        assert_same(gradient(model, batch, name, budget=10_000, pad=7), whole)

    def test_order_inside_a_group(self, name: str) -> None:
        model = TinyLM()
        turned = []
        for group in groups():
            rollout = group.rollout
            completions = rollout.completions[::-1]
            turned.append(
                Scored(
                    Rollout(rollout.problem, rollout.prompt_token_ids, completions),
                    group.outcomes[::-1],
                )
            )
        one = gradient(model, packed(groups(), name), name, 30)
        assert_same(gradient(model, packed(turned, name), name, 30), one)

    def test_zero_advantage_drop(self, name: str) -> None:
        model = TinyLM()
        dropped, full = packed(groups(), name), packed(groups(), name, drop=False)
        assert len(full) == len(dropped) + 2
        # loss and gradient; the stats count what was computed
        one = gradient(model, dropped, name, 30)[:-1]
        assert_same(gradient(model, full, name, 30)[:-1], one)

    def test_processes_add_up(self, name: str) -> None:
        model, scored = TinyLM(), groups()
        whole = gradient(model, packed(scored, name), name, 30)
        denominators = packed(scored, name).denominator
        parts = [
            gradient(model, replace(packed(share, name), denominator=denominators), name, 30)
            for share in (scored[:1], scored[1:])
        ]
        assert_same([a + b for a, b in zip(*parts, strict=True)], whole)


# ------------------------------------------------------------------------------- the edges


def test_unknown_loss() -> None:
    with pytest.raises(ValueError, match="dr_grpo, grpo, token_mean"):
        find_loss("gpro")


def test_nothing_to_learn_from() -> None:
    empty = torch.zeros(0, requires_grad=True)
    loss, stats = policy_loss(
        empty, None, torch.zeros(0), torch.zeros(0, dtype=torch.long), loss="grpo", denominator=1.0
    )
    loss.backward()
    assert float(loss.detach()) == 0
    assert stats.means()["kl_old"] == 0


def test_names_of_the_recipe_are_those_of_the_table() -> None:
    from typing import get_args

    from r1lab.grpo.advantage import ADVANTAGES as KINDS
    from r1lab.recipe import AlgorithmSettings

    fields = AlgorithmSettings.model_fields
    assert set(get_args(fields["loss"].annotation)) == set(LOSSES)
    assert set(get_args(fields["advantage"].annotation)) == set(KINDS)


def test_stats_add_up() -> None:
    _, one = worked("grpo")
    total = LossStats.zeros() + one + one
    assert total.means()["tokens"] == 6
    assert total.means()["kl_old"] == pytest.approx(one.means()["kl_old"])
    assert all(a <= b for a, b in pairwise((0.0, total.means()["clipped_low"], 1.0)))
