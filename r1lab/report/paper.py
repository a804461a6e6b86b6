"""The papers' curves, from data/paper/: shown with a run, never mixed with its data.

data/paper/README.md names the source of each file and how exactly it was read. No torch.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from r1lab.problems.registry import shipped_folder
from r1lab.types import R1labError

# Nature 2025, Methods (arXiv 2501.12948 v2, section 2.1).
R1_ZERO_STEPS = 10_400
R1_ZERO_CAP_RAISED_AT = 8_200  # the last step under 32,768 tokens; then 65,536
R1_ZERO_REFERENCE_EVERY = 400


@dataclass(frozen=True, slots=True)
class PaperCurve:
    """One curve of a paper, over the training steps of its run.

    label   what a legend says; it names the paper, so that nobody takes the curve for a run's
    source  the figure in the paper
    unit    of `values`: `share` (0 to 1) or `tokens`
    steps   rising, S of them;  values  as many
    total_steps  of the whole run, which the curve need not reach
    """

    name: str
    label: str
    source: str
    unit: str
    steps: tuple[int, ...]
    values: tuple[float, ...]
    total_steps: int

    @property
    def shares(self) -> tuple[float, ...]:
        """`steps` as shares of the run, 0 to 1: the axis that runs of any length have in common."""
        return tuple(step / self.total_steps for step in self.steps)


# Curve: (file, column, label, source, unit, what its values are divided by).
_CURVES = {
    "r1_zero_pass_at_1": (
        "r1_zero_aime2024.csv", "pass_at_1", "R1-Zero (paper), AIME 2024 pass@1",
        "arXiv 2501.12948 v1, Figure 2, digitised", "share", 100.0,
    ),
    "r1_zero_cons_at_16": (
        "r1_zero_aime2024.csv", "cons_at_16", "R1-Zero (paper), AIME 2024 cons@16",
        "arXiv 2501.12948 v1, Figure 2, digitised", "share", 100.0,
    ),
    "r1_zero_length": (
        "r1_zero_response_length.csv", "mean_tokens", "R1-Zero (paper), training responses",
        "arXiv 2501.12948 v1, Figure 3, digitised", "tokens", 1.0,
    ),
}  # fmt: skip


@cache
def paper_curves() -> dict[str, PaperCurve]:
    """Every curve by its name; percentages have become shares. Raises R1labError."""
    curves = {}
    for name, (file, column, label, source, unit, divisor) in _CURVES.items():
        rows = paper_table(file)
        try:
            steps = tuple(int(row["step"]) for row in rows)
            values = tuple(float(row[column]) / divisor for row in rows)
        except (KeyError, ValueError) as error:
            raise R1labError(f"data/paper/{file}: no numbers in {column} ({error})") from error
        curves[name] = PaperCurve(name, label, source, unit, steps, values, R1_ZERO_STEPS)
    return curves


def cap_raised_share() -> float:
    """Return the share of R1-Zero's run after which its length cap is raised: 0.79."""
    return R1_ZERO_CAP_RAISED_AT / R1_ZERO_STEPS


def paper_table(file: str) -> tuple[dict[str, str], ...]:
    """The rows of a file of data/paper/ as they stand, cells by column. Raises R1labError."""
    path = paper_folder() / file
    try:
        with path.open(encoding="utf-8", newline="") as lines:
            return tuple(dict(row) for row in csv.DictReader(lines))
    except OSError as error:
        known = ", ".join(sorted(found.name for found in paper_folder().glob("*.csv")))
        raise R1labError(f"{path} cannot be read ({error.strerror}); there are {known}") from error


def paper_folder() -> Path:
    """data/paper/, in the checkout or in an installed r1lab."""
    return shipped_folder("data") / "paper"
