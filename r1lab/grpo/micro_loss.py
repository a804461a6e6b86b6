"""The loss of a micro-batch under a recipe: which log-probs are old, which weights apply.

The functions of `loss`, `surrogate` and `correction` know neither settings nor batches; this module
connects them.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from r1lab.config.recipe import AlgorithmSettings
from r1lab.grpo.batch import MicroBatch
from r1lab.grpo.correction import correction_weights
from r1lab.grpo.loss import LossStats, policy_loss
from r1lab.grpo.surrogate import LossOptions, spread
from r1lab.rollout.agreement import k3_sum


def micro_loss(
    micro: MicroBatch, logp: Tensor, entropy: Tensor, algorithm: AlgorithmSettings
) -> tuple[Tensor, LossStats]:
    """Return `policy_loss` of a micro-batch; logp and entropy [M] are the current policy's."""
    logp_old = old_logprobs(micro, logp, corrected=algorithm.correction != "none")
    return policy_loss(
        logp, logp_old, micro.advantages, micro.completion_lens,
        loss=algorithm.loss, denominator=micro.denominator, options=loss_options(algorithm),
        logp_ref=micro.logp_ref, correction=_correction(micro, logp_old, algorithm),
        entropy=entropy,
    )  # fmt: skip


def loss_options(algorithm: AlgorithmSettings) -> LossOptions:
    """Return the loss coefficients of a recipe."""
    sapo, vespo = algorithm.sapo, algorithm.vespo
    return LossOptions(
        clip_low=algorithm.clip_low,
        clip_high=algorithm.clip_high,
        ratio_cap=algorithm.ratio_cap,
        level=algorithm.importance_level,
        kl_coefficient=algorithm.kl_coefficient,
        kl_corrected=algorithm.kl_corrected,
        sapo_temperatures=(sapo.temperature_positive, sapo.temperature_negative),
        vespo_positive=(vespo.k_positive, vespo.lambda_positive),
        vespo_negative=(vespo.k_negative, vespo.lambda_negative),
    )


def old_logprobs(micro: MicroBatch, logp: Tensor, *, corrected: bool = False) -> Tensor:
    """Return log-probs [M] under the weights that the step began with, for the ratio.

    On the first update they are `logp` itself, on later ones the stored values. Sequences sampled
    under earlier weights use the sampler's log-probs instead, so that the ratio covers the whole
    difference and the clip bounds it. With a correction (`corrected`) they do not: it already
    weights the difference from the sampler to the start of the step, and the ratio covers the rest
    (the decoupled objective of Hilton et al., arXiv 2110.00641, and AReaL, arXiv 2505.24298).
    """
    old = logp.detach() if micro.logp_old is None else micro.logp_old
    if micro.logp_sampler is None or corrected:
        return old
    stale = spread(micro.stale, micro.completion_lens, logp.numel())
    return torch.where(stale, micro.logp_sampler, old)


def _correction(
    micro: MicroBatch, logp_old: Tensor, algorithm: AlgorithmSettings
) -> tuple[Tensor, Tensor] | None:
    if algorithm.correction == "none" or micro.logp_sampler is None:
        return None
    return correction_weights(
        logp_old, micro.logp_sampler, micro.completion_lens, algorithm.correction,
        low=algorithm.correction_low, high=algorithm.correction_high,
    )  # fmt: skip


def sampler_gap_sums(micro: MicroBatch, logp: Tensor) -> Tensor:
    """Return [k3 with capped shares, k3, tokens] of sequences sampled under the current weights.

    logp [M] is the trainer's; see `r1lab.rollout.agreement`. Zeros without sampler log-probs.
    """
    if micro.logp_sampler is None:
        return torch.zeros(3, dtype=torch.float64, device=logp.device)
    fresh = ~spread(micro.stale, micro.completion_lens, logp.numel())
    # A stale token is compared with itself: it adds nothing, and is not counted.
    sampler = torch.where(fresh, micro.logp_sampler, logp.detach().float())
    capped, _ = k3_sum(sampler, logp)
    plain, _ = k3_sum(sampler, logp, cap=math.inf)
    return torch.stack([capped, plain, fresh.sum().double()])
