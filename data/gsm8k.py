"""GSM8K (Cobbe et al. 2021, arXiv 2110.14168): word problems of primary school, whole numbers.

Read from `path` (a folder with train.jsonl and test.jsonl, a file, or a hub name), from
$R1LAB_DATASETS/gsm8k, or from the hub. The worked solution is in the metadata, without the marks of
the calculator that its authors trained with.
"""

from __future__ import annotations

import re

from r1lab.problems.hub import place_of, read_rows
from r1lab.types import Problem

HUB = "openai/gsm8k"
_MARKS = re.compile(r"<<[^<>]*>>")


def load(split: str, *, path: str | None = None) -> list[Problem]:
    """All problems of the split, in the set's order."""
    problems = []
    for number, row in read_rows(place_of(path, "gsm8k", HUB), split, config="main"):
        solution, marked, answer = str(row["answer"]).rpartition("####")
        if not marked:
            raise ValueError(f"row {number} of {split}: no answer behind ####")
        problems.append(
            Problem(
                f"gsm8k-{split}-{number}",
                str(row["question"]),
                answer.strip(),
                "math",
                "gsm8k",
                {"solution": _MARKS.sub("", solution).strip()},
            )
        )
    return problems
