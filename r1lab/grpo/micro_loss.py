"""The loss of a micro-batch under a recipe: which log-probs are old, which weights apply.

The functions of `loss`, `surrogate` and `correction` know no settings and no batch; this is where
they meet.
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
    """`policy_loss` of a micro-batch; logp and entropy [M] as the current policy has them."""
    logp_old = old_logprobs(micro, logp, corrected=algorithm.correction != "none")
    return policy_loss(
        logp, logp_old, micro.advantages, micro.completion_lens,
        loss=algorithm.loss, denominator=micro.denominator, options=loss_options(algorithm),
        logp_ref=micro.logp_ref, correction=_correction(micro, logp_old, algorithm),
        entropy=entropy,
    )  # fmt: skip


def loss_options(algorithm: AlgorithmSettings) -> LossOptions:
    """The numbers of a recipe's loss."""
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
    """[M]: under the weights that the step began with, as the ratio wants it.

    That is `logp` itself on the first update, what was remembered on later ones. Sequences that
    were drawn under earlier weights have the sampler's in its place, so that the ratio goes all the
    way and the clip bounds it; not so where a correction is on (`corrected`): it weighs the way
    from the sampler to the step's beginning by itself, and the ratio goes from there (the decoupled
    objective of Hilton et al., arXiv 2110.00641, and AReaL, arXiv 2505.24298).
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
    """[k3 with capped shares, k3, tokens] of the sequences drawn under the current weights.

    logp [M] is the trainer's; see `r1lab.rollout.agreement`. Zeros where the sampler gave none.
    """
    if micro.logp_sampler is None:
        return torch.zeros(3, dtype=torch.float64, device=logp.device)
    fresh = ~spread(micro.stale, micro.completion_lens, logp.numel())
    # A stale token is held against itself: it adds nothing, and is not counted.
    sampler = torch.where(fresh, micro.logp_sampler, logp.detach().float())
    capped, _ = k3_sum(sampler, logp)
    plain, _ = k3_sum(sampler, logp, cap=math.inf)
    return torch.stack([capped, plain, fresh.sum().double()])
