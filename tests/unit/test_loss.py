"""The loss against worked values, finite differences in float64, and what it may not depend on."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from records import scored_group
from torch import Tensor, nn

from r1lab.grpo.advantage import group_advantages
from r1lab.grpo.batch import microbatches, pack
from r1lab.grpo.correction import Correction, correction_weights
from r1lab.grpo.logprobs import token_logprobs
from r1lab.grpo.loss import LOSSES, LossStats, denominator, find_loss, policy_loss
from r1lab.grpo.surrogate import DEFAULTS, LossOptions
from r1lab.types import Batch, Rollout, ScoredGroup

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
WORKED = {
    "grpo": (-2.2 + 0.8) / 2,
    "token_mean": -3.6 / 3,
    "bnpo": -3.6 / 3,
    "dr_grpo": -3.6 / (2 * 5),
    # The first sequence's ratio is sqrt(1.5 * 1.0) = 1.22, clipped to 1.2.
    "gspo": (-2.4 + 0.8) / 2,
    "luspo": (-2 * 2.4 + 0.8) / 2,
    # Weights 1.2 (cut from 1.5), 1, 0.5 before A log pi.
    "cispo": (-1.2 * 2 * (math.log(1.5) - 1) + 2 * 2 + 0.5 * (math.log(0.5) - 0.5)) / 3,
    # tau 1 where A > 0, else 1.05; sigmoid(0) = 1/2.
    "sapo": (
        (-4 * 2 / (1 + math.exp(-0.5)) - 2 * 2) / 2
        + 4 / 1.05 / (1 + math.exp(1.05 * 0.5))
    ) / 2,
    # W = 1.5 with (k, lambda) = (2, 3): phi = 1.5^2 e^(3 - 4.5);
    # W = 0.5 with (3, 2): phi = 0.5^3 e^(2 - 1).
    "vespo": (
        -2.25 * math.exp(-1.5) * 2 * (math.log(1.5) - 1 - 2)
        + 0.125 * math.e * (math.log(0.5) - 0.5)
    ) / 3,
}  # fmt: skip


def worked(
    loss: str, logp: Tensor = LOGP, options: LossOptions = DEFAULTS, **more: Tensor
) -> tuple[Tensor, LossStats]:
    return policy_loss(
        logp, LOGP_OLD, ADVANTAGES, LENGTHS,
        loss=loss, denominator=denominator(loss, 2, 3, max_tokens=5), options=options,
        **more,  # type: ignore[arg-type]
    )  # fmt: skip


@pytest.mark.parametrize("name", WORKED)
def test_worked_values(name: str) -> None:
    loss, stats = worked(name, entropy=torch.tensor([0.3, 0.6, 0.0]))
    assert float(loss) == pytest.approx(WORKED[name], abs=1e-12)
    means = stats.means()
    assert means["tokens"] == 3
    assert means["sequences"] == 2
    assert means["loss"] == pytest.approx(WORKED[name], abs=1e-12)
    # Ratio 1.5 with A > 0, ratio 0.5 with A < 0; both tokens of the first sequence at its level.
    high = {"gspo": 2 / 3, "luspo": 2 / 3, "sapo": 0.0, "vespo": 0.0}.get(name, 1 / 3)
    low = {"cispo": 0.0, "sapo": 0.0, "vespo": 0.0}.get(name, 1 / 3)
    assert means["clipped_high"] == pytest.approx(high)
    assert means["clipped_low"] == pytest.approx(low)
    k3 = [ratio - 1 - math.log(ratio) for ratio in (1.5, 1.0, 0.5)]
    assert means["kl_old"] == pytest.approx(sum(k3) / 3, abs=1e-12)
    assert means["entropy"] == pytest.approx(0.3)


def test_every_loss_has_worked_values() -> None:
    assert set(WORKED) == set(LOSSES)


def test_clip_higher() -> None:
    loss, stats = worked("token_mean", options=LossOptions(clip_high=0.6))
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
    per_sequence = [1 / 4, 1 / 4, 1 / 2]
    weights = {"grpo": per_sequence, "gspo": per_sequence, "sapo": per_sequence,
               "dr_grpo": [0.1] * 3, "luspo": [1 / 2] * 3}.get(name, [1 / 3] * 3)  # fmt: skip
    expected = [-w * a for w, a in zip(weights, [2.0, 2.0, -1.0], strict=True)]
    assert logp.grad is not None
    assert logp.grad.tolist() == pytest.approx(expected, abs=1e-12)
    assert stats.means()["kl_old"] == stats.means()["clipped_low"] == 0


def test_two_sided_clip() -> None:
    """Ratio 8 with A = -1: PPO's term grows without end, -min(-8, -1.2) = 8; cap 3 makes it 3."""
    old = torch.tensor([-3.0], dtype=torch.float64)
    logp = (old + math.log(8.0)).requires_grad_()

    def term(cap: float | None) -> tuple[Tensor, LossStats]:
        return policy_loss(
            logp, old, torch.tensor([-1.0]), torch.tensor([1]), loss="grpo", denominator=1.0,
            options=LossOptions(ratio_cap=cap),
        )  # fmt: skip

    assert float(term(None)[0].detach()) == pytest.approx(8.0)
    capped, stats = term(3.0)
    assert float(capped.detach()) == pytest.approx(3.0)
    capped.backward()
    assert logp.grad is not None and float(logp.grad) == 0.0
    assert stats.means()["clipped_high"] == 1


@pytest.mark.parametrize("corrected", [False, True])
@pytest.mark.parametrize("name", ["token_mean", "grpo", "gspo"])
def test_kl_to_a_reference(name: str, corrected: bool) -> None:
    """pi_ref / pi = 2, 1 and 1/2: k3 = 1 - log 2, 0 and log 2 - 1/2, times the ratio or not."""
    logp_ref = LOGP + torch.tensor([2.0, 1.0, 0.5], dtype=torch.float64).log()
    options = LossOptions(kl_coefficient=0.1, kl_corrected=corrected)
    loss, stats = worked(name, options=options, logp_ref=logp_ref)
    kl = [1 - math.log(2), 0.0, math.log(2) - 0.5]
    assert stats.means()["kl_ref"] == pytest.approx(sum(kl) / 3, abs=1e-12)
    if corrected:
        root = math.sqrt(1.5)
        ratios = [root, root, 0.5] if name == "gspo" else [1.5, 1.0, 0.5]
        kl = [k * ratio for k, ratio in zip(kl, ratios, strict=True)]
    mean = sum(kl) / 3 if name == "token_mean" else ((kl[0] + kl[1]) / 2 + kl[2]) / 2
    assert float(loss) == pytest.approx(WORKED[name] + 0.1 * mean, abs=1e-12)
    with pytest.raises(ValueError, match="reference"):
        worked(name, options=options)


def test_corrected_kl_has_the_gradient_of_the_divergence() -> None:
    """Over all tokens of a vocabulary, drawn from pi itself: E[ratio * k3] moves as KL(pi, ref)."""
    torch.manual_seed(0)
    logits = torch.randn(7, dtype=torch.float64, requires_grad=True)
    reference = torch.randn(7, dtype=torch.float64).log_softmax(0)
    logp = logits.log_softmax(0)
    (wanted,) = torch.autograd.grad((logp.exp() * (logp - reference)).sum(), logits)
    for corrected in (True, False):
        logp = logits.log_softmax(0)
        each = [
            policy_loss(
                logp[i : i + 1], None, torch.zeros(1), torch.tensor([1]), loss="grpo",
                denominator=1.0, logp_ref=reference[i : i + 1],
                options=LossOptions(kl_coefficient=1.0, kl_corrected=corrected),
            )[0] for i in range(7)
        ]  # fmt: skip
        expected = (torch.stack(each) * logp.detach().exp()).sum()
        (found,) = torch.autograd.grad(expected, logits)
        assert torch.allclose(found, wanted, atol=1e-12) == corrected


@pytest.mark.parametrize(
    ("kind", "weights", "cut"),
    [
        # c = 3, 1/4 and 1.5; bounds 1/2 and 2. Sequences: C = 3/4 and 1.5.
        ("token_truncate", [2.0, 0.5, 1.5], [True, True, False]),
        ("token_mask", [0.0, 0.0, 1.5], [True, True, False]),
        ("sequence_truncate", [0.75, 0.75, 1.5], [False] * 3),
        ("sequence_mask", [0.75, 0.75, 1.5], [False] * 3),
    ],
)
def test_sampler_trainer_weights(kind: str, weights: list[float], cut: list[bool]) -> None:
    sampler = LOGP_OLD - torch.tensor([3.0, 0.25, 1.5], dtype=torch.float64).log()
    found = correction_weights(LOGP_OLD, sampler, LENGTHS, kind, low=0.5, high=2.0)  # type: ignore[arg-type]
    assert found[0].tolist() == pytest.approx(weights)
    assert found[1].tolist() == cut
    if kind.startswith("sequence"):
        found = correction_weights(LOGP_OLD, sampler, LENGTHS, kind, low=None, high=1.0)  # type: ignore[arg-type]
        assert found[0].tolist() == pytest.approx([0.75, 0.75, 1.0 if "trunc" in kind else 0.0])
        assert found[1].tolist() == [False, False, True]
    # the terms of the token mean: -2.4, -2, 0.8
    loss, stats = worked("token_mean", correction=found)  # type: ignore[arg-type]
    terms = sum(w * t for w, t in zip(found[0].tolist(), [-2.4, -2.0, 0.8], strict=True))
    assert float(loss) == pytest.approx(terms / 3)
    assert stats.means()["correction"] == pytest.approx(sum(found[0].tolist()) / 3)
    assert stats.means()["correction_cut"] == pytest.approx(sum(found[1].tolist()) / 3)


def test_a_missing_sampler_logprob_is_not_corrected() -> None:
    sampler = torch.tensor([math.nan, -2.0, -0.5], dtype=torch.float64)
    weights, _ = correction_weights(LOGP_OLD, sampler, LENGTHS, "token_mask")
    assert weights.tolist() == [1.0, 1.0, 1.0]
    with pytest.raises(ValueError, match="sequence_mask"):
        correction_weights(LOGP_OLD, sampler, LENGTHS, "mask")  # type: ignore[arg-type]


def test_vespo_takes_the_correction_into_its_weight() -> None:
    """W = 1.5 * 4/3 = 2 in the first sequence: phi = 4 e^(3 - 6); the second one is as it was."""
    weights = torch.tensor([4 / 3, 1.0, 1.0], dtype=torch.float64)
    loss, _ = worked("vespo", correction=(weights, weights > 2))  # type: ignore[arg-type]
    expected = -4 * math.exp(-3) * 2 * (math.log(1.5) - 1 - 2)
    expected += 0.125 * math.e * (math.log(0.5) - 0.5)
    assert float(loss) == pytest.approx(expected / 3)


HELD_WEIGHT = ("cispo", "vespo")  # their weight carries no gradient
FULL = LossOptions(ratio_cap=2.0, kl_coefficient=0.3, kl_corrected=True)


@pytest.mark.parametrize("level", [None, "token", "sequence"])
@pytest.mark.parametrize("options", [DEFAULTS, FULL], ids=["plain", "full"])
@pytest.mark.parametrize("name", LOSSES)
def test_finite_differences(name: str, options: LossOptions, level: str | None) -> None:
    """torch's gradcheck: central differences in float64, through head, shift and loss."""
    if level is not None:
        options = replace(options, level=level)  # type: ignore[arg-type]
    if name in HELD_WEIGHT:
        # Below, old log-probs move along to hold the weight; they would hold KL's ratio too.
        options = replace(options, kl_corrected=False)
    if name == "vespo":
        options = replace(options, level=None)
    model = TinyLM()
    torch.manual_seed(1)
    ids = torch.randint(0, VOCABULARY, (2, 6))
    mask = torch.zeros(2, 6, dtype=torch.bool)
    mask[0, 2:6], mask[1, 1:3] = True, True
    hidden = model.hidden(ids).detach()
    with torch.no_grad():
        start, _ = token_logprobs(hidden, model.head, ids, mask)
    old = start + 0.3 * torch.randn(6, dtype=torch.float64)
    reference = start + 0.5 * torch.randn(6, dtype=torch.float64)
    lengths = torch.tensor([4, 2])
    correction = correction_weights(old, old + 0.2 * reference.sin(), lengths, "token_truncate")

    def loss_of(hidden: Tensor, weight: Tensor) -> Tensor:
        logp, _ = token_logprobs(
            hidden, lambda h: h @ weight.T + model.head.bias, ids, mask, max_logits=2 * VOCABULARY
        )
        moved = old + (logp - start).detach() if name in HELD_WEIGHT else old
        return policy_loss(
            logp, moved, ADVANTAGES, lengths, loss=name, options=options, logp_ref=reference,
            denominator=denominator(name, 2, 6, 8), correction=correction,
        )[0]  # fmt: skip

    weight = model.head.weight.detach().clone().requires_grad_()
    assert torch.autograd.gradcheck(loss_of, (hidden.requires_grad_(), weight))


# ------------------------------------------------------------------------------ invariance


def gradient(
    model: TinyLM, batch: Batch, name: str, budget: int, pad: int = 0, kl: float = 0.0
) -> list[Tensor]:
    """[loss, gradients..., sums of the stats] of a whole batch through micro-batches."""
    options = LossOptions(kl_coefficient=kl, kl_corrected=name != "sapo")
    model.zero_grad()
    stats = LossStats.zeros()
    for micro in microbatches(batch, budget, pad_token_id=pad):
        logp, entropy = token_logprobs(
            model.hidden(micro.token_ids), model.head, micro.token_ids, micro.completion_mask
        )
        old = logp.detach() + 0.4 * torch.sin(micro.token_ids[micro.completion_mask].double())
        tokens = micro.token_ids[micro.completion_mask].double()
        loss, part = policy_loss(
            logp, old, micro.advantages.double(), micro.completion_lens,
            loss=name, denominator=micro.denominator, entropy=entropy, options=options,
            logp_ref=logp.detach() + 0.5 * torch.cos(tokens),
            correction=correction_weights(
                old, old + 0.3 * torch.cos(tokens), micro.completion_lens,
                "token_mask" if name == "vespo" else "sequence_truncate",
            ),
        )  # fmt: skip
        loss.backward()
        stats = stats + part
    grads = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    return [stats.sums[LossStats.FIELDS.index("loss")], *grads, stats.sums]


def assert_same(one: list[Tensor], two: list[Tensor]) -> None:
    for a, b in zip(one, two, strict=True):
        torch.testing.assert_close(a, b, atol=1e-10, rtol=1e-10)


def groups() -> list[ScoredGroup]:
    return [
        scored_group([1.0, 0.0, 0.3], lengths=[4, 2, 7], prompt_len=3, seed=1, vocabulary=11),
        scored_group([1.0, 1.0], lengths=[5, 8], prompt_len=2, seed=2, vocabulary=11),
        scored_group([0.0, 1.0], lengths=[1, 6], prompt_len=5, seed=3, vocabulary=11),
    ]


def packed(scored: list[ScoredGroup], name: str, drop: bool = True) -> Batch:
    advantages = group_advantages(scored, "group_std")
    return pack(scored, advantages, loss=name, max_tokens=10, drop_zero_advantage=drop)


@pytest.mark.parametrize("name", LOSSES)
class TestInvariance:
    def test_microbatch_split_and_padding(self, name: str) -> None:
        model, batch = TinyLM(), packed(groups(), name)
        for kl in (0.0, 0.2):
            whole = gradient(model, batch, name, budget=10_000, kl=kl)
            for budget in (1, 12, 25):
                assert_same(gradient(model, batch, name, budget, kl=kl), whole)
            assert_same(gradient(model, batch, name, budget=10_000, pad=7, kl=kl), whole)

    def test_order_inside_a_group(self, name: str) -> None:
        model = TinyLM()
        turned = []
        for group in groups():
            rollout = group.rollout
            completions = rollout.completions[::-1]
            turned.append(
                ScoredGroup(
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
    with pytest.raises(ValueError, match=r"bnpo, cispo, dr_grpo, .*, vespo"):
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

    from r1lab.config.algorithm import AdvantageName, LossName
    from r1lab.config.recipe import AlgorithmSettings
    from r1lab.grpo.advantage import ADVANTAGES as KINDS

    fields = AlgorithmSettings.model_fields
    assert set(get_args(LossName)) == set(LOSSES)
    assert set(get_args(AdvantageName)) == set(KINDS)
    corrections = {*get_args(fields["correction"].annotation)} - {"none"}
    assert corrections == {*get_args(Correction)}


def test_stats_add_up() -> None:
    # Three tokens, two of them at a clip; then the same with every ratio at 1: none is clipped.
    _, clipped = worked("grpo")
    _, still = worked("grpo", logp=LOGP_OLD)
    total = (LossStats.zeros() + clipped + still).means()
    assert total["tokens"] == 6 and total["sequences"] == 4
    assert total["clipped_low"] == total["clipped_high"] == pytest.approx(1 / 6)
    assert still.means()["kl_old"] == 0 < clipped.means()["kl_old"]
    assert total["kl_old"] == pytest.approx(clipped.means()["kl_old"] / 2)
    assert total["loss"] == pytest.approx(clipped.means()["loss"] + still.means()["loss"])
