"""The policy loss: free functions from tensors to (loss, stats), and one table of names.

    L = 1/D sum_i sum_t a_i (f(w_it, A_i) + beta KL_it)

f is a term of `r1lab.grpo.surrogate`; a_i and the denominator D define how terms are averaged:

    name        paper (arXiv)              term      ratio     a_i      D
    grpo        2402.03300 eq. 3           clipped   token     1/|o_i|  B
    dr_grpo     2503.20783 eq. 2           clipped   token     1        B * max_tokens
    token_mean  DAPO, 2503.14476 eq. 8     clipped   token     1        tokens of the step
    bnpo        2506.02864; as TRL's       clipped   token     1        tokens of the mini-batch
    gspo        2507.18071 eq. 5           clipped   sequence  1/|o_i|  B
    luspo       2602.05261                 clipped   sequence  1        B
    cispo       2506.13585 eq. 4           weighted  token     1        tokens of the step
    sapo        2511.20347 eq. 5           gated     token     1/|o_i|  B
    vespo       2602.10693                 reshaped  product   1        tokens of the step

DeepSeek-R1's GRPO (2501.12948 eq. 1) is `grpo`. All equal those of TRL 1.16's GRPOTrainer, where
`token_mean` is `dapo` and `gspo` is `grpo` at sequence level (tests/parity/test_trl_loss.py).
BNPO's Beta-normalised advantage is not implemented, nor is it in TRL: the name refers to the
denominator.

Completion tokens are flat, [M], one sequence after the other, in the order of the rows; `lengths`
[b] gives the number of tokens of each. Padding never reaches a loss. The denominator is computed
over the whole step (`denominator`, called by `grpo.batch.pack`), so micro-batches and processes
simply add up.

Legend in addition to that of r1lab.types: b sequences of a micro-batch, M completion tokens in it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType
from typing import Literal

import torch
from torch import Tensor

from r1lab.grpo import surrogate
from r1lab.grpo.surrogate import (
    DEFAULTS,
    LossOptions,
    RatioLevel,
    Surrogate,
    k3,
    ratio_at_level,
    spread,
)
from r1lab.problems.registry import resolve
from r1lab.types import R1labError, RecipeError

Aggregation = Literal[
    "sequence_mean", "sequence_sum", "token_mean", "minibatch_token_mean", "constant"
]


@dataclass(frozen=True, slots=True)
class Loss:
    """A named loss: the term of one token, its ratio's level, and how terms are averaged."""

    surrogate: Surrogate
    level: RatioLevel
    aggregation: Aggregation


LOSSES: Mapping[str, Loss] = MappingProxyType(
    {
        "grpo": Loss(surrogate.clipped, "token", "sequence_mean"),
        "dr_grpo": Loss(surrogate.clipped, "token", "constant"),
        "token_mean": Loss(surrogate.clipped, "token", "token_mean"),
        "bnpo": Loss(surrogate.clipped, "token", "minibatch_token_mean"),
        "gspo": Loss(surrogate.clipped, "sequence", "sequence_mean"),
        "luspo": Loss(surrogate.clipped, "sequence", "sequence_sum"),
        "cispo": Loss(surrogate.weighted, "token", "token_mean"),
        "sapo": Loss(surrogate.gated, "token", "sequence_mean"),
        "vespo": Loss(surrogate.reshaped, "product", "token_mean"),
    }
)


@lru_cache(maxsize=16)
def find_loss(name: str) -> Loss:
    """Return the loss of that name: one of LOSSES, or the result of `path/to/file.py:function`.

    Raises RecipeError if the name is neither, or if the function does not return a Loss.
    """
    if name in LOSSES:
        return LOSSES[name]
    key = "algorithm.loss"
    if ":" not in name and not name.endswith(".py"):
        raise RecipeError(f"{key}: {name!r} is not one of {', '.join(sorted(LOSSES))}")
    function = resolve(name, "loss", key=key)
    try:
        loss = function()
    except TypeError as error:  # it takes arguments: probably the surrogate itself was named
        raise RecipeError(
            f"{key}: {name!r}: {error}; give a function that returns a Loss"
        ) from None
    if not isinstance(loss, Loss):
        raise RecipeError(
            f"{key}: {name!r} returned {type(loss).__name__}, not an r1lab.grpo.loss.Loss"
        )
    return loss


def denominator(loss: str, num_sequences: int, num_tokens: int, max_tokens: int) -> float:
    """Return the divisor of the sum of token terms.

    num_sequences and num_tokens count all completions and their tokens, including those with zero
    advantage; max_tokens is the length limit of a completion, Dr. GRPO's constant.

    sequence_mean, sequence_sum: B;  token_mean: N_completion;  constant: B * max_tokens;
    minibatch_token_mean: N_completion of each mini-batch (`grpo.batch.split` counts them).
    """
    match find_loss(loss).aggregation:
        case "sequence_mean" | "sequence_sum":
            return float(num_sequences)
        case "token_mean" | "minibatch_token_mean":
            return float(num_tokens)
        case "constant":
            return float(num_sequences) * max_tokens


@dataclass(frozen=True, slots=True)
class LossStats:
    """Sums over completion tokens, additive over micro-batches and processes.

    `sums` [len(FIELDS)] float64 stays on the device, so that updating it does not synchronise. Add
    two with `+`, sum `sums` over processes, then read `means()`.
    """

    FIELDS = ("tokens", "sequences", "loss", "clipped_low", "clipped_high", "kl_old", "entropy",
              "kl_ref", "correction", "correction_cut")  # fmt: skip

    sums: Tensor

    @classmethod
    def zeros(cls, device: torch.device | str = "cpu") -> LossStats:
        """Return zero counts: the start of a sum, or a process without sequences."""
        return cls(torch.zeros(len(cls.FIELDS), dtype=torch.float64, device=device))

    def __add__(self, other: LossStats) -> LossStats:
        return LossStats(self.sums + other.sums)

    def means(self) -> dict[str, float]:
        """Return counts of `tokens` and `sequences`, the sum `loss`, per-token means of the others.

        clipped_low / clipped_high: share of tokens whose gradient the clip removed (CISPO: whose
        weight it cut), 0 for losses without a clip; kl_old, kl_ref: k3 estimates of KL(old,
        current) and KL(current, reference) in nats; entropy: nats; correction: the mean
        sampler-trainer weight; correction_cut: the share of these weights that was truncated or
        masked.
        """
        values = dict(zip(self.FIELDS, self.sums.tolist(), strict=True))
        totals = {name: values.pop(name) for name in ("tokens", "sequences", "loss")}
        tokens = max(totals["tokens"], 1.0)
        return {**totals, **{name: value / tokens for name, value in values.items()}}


def policy_loss(
    logp: Tensor,
    logp_old: Tensor | None,
    advantages: Tensor,
    lengths: Tensor,
    *,
    loss: str,
    denominator: float,
    options: LossOptions = DEFAULTS,
    logp_ref: Tensor | None = None,
    correction: tuple[Tensor, Tensor] | None = None,
    entropy: Tensor | None = None,
) -> tuple[Tensor, LossStats]:
    """Return the loss of one micro-batch, as its share of the loss of the whole step.

    logp        [M] log-probs of the completion tokens under the current policy, with gradient
    logp_old    [M] the same before the first update; None: this is the first update (ratio 1)
    advantages  [b] one per sequence, shared by its tokens
    lengths     [b] completion tokens of each sequence; they sum to M
    loss        a name that `find_loss` accepts
    denominator of the whole step over all processes (`denominator` above)
    logp_ref    [M] under the reference; required if options.kl_coefficient is not 0
    correction  ([M] weights, [M] which of them were cut) of `correction.correction_weights`; they
                weight the policy terms, not the KL (VESPO includes them in its own weight)
    entropy     [M] for the stats only

    Returns (scalar loss, stats). The gradients of all micro-batches of all processes add up to the
    gradient of the step: do not average over either.
    """
    chosen, num_tokens = find_loss(loss), logp.numel()
    level = options.level or chosen.level
    per_token = spread(advantages.to(logp.dtype), lengths, num_tokens)
    of_tokens = logp - (logp.detach() if logp_old is None else logp_old)
    weights = None if correction is None else correction[0]
    log_ratio = ratio_at_level(
        of_tokens, lengths, level,
        weights.log() if weights is not None and level == "product" else None,
    )  # fmt: skip
    terms = chosen.surrogate(log_ratio, per_token, logp, options)
    if terms.shape != logp.shape:
        raise R1labError(
            f"algorithm.loss: {loss!r} returned terms of shape {tuple(terms.shape)} for "
            f"{num_tokens} tokens; return one term per token"
        )
    if weights is not None and level != "product":
        terms = terms * weights
    if options.kl_coefficient != 0.0:
        if logp_ref is None:
            raise ValueError("logp_ref: a KL term requires the log-probs of a reference")
        kl = k3(logp, logp_ref)
        if options.kl_corrected:
            kl = kl * ratio_at_level(of_tokens, lengths, _kl_level(level)).exp()
        terms = terms + options.kl_coefficient * kl
    if chosen.aggregation == "sequence_mean":
        terms = terms / spread(lengths, lengths, num_tokens)
    total = terms.sum() / denominator
    stats = _stats(
        total, chosen, of_tokens.detach(), log_ratio.detach(), per_token, lengths, options
    )
    return total, stats + _side_stats(logp.detach(), logp_ref, correction, entropy)


def _kl_level(level: RatioLevel) -> RatioLevel:
    """Return the ratio level of the KL correction: a product has no per-token ratio."""
    return "token" if level == "product" else level


@torch.no_grad()
def _stats(
    loss: Tensor,
    chosen: Loss,
    of_tokens: Tensor,
    log_ratio: Tensor,
    advantages: Tensor,
    lengths: Tensor,
    options: LossOptions,
) -> LossStats:
    ratio = log_ratio.exp()
    low = (ratio < 1 - options.clip_low) & (advantages < 0)
    high = (ratio > 1 + options.clip_high) & (advantages > 0)
    if options.ratio_cap is not None:
        high = high | ((ratio > options.ratio_cap) & (advantages < 0))
    has_low = chosen.surrogate is surrogate.clipped
    has_high = has_low or chosen.surrogate is surrogate.weighted
    return _as_stats(
        tokens=loss.new_tensor(of_tokens.numel()),
        sequences=loss.new_tensor(lengths.numel()),
        loss=loss.detach(),
        clipped_low=low.sum() * has_low,
        clipped_high=high.sum() * has_high,
        kl_old=(of_tokens.exp() - 1 - of_tokens).sum(),
    )


@torch.no_grad()
def _side_stats(
    logp: Tensor,
    logp_ref: Tensor | None,
    correction: tuple[Tensor, Tensor] | None,
    entropy: Tensor | None,
) -> LossStats:
    sums: dict[str, Tensor] = {"tokens": logp.new_zeros(())}
    if entropy is not None:
        sums["entropy"] = entropy.sum()
    if logp_ref is not None:
        sums["kl_ref"] = k3(logp, logp_ref).sum()
    if correction is not None:
        sums["correction"], sums["correction_cut"] = correction[0].sum(), correction[1].sum()
    return _as_stats(**sums)


def _as_stats(tokens: Tensor, **sums: Tensor) -> LossStats:
    """Build stats from the given sums; the others are 0."""
    zero = torch.zeros((), dtype=torch.float64, device=tokens.device)
    sums["tokens"] = tokens
    return LossStats(torch.stack([sums.get(name, zero).double() for name in LossStats.FIELDS]))
