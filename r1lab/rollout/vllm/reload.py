"""Load new weights into a model that vLLM holds, in the trainer's process or a server's."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from r1lab.rollout.vllm import patches as mends
from r1lab.types import R1labError


def load_weights(runner: Any, weights: Iterable[tuple[str, torch.Tensor]], version: int) -> None:
    """Load all weights, by checkpoint name, through a worker's model runner, and patch the model.

    The caller must drop the engine's prefix cache. Raises R1labError if weights are missing or do
    not fit; the model is then unusable.
    """
    model = runner.get_model()
    with _recorded_names(model) as loaded, mends.embeddings_in_place(), torch.no_grad():
        runner.reload_weights(weights_iterator=iter(weights))
    missing = mends.not_loaded(model, loaded)
    if missing:
        raise R1labError(
            f"weight sync to version {version}: {len(missing)} of vLLM's weights were not sent "
            f"({', '.join(missing[:3])}, ...); send every weight under its checkpoint name"
        )
    mends.patch_after_reload(model)


@contextmanager
def _recorded_names(model: Any) -> Iterator[set[str]]:
    """Collect the names of the parameters that `model.load_weights` reports as loaded."""
    original = model.load_weights
    loaded: set[str] = set()

    def load_weights(weights: Iterable[tuple[str, torch.Tensor]]) -> set[str]:
        names = original(weights)
        loaded.update(names)
        return names

    model.load_weights = load_weights
    try:
        yield loaded
    finally:
        del model.load_weights
