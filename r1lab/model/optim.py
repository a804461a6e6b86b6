"""AdamW over a float32 copy of working weights, with gradients accumulated in float32.

bf16 keeps eight bits: an update of 1e-3 of a weight is rounded away, and a gradient summed over
micro-batches in bf16 loses its small terms. So the optimizer owns a float32 master of each trained
parameter, each micro-batch's gradient is added to the master's, and the working weight is the
master rounded once. With float32 working weights the master is the parameter itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

from r1lab.model.shard import fitted, whole


class MasterAdamW:
    """AdamW (arXiv 1711.05101) on float32 masters of `parameters`.

    Call `zero_grad` before the first backward of an update, then `step`. With several processes,
    the caller sums `gradients()` over them, in place, before the step. With sharded weights
    (`r1lab.model.shard`) each process holds its rows of masters and moments, and of the gradient,
    which is summed in the backward pass.
    """

    def __init__(
        self,
        parameters: Sequence[torch.nn.Parameter],
        *,
        learning_rate: float,
        betas: tuple[float, float],
        epsilon: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        self.parameters = [p for p in parameters if p.requires_grad]
        if not self.parameters:
            raise ValueError("no parameter requires a gradient")
        self.masters = [
            p if p.dtype == torch.float32 else p.detach().float().clone().requires_grad_()
            for p in self.parameters
        ]
        # Norm weights and other vectors get no weight decay, as usual.
        matrices = [m for m in self.masters if m.ndim >= 2]
        vectors = [m for m in self.masters if m.ndim < 2]
        groups = [
            {"params": matrices, "weight_decay": weight_decay},
            {"params": vectors, "weight_decay": 0.0},
        ]
        self.adamw = torch.optim.AdamW(
            [g for g in groups if g["params"]], lr=learning_rate, betas=betas, eps=epsilon,
            fused=True,
        )  # fmt: skip
        for parameter, master in zip(self.parameters, self.masters, strict=True):
            if parameter is not master:
                parameter.register_post_accumulate_grad_hook(_move_gradient_to(master))

    def zero_grad(self) -> None:
        """Reset all gradients."""
        for tensor in (*self.parameters, *self.masters):
            tensor.grad = None

    def gradients(self) -> list[torch.Tensor]:
        """Return the float32 gradients in a fixed order; zeros for unused parameters."""
        for master in self.masters:
            if master.grad is None:
                master.grad = torch.zeros_like(master)
        return [master.grad for master in self.masters if master.grad is not None]

    def gradient_norm(self) -> float:
        """Return the norm of all gradients together."""
        return float(whole(torch.nn.utils.get_total_norm(self.gradients())))

    def step(self, learning_rate: float, max_grad_norm: float, norm: float | None = None) -> float:
        """Clip, update, round into the working weights; return the norm before clipping.

        `norm` is `gradient_norm()` if the caller already has it. It must be finite: one update with
        a non-finite gradient would permanently corrupt all weights and both moments.
        """
        norm = self.gradient_norm() if norm is None else norm
        for group in self.adamw.param_groups:
            group["lr"] = learning_rate
        torch.nn.utils.clip_grads_with_norm_(self.masters, max_grad_norm, torch.tensor(norm))
        self.adamw.step()
        self.write_working_weights()
        return norm

    @torch.no_grad()
    def write_working_weights(self) -> None:
        """Round the masters into the working weights."""
        for parameter, master in zip(self.parameters, self.masters, strict=True):
            if parameter is not master:
                parameter.copy_(master)

    def state_dict(self) -> dict[str, Any]:
        """Return masters and moments, which determine the next update."""
        return {
            "adamw": self.adamw.state_dict(),
            "masters": [master.detach() for master in self.masters],
        }

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a saved state; the working weights are rounded from its masters."""
        # Moments are in the order of the parameter groups, not of the masters.
        counted = [master for group in self.adamw.param_groups for master in group["params"]]
        moments = {
            index: {
                name: value if name == "step" else fitted(value, counted[index])
                for name, value in of_master.items()
            }
            for index, of_master in state["adamw"]["state"].items()
        }
        self.adamw.load_state_dict({**state["adamw"], "state": moments})
        for master, saved in zip(self.masters, state["masters"], strict=True):
            master.copy_(fitted(saved, master))
        self.write_working_weights()


def _move_gradient_to(master: torch.Tensor) -> Callable[[torch.Tensor], None]:
    def move(parameter: torch.Tensor) -> None:
        assert parameter.grad is not None
        if master.grad is None:
            master.grad = parameter.grad.float()
        else:
            master.grad.add_(parameter.grad)
        parameter.grad = None

    return move


def learning_rate_at(
    step: int,
    progress: float,
    *,
    peak: float,
    schedule: str,
    warmup_steps: int,
    final_fraction: float,
    flat_until: float = 0.0,
) -> float:
    """Return the learning rate of an update: linear warm-up, then the schedule down to its end.

    `step` counts updates from 0; `progress` is the completed share of the run, 0 to 1. `flat_until`
    keeps the peak for that share of the run before the decay begins.
    """
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    if schedule == "constant":
        return peak
    decayed = min(max((progress - flat_until) / (1 - flat_until), 0.0), 1.0)
    if schedule == "cosine":
        decayed = 0.5 * (1 - math.cos(math.pi * decayed))
    return peak * (1 - (1 - final_fraction) * decayed)
