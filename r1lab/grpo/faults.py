"""Translate machine failures into one-line errors with the cause and the fix."""

from __future__ import annotations

from r1lab.config.recipe import TrainRecipe
from r1lab.shortages import is_disk_full, is_out_of_memory
from r1lab.types import InfrastructureError, R1labError


def explained(error: Exception, recipe: TrainRecipe, *, in_update: bool) -> R1labError | None:
    """Return the error in user terms, or None if it is a programming error.

    `in_update` tells whether the trainer was running, or the sampler and the rewards.
    """
    if isinstance(error, R1labError):
        return error
    if is_out_of_memory(error):
        return InfrastructureError(_memory(recipe, in_update))
    if is_disk_full(error):
        return InfrastructureError(
            f"output: disk, quota or file-size limit exceeded while writing to "
            f"{recipe.run_folder} ({_said(error)}); free some space (checkpoints.keep is "
            f"{recipe.checkpoints.keep})"
        )
    if isinstance(error, PermissionError | IsADirectoryError | FileNotFoundError):
        return InfrastructureError(
            f"output: {recipe.run_folder} is no longer writable ({_said(error)}); fix the file or "
            "its permissions"
        )
    return None


def _memory(recipe: TrainRecipe, in_update: bool) -> str:
    sampling, algorithm = recipe.sampling, recipe.algorithm
    if in_update:
        return (
            "out of memory in the update; lower algorithm.tokens_per_microbatch "
            f"({algorithm.tokens_per_microbatch}) or sampling.max_tokens ({sampling.max_tokens}), "
            "or train adapters (model.lora)"
        )
    cache = (
        f"sampling.kv_cache_gib ({sampling.kv_cache_gib:g}; on a GPU "
        f"sampling.gpu_memory_utilization, {sampling.gpu_memory_utilization:g})"
    )
    return f"out of memory while sampling or scoring; lower {cache} or reward_workers"


def _said(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
