"""The floor of sampler-trainer agreement, where it cannot be measured on the first step.

Adapters are zero at the start: the sampler's merged weights are the base's, bit for bit, and the
two agree better than they ever will again. Once the adapters are not zero, merging rounds base +
delta once where the trainer's forward adds the two unrounded. So the floor of a run with adapters
is measured with small random ones in their place, before its first step.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from r1lab.grpo.policy import Policy
from r1lab.model.shard import fitted
from r1lab.rollout.source import RolloutSource

# Of the entries of B, whatever the rank: what AdamW moves them by in some tens of updates. How
# large is of no matter, as the weights round alike under any change that is not lost in rounding.
SIZE = 0.01


@contextmanager
def perturbed_adapters(model: nn.Module, seed: int) -> Iterator[None]:
    """The model with random adapters (`B` of B A) while inside, and exactly its own again after."""
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
    """Measure the guard's floor under random adapters; the policy and the stream stay as they were.

    Does nothing where there is a floor or a bound already. Leaves the policy's weights with the
    sampler. Raises RunStopped where the two do not agree at all.
    """
    if source.guard.floor is not None or source.guard.max_kl is not None:
        return
    with perturbed_adapters(policy.model, seed):
        source.sync(policy)
        kl, num_tokens = policy.sampler_mismatch(source.probe())
        source.guard.check(kl, num_tokens, policy.version)
    source.sync(policy)
