"""`r1lab train RECIPE --preflight`: say whether a run can learn, before it begins."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from r1lab.config.recipe import TrainRecipe

CANNOT_LEARN = 4  # the exit code; what a run that stops itself ends with

_SIGNS = {"ok": "ok", "warning": "WARN", "failed": "FAILED"}


def preflight(recipe: TrainRecipe) -> int:
    """Sample, judge, print; the exit code."""
    from r1lab.monitor.sampled_preflight import preflight as look

    found = look(recipe)
    if os.environ.get("RANK", "0") == "0":
        for point in found.points:
            print(f"{_SIGNS[point.level]:8} {point.name:10} {point.found}")
            if point.change:
                print(f"{'':19} -> {point.change}")
        print(f"\n{found.verdict} ({recipe.run_folder}/preflight.json)")
    return 0 if found.can_learn else CANNOT_LEARN
