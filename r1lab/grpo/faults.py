"""What a run says when the machine gives way under it: one line, with the cause and the way on."""

from __future__ import annotations

from r1lab.config.recipe import TrainRecipe
from r1lab.shortages import is_disk_full, is_out_of_memory
from r1lab.types import InfrastructureError, R1labError


def explained(error: Exception, recipe: TrainRecipe, *, in_update: bool) -> R1labError | None:
    """The error as its user should hear of it; None for one that is nobody's but a programmer's.

    `in_update`: whether the trainer was at work, or the sampler and the rewards.
    """
    if isinstance(error, R1labError):
        return error
    if is_out_of_memory(error):
        return InfrastructureError(_memory(recipe, in_update))
    if is_disk_full(error):
        return InfrastructureError(
            f"output: the disk, the quota or the largest file allowed is used up while writing "
            f"into {recipe.run_folder} ({_said(error)}); make room (checkpoints.keep is "
            f"{recipe.checkpoints.keep})"
        )
    if isinstance(error, PermissionError | IsADirectoryError | FileNotFoundError):
        return InfrastructureError(
            f"output: {recipe.run_folder} cannot be written any more ({_said(error)}); mend the "
            "file or its rights"
        )
    return None


def _memory(recipe: TrainRecipe, in_update: bool) -> str:
    sampling, algorithm = recipe.sampling, recipe.algorithm
    if in_update:
        return (
            "memory ran out in the update; lower algorithm.tokens_per_microbatch "
            f"({algorithm.tokens_per_microbatch}) or sampling.max_tokens ({sampling.max_tokens}), "
            "or train adapters (model.lora)"
        )
    cache = (
        f"sampling.kv_cache_gib ({sampling.kv_cache_gib:g}; on a GPU "
        f"sampling.gpu_memory_utilization, {sampling.gpu_memory_utilization:g})"
    )
    return f"memory ran out while sampling or scoring; lower {cache} or reward_workers"


def _said(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
