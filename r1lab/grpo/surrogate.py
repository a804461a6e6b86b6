"""Per-token loss terms before any averaging: one function for each family.

Every function takes flat tensors over the M completion tokens of a micro-batch and returns [M]
terms to be minimised. The ratio w = pi / pi_old is passed as its logarithm, at the level that the
loss requires (`ratio_at_level`):

    token     w_t = pi(o_t) / pi_old(o_t), as in PPO and GRPO (arXiv 2402.03300, eq. 3)
    sequence  s = (prod_t w_t)^(1/|o|), the same for all tokens of a sequence (GSPO, 2507.18071,
              eq. 7). With one advantage per sequence its gradient is that of GSPO-token (eq. 13)
    product   W = prod_t w_t, the weight of the whole sequence, without gradient (VESPO, 2602.10693)

Legend in addition to that of r1lab.types: b sequences of a micro-batch, M completion tokens in it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

RatioLevel = Literal["token", "sequence", "product"]

# Bounds of VESPO's log-weights, as in the authors' code.
_MAX_LOG, _MIN_LOG = 20.0, math.log(1e-8)


@dataclass(frozen=True, slots=True)
class LossOptions:
    """Coefficients of the losses; each family reads its own.

    clip_low, clip_high   the ratio is clipped to [1 - clip_low, 1 + clip_high] (clip_high alone:
                          CISPO). Different values: DAPO's clip-higher (2503.14476, eq. 10)
    ratio_cap             two-sided clip (INTELLECT-2, 2505.07291, eq. 3): upper bound of the ratio
                          of a token with a negative advantage; None: no bound
    level                 level of the ratio; None: that of the loss
    kl_coefficient        beta of the KL term
    kl_corrected          multiply the KL term by the ratio: the unbiased estimate of DeepSeek-V3.2
                          (2512.02556)
    sapo_temperatures     (tau of positive, tau of other advantages): SAPO, 2511.20347
    vespo_positive        (k, lambda) of VESPO's weight for advantages >= 0
    vespo_negative        (k, lambda) for advantages < 0
    """

    clip_low: float = 0.2
    clip_high: float = 0.2
    ratio_cap: float | None = None
    level: RatioLevel | None = None
    kl_coefficient: float = 0.0
    kl_corrected: bool = False
    sapo_temperatures: tuple[float, float] = (1.0, 1.05)
    vespo_positive: tuple[float, float] = (2.0, 3.0)
    vespo_negative: tuple[float, float] = (3.0, 2.0)


DEFAULTS = LossOptions()

# (log_ratio [M], advantages [M], logp [M], options) -> terms [M]
Surrogate = Callable[[Tensor, Tensor, Tensor, LossOptions], Tensor]


def clipped(log_ratio: Tensor, advantages: Tensor, logp: Tensor, options: LossOptions) -> Tensor:
    """-min(w A, clip(w, 1 - clip_low, 1 + clip_high) A): PPO's objective as GRPO uses it.

    DeepSeekMath, arXiv 2402.03300, eq. 3; at sequence level GSPO, 2507.18071, eq. 5.
    """
    ratio = log_ratio.exp()
    within = ratio.clamp(1 - options.clip_low, 1 + options.clip_high)
    if options.ratio_cap is not None:
        ratio = ratio.clamp(max=options.ratio_cap)
    return -torch.minimum(ratio * advantages, within * advantages)


def weighted(log_ratio: Tensor, advantages: Tensor, logp: Tensor, options: LossOptions) -> Tensor:
    """-sg[min(w, 1 + clip_high)] A log pi: every token keeps a gradient (CISPO).

    MiniMax-M1, arXiv 2506.13585, eq. 4 and 5, without a lower bound, as its authors ran it.
    """
    weight = log_ratio.exp().clamp(max=1 + options.clip_high).detach()
    return -weight * advantages * logp


def gated(log_ratio: Tensor, advantages: Tensor, logp: Tensor, options: LossOptions) -> Tensor:
    """-(4 / tau) sigmoid(tau (w - 1)) A: a soft gate instead of the clip (SAPO).

    arXiv 2511.20347, eq. 5 and 6; tau depends on the sign of A.
    """
    tau = _either(advantages > 0, *options.sapo_temperatures, like=log_ratio)
    return -4 / tau * torch.sigmoid(tau * (log_ratio.exp() - 1)) * advantages


def reshaped(log_ratio: Tensor, advantages: Tensor, logp: Tensor, options: LossOptions) -> Tensor:
    """-sg[phi(W)] A log pi, phi(W) = e^lambda W^k e^(-lambda W), so that phi(1) = 1 (VESPO).

    arXiv 2602.10693; `log_ratio` at level `product`, (k, lambda) by the sign of A.
    """
    (k_up, lambda_up), (k_down, lambda_down) = options.vespo_positive, options.vespo_negative
    k = _either(advantages >= 0, k_up, k_down, like=log_ratio)
    decay = _either(advantages >= 0, lambda_up, lambda_down, like=log_ratio)
    log_phi = decay + k * log_ratio - decay * log_ratio.exp()
    return -log_phi.exp().detach() * advantages * logp


def _either(condition: Tensor, yes: float, no: float, *, like: Tensor) -> Tensor:
    return torch.where(condition, like.new_tensor(yes), like.new_tensor(no))


def ratio_at_level(
    log_ratio: Tensor, lengths: Tensor, level: RatioLevel, log_correction: Tensor | None = None
) -> Tensor:
    """Convert the log-ratio [M] of tokens to that of a level, again [M].

    lengths [b] sum to M. `log_correction` [M], the logarithm of the sampler-trainer weights, is
    used only by the product (the weight is then that of the policy relative to the sampler).
    """
    if level == "token":
        return log_ratio
    if level == "sequence":
        return spread(sum_per_sequence(log_ratio, lengths) / lengths, lengths, len(log_ratio))
    total = sum_per_sequence(log_ratio.detach().clamp(-_MAX_LOG, _MAX_LOG), lengths)
    if log_correction is not None:
        total = total + sum_per_sequence(log_correction.clamp(_MIN_LOG, _MAX_LOG), lengths)
    return spread(total.clamp(_MIN_LOG, _MAX_LOG), lengths, len(log_ratio))


def k3(logp: Tensor, logp_ref: Tensor) -> Tensor:
    """pi_ref / pi - log(pi_ref / pi) - 1 per token, [M]: an estimate of KL(pi, pi_ref), >= 0.

    Schulman 2020; GRPO's KL term (2402.03300, eq. 4; 2501.12948, eq. 2).
    """
    gap = logp_ref - logp
    return torch.expm1(gap) - gap


def spread(values: Tensor, lengths: Tensor, num_tokens: int) -> Tensor:
    """[b] -> [M]: each sequence's value at each of its tokens, without a device synchronisation."""
    return values.repeat_interleave(lengths, output_size=num_tokens)


def sum_per_sequence(values: Tensor, lengths: Tensor) -> Tensor:
    """[M] -> [b]: the sum over the tokens of each sequence."""
    rows = spread(torch.arange(len(lengths), device=lengths.device), lengths, len(values))
    return values.new_zeros(len(lengths)).index_add(0, rows, values)
