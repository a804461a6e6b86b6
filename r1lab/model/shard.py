"""Weights in shards: each of several processes keeps its rows of every weight, and of its moments.

This is FSDP2, torch's `fully_shard` (arXiv 2304.11277; the memory of ZeRO-3, arXiv 1910.02054): a
layer is gathered whole just before it computes and given up after, and its gradient is summed
straight into the shards. torch is called directly: accelerate's own wrapping averages gradients,
and on the CPU it falls back to unsharded weights without a word.

Gathering takes all processes: whatever runs a forward pass, or asks for whole weights, must run in
each of them, the same number of times and in the same order. This module alone knows of DTensor.
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

_PART = "part of a sharded tensor"  # the one key of a dict that stands for it in a checkpoint


def shard(base: Any, device: torch.device) -> None:
    """Part the weights of a transformers model (adapters inside it or not) over all processes.

    In place, a decoder layer at a time, each moved to `device` as it is parted: no device ever
    holds the whole model. Gradients are summed over processes, in float32, not averaged: the
    loss's denominator is of all of them already. Buffers stay whole.
    """
    # Inputs keep their precision, as they do unsharded.
    precision = MixedPrecisionPolicy(reduce_dtype=torch.float32, cast_forward_inputs=False)
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    layers = set(base._no_split_modules or ())
    # The model itself comes last: it takes what the layers leave, embeddings and head.
    for module in [*(m for m in base.modules() if type(m).__name__ in layers), base]:
        # True, not None: None keeps the model's own group gathered after a forward pass without
        # backward, and the next pass would then compute with weights from before the update.
        fully_shard(module, mesh=mesh, mp_policy=precision, reshard_after_forward=True)
        module.set_gradient_divide_factor(1.0)
        module.set_force_sum_reduction_for_comms(True)  # gloo knows no other


def is_sharded(base: nn.Module) -> bool:
    """Whether `shard` was at this model."""
    return isinstance(base, FSDPModule)


def class_of(model: nn.Module) -> type:
    """The model's class; sharding puts one of its own, made up, before it."""
    kinds = type(model).__mro__
    return kinds[kinds.index(FSDPModule) + 1] if FSDPModule in kinds else kinds[0]


def as_forward(base: nn.Module, function: Function) -> Function:
    """`function`, to tensors, as a forward pass of `base`: inside it all that it asks for is whole.

    For who calls parts of a model by themselves. The function itself where nothing is sharded.
    """
    if not is_sharded(base):
        return function

    def copied(*inputs: Any) -> tuple[Tensor, ...]:
        # Backward starts from hooks on what comes out, which hold for no view.
        return tuple(tensor.clone() for tensor in function(*inputs))

    base.part_of_forward = copied  # type: ignore[assignment]
    register_fsdp_forward_method(base, "part_of_forward")
    return base.part_of_forward  # type: ignore[return-value]


def units(base: nn.Module) -> list[tuple[str, nn.Module]]:
    """(name, module) of what is gathered together; the model itself, named "", last."""
    found = [pair for pair in base.named_modules() if isinstance(pair[1], FSDPModule)]
    return [*found[1:], found[0]]


@contextmanager
def gathered(unit: nn.Module) -> Iterator[None]:
    """The weights of one of `units` whole and plain, while inside. Copy what is to stay."""
    assert isinstance(unit, FSDPModule)
    unit.unshard()
    try:
        yield
    finally:
        unit.reshard()


def whole(tensor: Tensor) -> Tensor:
    """A sharded tensor gathered; any other as it is."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


# --- checkpoints -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Parts:
    """A tensor in consecutive rows, as the processes that saved it had them."""

    tensors: tuple[Tensor, ...]

    def rows(self, first: int, last: int) -> Tensor:
        """The rows from `first` up to `last`; no others are read."""
        found, start = [], 0
        for tensor in self.tensors:
            stop = start + len(tensor)
            found.append(tensor[max(first, start) - start : max(min(last, stop) - start, 0)])
            start = stop
        return torch.cat(found)


def parts_of(state: Any) -> Any:
    """A state with this process's part in the place of each sharded tensor: plain containers."""
    if isinstance(state, DTensor):
        return {_PART: state.to_local()}
    if isinstance(state, Mapping):
        return {key: parts_of(value) for key, value in state.items()}
    if isinstance(state, list | tuple):
        return type(state)(parts_of(value) for value in state)
    return state


def joined(states: Sequence[Any]) -> Any:
    """The state that all processes' `parts_of` give together, with `Parts` for sharded tensors."""
    first = states[0]
    if isinstance(first, Mapping):
        if first.keys() == {_PART}:
            return Parts(tuple(state[_PART] for state in states))
        return {key: joined([state[key] for state in states]) for key in first}
    if isinstance(first, list | tuple):
        return type(first)(joined(values) for values in zip(*states, strict=True))
    return first


def fitted(saved: Tensor | Parts, like: Tensor) -> Tensor:
    """A saved tensor as `like` lies: this process's rows of it where that is sharded."""
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
