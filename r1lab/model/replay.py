"""Router replay: route tokens to the experts that they went through before.

Routing is a discrete choice that rounding differences can flip, between sampler and trainer and
between the old policy and the current one. The ratio of a token whose experts changed is far from 1
for a reason that training should not follow. Replay fixes the choice; the gate weights of the
chosen experts, and their gradient, are the current ones:

    R3  the sampler's choices   (arXiv 2510.11370)
    R2  the trainer's own, from the forward of the old log-probs (GSPO, 2507.18071, 5.3)

Layers are numbered from 0 over those with routed experts: V3's first dense layers have no gate.
`routed_layers` translates from a sampler that numbers all layers of the model.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from r1lab.model.balance import routers
from r1lab.types import RecipeError


def routed_layers(config: Any) -> list[int]:
    """Return the indices of the layers with routed experts among all layers of a V3-style model."""
    return list(range(config.first_k_dense_replace, config.num_hidden_layers))


def require_routers(model: nn.Module) -> None:
    """Reject a model without V3's routers; raises RecipeError."""
    if not routers(model):
        raise RecipeError(
            "algorithm.router_bias_speed, algorithm.router_replay: "
            f"{type(model).__name__} has no router as in DeepSeek-V3; leave them at 0 and none"
        )


class RouterReplay:
    """Records the choices of a model's routers, or fixes them.

    Shapes: [b, t, layers, top_k], the layers in the order of `routers(model)`.
    """

    def __init__(self, model: nn.Module) -> None:
        self._routers = routers(model)
        self.num_layers = len(self._routers)

    @contextmanager
    def recorded(self) -> Iterator[list[Tensor]]:
        """Yield a list that receives each layer's chosen experts [b * t, top_k] in a forward."""
        chosen: list[Tensor] = []
        hooks = [
            router.register_forward_hook(lambda module, inputs, output: chosen.append(output[2]))
            for router in self._routers
        ]
        try:
            yield chosen
        finally:
            for hook in hooks:
                hook.remove()

    @contextmanager
    def replayed(self, experts: Tensor | None) -> Iterator[None]:
        """Route forward passes in the context by `experts` [b, t, layers, top_k]; None: normally.

        -1 anywhere in a token's choice of a layer leaves that choice to the router.
        """
        hooks = []
        if experts is not None:
            flat = experts.flatten(0, 1)  # [b * t, layers, top_k]
            hooks = [
                router.register_forward_hook(_prescribe(flat[:, layer]))
                for layer, router in enumerate(self._routers)
            ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()


def _prescribe(experts: Tensor) -> Any:
    """Return a hook that replaces a gate's choice and weights by `experts` [tokens, top_k]."""

    def hook(gate: Any, _inputs: Any, output: tuple[Tensor, Tensor, Tensor]) -> Any:
        logits, own_weights, own = output
        given = (experts >= 0).all(-1, keepdim=True)
        chosen = torch.where(given, experts.to(own), own)
        # Weights as in DeepseekV3TopkRouter: the router bias affects selection, not the weights.
        weights = logits.sigmoid().gather(1, chosen)
        if gate.norm_topk_prob:
            weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
        weights = (weights * gate.routed_scaling_factor).to(own_weights.dtype)
        return logits, torch.where(given, weights, own_weights), chosen

    return hook
