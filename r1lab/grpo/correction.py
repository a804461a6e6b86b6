"""Weights for the mismatch between sampler and trainer: one policy computed by two programs.

Tokens are sampled from pi_sampler, and the loss treats them as samples of pi_old. The ratio
c = pi_old / pi_sampler corrects this in expectation; its tail is truncated, or the tokens in the
tail are masked:

    token_truncate     min(c_t, high) at each token (truncated importance sampling, TIS: Yao et al.
                       2025, "Your Efficient RL Framework Secretly Brings You Off-Policy RL
                       Training")
    token_mask         c_t, or 0 outside [low, high] (IcePop: Ling Team, arXiv 2510.18855)
    sequence_truncate  C = prod_t c_t of the sequence, cut at high
    sequence_mask      C, or 0 outside [low, high] (Liu et al. 2025, "When Speed Kills Stability")

Equal to TRL 1.16's `vllm_importance_sampling_mode` of the same names. pi_old comes from the
trainer's own forward: on the first update of a step that is the update's forward itself.
"""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from torch import Tensor

from r1lab.grpo.surrogate import spread, sum_per_sequence

Correction = Literal["token_truncate", "token_mask", "sequence_truncate", "sequence_mask"]


@torch.no_grad()
def correction_weights(
    logp_old: Tensor,
    logp_sampler: Tensor,
    lengths: Tensor,
    kind: Correction,
    *,
    low: float | None = None,
    high: float | None = 2.0,
) -> tuple[Tensor, Tensor]:
    """Return (weights [M], whether each was truncated or masked [M] bool), without gradient.

    logp_old, logp_sampler [M]: natural log-probs of the same sampled tokens; lengths [b] sum to M.
    A token without a sampler log-prob (NaN) has c = 1. `low` and `high` None: no bound.
    """
    if kind not in get_args(Correction):
        raise ValueError(f"correction {kind!r} is not one of {', '.join(get_args(Correction))}")
    gap = torch.nan_to_num(logp_old - logp_sampler, nan=0.0)
    if kind.startswith("sequence"):
        gap = spread(sum_per_sequence(gap, lengths), lengths, len(gap))
    ratio = gap.exp()
    low, high = 0.0 if low is None else low, math.inf if high is None else high
    outside = (ratio < low) | (ratio > high)
    if kind.endswith("truncate"):
        return ratio.clamp(low, high), outside
    return ratio.masked_fill(outside, 0.0), outside
