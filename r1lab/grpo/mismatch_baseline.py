"""Measure the baseline of sampler-trainer mismatch when the first step cannot provide it.

Adapters are zero at the start: the sampler's merged weights equal the base bit for bit, so sampler
and trainer agree better than at any later step. Once the adapters are not zero, merging rounds
base + delta once, while the trainer's forward adds the two unrounded. The baseline of a run with
adapters is therefore measured with small random adapters, before its first step.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from r1lab.grpo.policy import Policy
from r1lab.model.shard import fitted
from r1lab.rollout.source import RolloutSource

# Scale of the entries of B at any rank: about what AdamW adds in some tens of updates. The exact
# value does not matter: any change that is not lost in rounding makes the weights round alike.
SIZE = 0.01


@contextmanager
def perturbed_adapters(model: nn.Module, seed: int) -> Iterator[None]:
    """Add noise to the adapters (`B` of B A) for the context, and restore them exactly."""
    adapters = [p for name, p in model.named_parameters() if ".lora_B." in name]
    own = [p.detach().clone() for p in adapters]
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in adapters:
            noise = SIZE * torch.randn(parameter.shape, generator=draw)
            parameter.add_(fitted(noise, parameter).to(parameter.dtype))
    try:
        yield
    finally:
        with torch.no_grad():
            for parameter, value in zip(adapters, own, strict=True):
                parameter.copy_(value)


def measure_mismatch_baseline(policy: Policy, source: RolloutSource, seed: int) -> None:
    """Measure the guard's baseline with random adapters; the policy and the stream are unchanged.

    Does nothing if a baseline or a bound is already set. Leaves the policy's weights with the
    sampler. Raises RunStopped if sampler and trainer do not agree at all.
    """
    if source.guard.floor is not None or source.guard.max_kl is not None:
        return
    with perturbed_adapters(policy.model, seed):
        source.sync(policy)
        kl, num_tokens = policy.sampler_mismatch(source.probe())
        source.guard.check(kl, num_tokens, policy.version)
    source.sync(policy)
