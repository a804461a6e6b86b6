"""Differences between the recipe of a checkpoint and the recipe of the run that resumes it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import ValidationError

from r1lab.config.reading import names_a_path
from r1lab.config.recipe import TrainRecipe
from r1lab.hashing import Inputs, changed_inputs
from r1lab.types import RecipeError

# Keys that affect neither what is learned nor what the curves mean: location and length of the
# run, checkpoints and tracking, batching and kernels, and the limits that stop it.
RESUMABLE_KEYS = re.compile(
    r"name|output|resume|steps|tracking\b.*|checkpoints\b.*|watch\b.*|evaluation\.every"
    r"|problems\.check_gold|reward_workers|max_fault_share|rewards\.\d+\.(seconds|memory_mib|isolate)"
    r"|model\.attention|sampling\.(kv_cache_gib|gpu_memory_utilization|servers|weights_folder"
    r"|weight_transfer|server_patience)\b.*"
    r"|algorithm\.(tokens_per_microbatch|max_sync_kl|max_skipped)"
)


def check_changes(
    before: Mapping[str, Any],
    recipe: TrainRecipe,
    *,
    force: bool,
    inputs: tuple[Inputs, Inputs] = ({}, {}),
) -> list[str]:
    """Return the differences, `key: before -> now`, if the run may resume with them.

    `before` is the recipe in the checkpoint; `inputs` are the hashed inputs then and now. Raises
    RecipeError with the differences if one would make it a different run and `force` is not set.
    A path to the same contents at another place is not a difference.
    """
    now = recipe.model_dump(mode="json")
    changed = dict(differences(moved(_with_new_keys(before), now, inputs), now))
    changed.pop("output", None)  # a run folder may be moved
    harmful = [
        f"{key}: {text}"
        for key, text in changed.items()
        if not RESUMABLE_KEYS.fullmatch(key)
        # All schedules but the constant one depend on the total number of steps.
        or (key == "steps" and recipe.optimizer.schedule != "constant")
    ]
    contents = changed_inputs(*inputs)
    if (harmful or contents) and not force:
        what = "the recipe is" if harmful else "what the recipe names is"
        raise RecipeError(
            f"{what} not the one this run began with: {'; '.join(harmful + contents)}; change it "
            "back, take another folder with --output, or continue anyway with --resume --force"
        )
    return [f"{key}: {text}" for key, text in changed.items()] + contents


def moved(before: Any, now: Any, inputs: tuple[Inputs, Inputs], key: str = "") -> Any:
    """Return `before` with the current paths wherever their contents are unchanged."""
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        return {
            name: moved(value, now.get(name), inputs, f"{key}.{name}" if key else str(name))
            for name, value in before.items()
        }
    if isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        pairs = enumerate(zip(before, now, strict=True))
        return [moved(one, other, inputs, f"{key}.{index}") for index, (one, other) in pairs]
    if not (isinstance(before, str) and isinstance(now, str) and names_a_path(key)):
        return before
    known, found = (each.get(key) for each in inputs)
    same = known is not None and known == found
    if same and before.partition(":")[2] == now.partition(":")[2]:
        return now
    # Before whole paths were recorded, a relative one stood for what it led to.
    return now if now.endswith(f"/{before}") and known is None else before


def _with_new_keys(before: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the recipe with keys that the schema gained since at their defaults.

    A recipe that no longer validates (a key was removed) is returned unchanged, so that the
    difference is reported.
    """
    try:
        return TrainRecipe.model_validate(before).model_dump(mode="json")
    except ValidationError:
        return before


def differences(before: Any, now: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """(dotted key, `before -> now`) of every value that differs, missing ones included."""
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        for name in sorted({*before, *now}):
            yield from differences(
                before.get(name), now.get(name), f"{key}.{name}" if key else str(name)
            )
    elif isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        for index, (one, other) in enumerate(zip(before, now, strict=True)):
            yield from differences(one, other, f"{key}.{index}")
    elif before != now:
        yield key, f"{before!r} -> {now!r}"
