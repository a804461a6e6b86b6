"""The reference of the KL term: a frozen copy of what training changes in a model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from r1lab.model.shard import fitted
from r1lab.model.weights import ROUTER_BIAS


class ReferencePolicy:
    """The trained weights of `model` as they were when this was made, or last refreshed.

    Full weights: a copy of all of them. Adapters: a copy of these alone; fresh ones add nothing, so
    that the first reference is the base. The router bias is held too, as an option moves it. Costs
    as much memory as the trained weights, and no second model: a forward pass under the reference
    is one of the model itself with the copies in its weights' place. Of sharded weights it holds
    the same rows.
    """

    def __init__(self, model: nn.Module) -> None:
        biases = [buffer for name, buffer in model.named_buffers() if name.endswith(ROUTER_BIAS)]
        self._own: list[Tensor] = [p for p in model.parameters() if p.requires_grad] + biases
        self._copies = [tensor.detach().clone() for tensor in self._own]

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The model computes as the reference, while inside; nothing of it may be updated there."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    @torch.no_grad()
    def _exchange(self) -> None:
        """Values for values: sharded weights are gathered from memory that stays where it is."""
        for tensor, copy in zip(self._own, self._copies, strict=True):
            held = tensor.detach().clone()
            tensor.copy_(copy)
            copy.copy_(held)

    @torch.no_grad()
    def refresh(self) -> None:
        """Become the model as it is now."""
        for tensor, copy in zip(self._own, self._copies, strict=True):
            copy.copy_(tensor)

    def state_dict(self) -> dict[str, Any]:
        """The copies, in the order of the model."""
        return {"copies": self._copies}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up a saved state."""
        for copy, saved in zip(self._copies, state["copies"], strict=True):
            copy.copy_(fitted(saved, copy))
