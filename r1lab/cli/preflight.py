"""`r1lab train RECIPE --preflight`: check whether a run can learn before it starts."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from r1lab.config.recipe import TrainRecipe

CANNOT_LEARN = 4  # exit code, the same as for a run that stops itself

_SIGNS = {"ok": "ok", "warning": "WARN", "failed": "FAILED"}


def preflight(recipe: TrainRecipe) -> int:
    """Sample, score and print; return the exit code."""
    from r1lab.monitor.sampled_preflight import preflight as run_preflight

    report = run_preflight(recipe)
    if os.environ.get("RANK", "0") == "0":
        for point in report.points:
            print(f"{_SIGNS[point.level]:8} {point.name:10} {point.found}")
            if point.change:
                print(f"{'':19} -> {point.change}")
        print(f"\n{report.verdict} ({recipe.run_folder}/preflight.json)")
    return 0 if report.can_learn else CANNOT_LEARN
