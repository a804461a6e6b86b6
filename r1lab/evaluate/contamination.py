"""Measure contamination: how much of a suite is in the training problems.

Questions are compared by runs of N words (10, as DeepSeek-R1's data were decontaminated, arXiv
2501.12948, appendix), in lower case, signs being words of their own; a question of fewer words is
one run. Problems made from patterns share runs without being the same, so whole questions are
also counted, and accuracy is given for the problems without any overlap on their own.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from r1lab.config.recipe import TrainRecipe
from r1lab.evaluate.result import ProblemResult
from r1lab.evaluate.run import summarise
from r1lab.evaluate.target import Target
from r1lab.problems.registry import load_mixture
from r1lab.problems.tables import TABLES, read_table
from r1lab.run_folder import RunFolder
from r1lab.types import R1labError

N = 10
_WORD = re.compile(r"\w+|[^\w\s]")
_LISTED = 20


def training_questions(target: Target, trained_on: str | None) -> list[str] | None:
    """Return the questions that a model was trained on; None if unknown.

    `trained_on` is a run folder (what it really asked), a recipe (what a run of it would ask) or a
    table. A run that is evaluated is its own answer. Raises R1labError.
    """
    if trained_on is None:
        # Without rollouts the overlap is unknown; the evaluation is still valid.
        return (_asked_by(target.run) if target.run is not None else None) or None
    folder = Path(trained_on).expanduser()
    if folder.is_dir():
        RunFolder.open(folder)
        if not (asked := _asked_by(folder)):
            raise R1labError(f"--trained-on: {folder} has no rollouts to read the questions from")
        return asked
    if trained_on.endswith(TABLES):
        try:
            rows = [row for _, row in read_table(folder)]
        except (OSError, ValueError) as error:
            raise R1labError(f"--trained-on: {error}") from error
        found = [str(row.get("question") or row.get("problem") or "") for row in rows]
        if not any(found):
            raise R1labError(f"--trained-on: {trained_on} has no column question or problem")
        return found
    from r1lab.config.reading import load_recipe

    recipe = load_recipe(trained_on, schema=TrainRecipe)
    stream = load_mixture(recipe.problems, "train")
    num = recipe.steps * recipe.sampling.questions_per_step
    return [stream[index].question for index in range(num)]


def overlap(
    training: Iterable[str], problems: Sequence[ProblemResult], *, n: int = N, seed: int = 0
) -> dict[str, Any]:
    """Compute the overlap with the training questions, and accuracy with and without it.

    n                words of a run
    num_training     different training questions
    exact            share of the suite's questions that are training questions, word for word
    overlapping      share with at least one run in common;  ids  some of them
    coverage         mean share of a question's runs that are in the training questions
    pass_at_1_clean, pass_at_1_overlapping   with their intervals; None if there are none
    """
    words = {tuple(_words(question)) for question in training}
    seen = {run for question in words for run in _runs(question, n)}
    shares, exact = [], 0
    for problem in problems:
        question = tuple(_words(problem.question))
        runs = _runs(question, n)
        shares.append(sum(run in seen for run in runs) / len(runs) if runs else 0.0)
        exact += question in words
    touched = [problem for problem, share in zip(problems, shares, strict=True) if share]
    clean = [problem for problem, share in zip(problems, shares, strict=True) if not share]

    def accuracy(of: Sequence[ProblemResult]) -> dict[str, float] | None:
        k = max((len(problem.samples) for problem in of), default=1)
        estimate = summarise(of, k, seed).pass_at_1 if of else None
        return None if estimate is None else asdict(estimate)

    return {
        "n": n,
        "num_training": len(words),
        "exact": exact / len(problems),
        "overlapping": len(touched) / len(problems),
        "coverage": sum(shares) / len(problems),
        "ids": [problem.id for problem in touched[:_LISTED]],
        "pass_at_1_clean": accuracy(clean),
        "pass_at_1_overlapping": accuracy(touched),
    }


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())


def _runs(words: Sequence[str], n: int) -> set[tuple[str, ...]]:
    if not words:
        return set()
    if len(words) < n:
        return {tuple(words)}
    return {tuple(words[i : i + n]) for i in range(len(words) - n + 1)}


def _asked_by(folder: Path) -> list[str]:
    """Return the questions in the rollouts that a run kept."""
    import pyarrow.parquet as pq

    found: set[str] = set()
    for path in sorted(RunFolder(folder).rollouts_path.glob("step-*.parquet")):
        found.update(pq.read_table(path, columns=["question"]).column(0).to_pylist())
    return sorted(found)
