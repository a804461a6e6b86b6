"""MATH for training (Hendrycks et al. 2021, arXiv 2103.03874): problems of competitions.

The problems that are not in MATH-500, which is the test split here (`data/math500.py`): 12,000 on
the hub. Read from `path` (a folder with train.jsonl, a file, or a hub name), from
$R1LAB_DATASETS/math, or from the hub; MATH-500 likewise from `test_path`. `levels` keeps some of
the levels of difficulty, 1 to 5. Editions of the set differ: a level is `level` or `difficulty`
(5, 5.0 or "Level 5"), an answer is `answer`, or the last box of `solution`; rows without a level or
an answer are left out.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from r1lab.data import math500
from r1lab.problems.hub import place_of, read_rows
from r1lab.prompts import last_box
from r1lab.types import Problem

HUB = "nlile/hendrycks-MATH-benchmark"
_LEVEL = re.compile(r"(?:Level )?([1-5])(?:\.0)?")


def load(
    split: str,
    *,
    path: str | None = None,
    test_path: str | None = None,
    levels: tuple[int, ...] = math500.LEVELS,
) -> list[Problem]:
    """All problems of those levels, in the set's order; no question of MATH-500 is in training."""
    if split == "test":
        return math500.load("test", path=test_path, levels=levels)
    if split != "train":
        raise ValueError(f"split: {split!r} is not one of train, test")
    if not set(levels) <= set(math500.LEVELS):
        raise ValueError(f"levels: {list(levels)} must be among {list(math500.LEVELS)}")
    held_out = {_plain(problem.question) for problem in math500.load("test", path=test_path)}
    problems = []
    for number, row in read_rows(place_of(path, "math", HUB), "train"):
        if "problem" not in row:
            raise ValueError(f"row {number} of train: no column 'problem'")
        question, answer, level = str(row["problem"]), _answer(row), _level(row)
        if answer is None or level not in levels or _plain(question) in held_out:
            continue
        subject = str(row.get("subject") or row.get("type") or "")
        metadata = {"subject": subject, "level": level}
        problems.append(
            Problem(f"math-train-{number}", question, answer, "math", "hendrycks_math", metadata)
        )
    return problems


def _answer(row: Mapping[str, Any]) -> str | None:
    """The short answer; None where the row has none."""
    given = row.get("answer")
    found = last_box(str(row.get("solution") or "")) if given is None else str(given)
    return found.strip() or None if found is not None else None


def _level(row: Mapping[str, Any]) -> int | None:
    """1 to 5; None for a level that is unknown ("Level ?", 0)."""
    found = _LEVEL.fullmatch(str(row.get("level", row.get("difficulty"))).strip())
    return int(found[1]) if found else None


def _plain(question: str) -> str:
    """A question without regard to white space, in which editions differ."""
    return " ".join(question.split())
