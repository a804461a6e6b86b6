"""What changed in a recipe between a checkpoint and the run that goes on from it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import ValidationError

from r1lab.config.reading import names_a_path
from r1lab.config.recipe import TrainRecipe
from r1lab.hashing import Inputs, changed_inputs
from r1lab.types import RecipeError

# Keys that change neither what is learned nor what the curves mean: where the run is and how long,
# what is kept and shown, how work is cut up and by which kernel, and the bounds that stop it.
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
    """The differences, `key: before -> now`, where the run may go on with them.

    `before` is the recipe as a checkpoint holds it, `inputs` what it names, then and now. Raises
    RecipeError, with the differences, where one of them would make it another run and `force` is
    not set. A path that leads to the same contents is no difference, wherever they lie.
    """
    now = recipe.model_dump(mode="json")
    changed = dict(differences(moved(_with_new_keys(before), now, inputs), now))
    changed.pop("output", None)  # where a run lies is no part of it
    harmful = [
        f"{key}: {text}"
        for key, text in changed.items()
        if not RESUMABLE_KEYS.fullmatch(key)
        # Other schedules than the constant one count in shares of the whole run.
        or (key == "steps" and recipe.optimizer.schedule != "constant")
    ]
    contents = changed_inputs(*inputs)
    if (harmful or contents) and not force:
        what = "the recipe is" if harmful else "what the recipe names is"
        raise RecipeError(
            f"{what} not the one this run began with: {'; '.join(harmful + contents)}; change it "
            "back, take another folder with --output, or go on all the same with --resume --force"
        )
    return [f"{key}: {text}" for key, text in changed.items()] + contents


def moved(before: Any, now: Any, inputs: tuple[Inputs, Inputs], key: str = "") -> Any:
    """`before` with the paths of now where they lead to what they led to."""
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
    """The recipe with what the schema has gained since, at its defaults: that is what it ran with.

    As it is where it is no recipe any more (a key has gone): its differences are told then.
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
