"""Sharded weights: each process keeps its rows of every weight and of its moments.

This is FSDP2, torch's `fully_shard` (arXiv 2304.11277; the memory of ZeRO-3, arXiv 1910.02054): a
layer is gathered just before it computes and freed afterwards, and its gradient is summed directly
into the shards. torch is called directly: accelerate's own wrapping averages gradients, and on the
CPU it silently falls back to unsharded weights.

Gathering is a collective: code that runs a forward pass, or needs whole weights, must run in every
process, the same number of times and in the same order. Only this module uses DTensor.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import (
    FSDPModule,
    MixedPrecisionPolicy,
    fully_shard,
    register_fsdp_forward_method,
)
from torch.distributed.tensor import DTensor, Shard
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

Function = TypeVar("Function", bound=Callable[..., Any])

_PART = "part of a sharded tensor"  # the only key of the dict that represents it in a checkpoint


def shard(base: Any, device: torch.device) -> None:
    """Shard the weights of a transformers model (with or without adapters) over all processes.

    In place, one decoder layer at a time, each moved to `device` as it is sharded: no device ever
    holds the whole model. Gradients are summed over processes, in float32, not averaged: the loss's
    denominator already covers all of them. Buffers are not sharded.
    """
    # Inputs keep their precision, as they do unsharded.
    precision = MixedPrecisionPolicy(reduce_dtype=torch.float32, cast_forward_inputs=False)
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    layers = set(base._no_split_modules or ())
    # The model itself comes last: it owns what the layers do not, embeddings and head.
    for module in [*(m for m in base.modules() if type(m).__name__ in layers), base]:
        # True, not None: None keeps the model's own group gathered after a forward pass without
        # backward, and the next pass would then compute with weights from before the update.
        fully_shard(module, mesh=mesh, mp_policy=precision, reshard_after_forward=True)
        module.set_gradient_divide_factor(1.0)
        module.set_force_sum_reduction_for_comms(True)  # the only reduction that gloo supports


def is_sharded(base: nn.Module) -> bool:
    """Return whether `shard` was applied to this model."""
    return isinstance(base, FSDPModule)


def class_of(model: nn.Module) -> type:
    """Return the model's class; sharding puts a generated class before it."""
    kinds = type(model).__mro__
    return kinds[kinds.index(FSDPModule) + 1] if FSDPModule in kinds else kinds[0]


def as_forward(base: nn.Module, function: Function) -> Function:
    """Wrap `function`, which returns tensors, as a forward pass of `base` with gathered weights.

    For callers that use parts of a model. Returns the function itself if nothing is sharded.
    """
    if not is_sharded(base):
        return function

    def copied(*inputs: Any) -> tuple[Tensor, ...]:
        # Backward starts from hooks on the outputs, which do not work on views.
        return tuple(tensor.clone() for tensor in function(*inputs))

    base.part_of_forward = copied  # type: ignore[assignment]
    register_fsdp_forward_method(base, "part_of_forward")
    return base.part_of_forward  # type: ignore[return-value]


def units(base: nn.Module) -> list[tuple[str, nn.Module]]:
    """Return (name, module) of each unit gathered together; the model itself, "", is last."""
    sharded = [pair for pair in base.named_modules() if isinstance(pair[1], FSDPModule)]
    return [*sharded[1:], sharded[0]]


@contextmanager
def gathered(unit: nn.Module) -> Iterator[None]:
    """Gather the weights of one of `units` as plain tensors in the context. Copy what must stay."""
    assert isinstance(unit, FSDPModule)
    unit.unshard()
    try:
        yield
    finally:
        unit.reshard()


def whole(tensor: Tensor) -> Tensor:
    """Return a sharded tensor gathered; any other unchanged."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


# --- checkpoints -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Parts:
    """A tensor as consecutive rows, split as by the processes that saved it."""

    tensors: tuple[Tensor, ...]

    def rows(self, first: int, last: int) -> Tensor:
        """Return the rows from `first` up to `last`; no others are read."""
        pieces, start = [], 0
        for tensor in self.tensors:
            stop = start + len(tensor)
            pieces.append(tensor[max(first, start) - start : max(min(last, stop) - start, 0)])
            start = stop
        return torch.cat(pieces)


def parts_of(state: Any) -> Any:
    """Return a state with this process's part instead of each sharded tensor: plain containers."""
    if isinstance(state, DTensor):
        return {_PART: state.to_local()}
    if isinstance(state, Mapping):
        return {key: parts_of(value) for key, value in state.items()}
    if isinstance(state, list | tuple):
        return type(state)(parts_of(value) for value in state)
    return state


def joined(states: Sequence[Any]) -> Any:
    """Combine all processes' `parts_of` into one state, with `Parts` for sharded tensors."""
    first = states[0]
    if isinstance(first, Mapping):
        if first.keys() == {_PART}:
            return Parts(tuple(state[_PART] for state in states))
        return {key: joined([state[key] for state in states]) for key in first}
    if isinstance(first, list | tuple):
        return type(first)(joined(values) for values in zip(*states, strict=True))
    return first


def fitted(saved: Tensor | Parts, like: Tensor) -> Tensor:
    """Return a saved tensor in the layout of `like`: if sharded, this process's rows."""
    parts = saved if isinstance(saved, Parts) else Parts((saved,))
    if not isinstance(like, DTensor):
        return torch.cat(parts.tensors) if isinstance(saved, Parts) else saved
    mesh, placements = like.device_mesh, like.placements
    assert placements == (Shard(0),)
    shape, offset = compute_local_shape_and_global_offset(like.shape, mesh, placements)
    own = parts.rows(offset[0], offset[0] + shape[0]).to(like.to_local())
    return DTensor.from_local(
        own, mesh, placements, run_check=False, shape=like.shape, stride=like.stride()
    )
