"""The reference of the KL term: a frozen copy of the trained weights of a model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from r1lab.model.shard import fitted
from r1lab.model.weights import ROUTER_BIAS


class ReferencePolicy:
    """The trained weights of `model` at construction, or at the last refresh.

    Full weights: a copy of all of them. Adapters: a copy of the adapters only; new ones add
    nothing, so the first reference is the base. The router bias is copied too, since an option
    changes it. The reference takes as much memory as the trained weights but no second model: its
    forward pass runs the model itself with the copies swapped in. For sharded weights it holds the
    same rows.
    """

    def __init__(self, model: nn.Module) -> None:
        biases = [buffer for name, buffer in model.named_buffers() if name.endswith(ROUTER_BIAS)]
        self._own: list[Tensor] = [p for p in model.parameters() if p.requires_grad] + biases
        self._copies = [tensor.detach().clone() for tensor in self._own]

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Swap the reference weights in for the context; do not update the model inside it."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    @torch.no_grad()
    def _exchange(self) -> None:
        """Swap by value: sharded weights are gathered from memory whose address must not change."""
        for tensor, copy in zip(self._own, self._copies, strict=True):
            held = tensor.detach().clone()
            tensor.copy_(copy)
            copy.copy_(held)

    @torch.no_grad()
    def refresh(self) -> None:
        """Copy the current weights of the model."""
        for tensor, copy in zip(self._own, self._copies, strict=True):
            copy.copy_(tensor)

    def state_dict(self) -> dict[str, Any]:
        """Return the copies, in the order of the model."""
        return {"copies": self._copies}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a saved state."""
        for copy, saved in zip(self._copies, state["copies"], strict=True):
            copy.copy_(fitted(saved, copy))
