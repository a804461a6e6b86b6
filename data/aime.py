"""AIME, the American Invitational Mathematics Examination: 30 problems a year, answers 0 to 999.

The problems are the MAA's. Read from `path` (a folder with 2024.jsonl and 2025.jsonl, a file, or a
hub name), from $R1LAB_DATASETS/aime, or from the hub.
"""

from __future__ import annotations

from r1lab.problems.hub import place_of, read_rows
from r1lab.types import Problem

HUB = {2024: "HuggingFaceH4/aime_2024", 2025: "math-ai/aime25"}
# What the hub calls the only split of each.
_SPLIT = {2024: "train", 2025: "test"}


def load(split: str, *, year: int = 2024, path: str | None = None) -> list[Problem]:
    """The problems of one year, in their order; there is a test split only."""
    if split != "test":
        raise ValueError("AIME is a test set: train on something else")
    if year not in HUB:
        raise ValueError(f"year: {year} is not one of {', '.join(map(str, HUB))}")
    rows = read_rows(place_of(path, "aime", HUB[year]), _SPLIT[year], stem=str(year))
    return [
        Problem(
            f"aime-{year}-{number}",
            str(row["problem"]),
            # Three digits on the answer sheet: 033 is 33.
            str(int(row["answer"])),
            "math",
            f"aime{year % 100}",
        )
        for number, row in rows
    ]
