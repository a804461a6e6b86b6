"""Expert load, and DeepSeek-V3's balancing without an auxiliary loss (arXiv 2412.19437, eq. 16).

A bias is added to each expert's score, only for the selection of the top k. After an update it is
lowered by `speed` for experts that got more than their share, and raised for the others.
"""

from __future__ import annotations

from typing import Any

import torch


def routers(model: torch.nn.Module) -> list[torch.nn.Module]:
    """Return the gates of all expert layers that select by a corrected score, in order."""
    return [m for m in model.modules() if hasattr(m, "e_score_correction_bias")]


def has_experts(model: torch.nn.Module) -> bool:
    """Return whether a model of any family routes tokens to experts."""
    parts = {part for name, _ in model.named_modules() for part in name.split(".")}
    return not parts.isdisjoint({"experts", "router", "block_sparse_moe"})


class ExpertLoad:
    """Counts the tokens that each expert of each layer gets, while attached.

    Use as a context manager around forward passes. `mask` (set before a forward, [B, T] bool)
    excludes padding from the count.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        self.routers = routers(model)
        self.mask: torch.Tensor | None = None
        self._hooks: list[Any] = []
        self.counts = torch.zeros(len(self.routers), self._num_experts(), dtype=torch.float64)

    def _num_experts(self) -> int:
        return _bias(self.routers[0]).numel() if self.routers else 0

    def __enter__(self) -> ExpertLoad:
        for layer, router in enumerate(self.routers):
            self._hooks.append(router.register_forward_hook(self._count(layer)))
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()

    def _count(self, layer: int) -> Any:
        def hook(_module: torch.nn.Module, _args: Any, output: Any) -> None:
            chosen = output[2]  # [tokens, top_k]
            if self.mask is not None:
                chosen = chosen[self.mask.view(-1)]
            self.counts[layer] += (
                torch.bincount(chosen.reshape(-1), minlength=self.counts.shape[1]).double().cpu()
            )

        return hook

    def take(self) -> torch.Tensor:
        """Return the counts [layers, experts] since the last call."""
        counts, self.counts = self.counts, torch.zeros_like(self.counts)
        return counts


@torch.no_grad()
def update_router_bias(model: torch.nn.Module, counts: torch.Tensor, speed: float) -> None:
    """Move each expert's bias by `speed` towards an even load; counts [layers, experts]."""
    for router, load in zip(routers(model), counts, strict=True):
        direction = torch.sign(load.mean() - load)
        bias = _bias(router)
        bias += speed * direction.to(bias)


def _bias(router: torch.nn.Module) -> torch.Tensor:
    bias = router.e_score_correction_bias
    assert isinstance(bias, torch.Tensor)
    return bias
