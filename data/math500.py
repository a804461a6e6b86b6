"""MATH-500: five hundred problems of MATH's test set (Hendrycks et al. 2021, arXiv 2103.03874), as
chosen by Lightman et al. 2023 (arXiv 2305.20050).

Read from `path` (a folder with test.jsonl, a file, or a hub name), from $R1LAB_DATASETS/math500, or
from the hub. `levels` keeps some of the levels of difficulty, 1 to 5.
"""

from __future__ import annotations

from r1lab.problems.hub import place_of, read_rows
from r1lab.types import Problem

HUB = "HuggingFaceH4/MATH-500"
LEVELS = (1, 2, 3, 4, 5)


def load(split: str, *, path: str | None = None, levels: tuple[int, ...] = LEVELS) -> list[Problem]:
    """All problems of those levels, in the set's order; there is a test split only."""
    if split != "test":
        raise ValueError("MATH-500 is a test set: train on something else")
    if not set(levels) <= set(LEVELS):
        raise ValueError(f"levels: {list(levels)} must be among {list(LEVELS)}")
    problems = []
    for number, row in read_rows(place_of(path, "math500", HUB), split):
        level = int(row["level"])
        if level in levels:
            metadata = {"subject": str(row["subject"]), "level": level}
            name = str(row.get("unique_id") or f"math500-{number}")
            problems.append(
                Problem(name, str(row["problem"]), str(row["answer"]), "math", "math500", metadata)
            )
    return problems
