"""What every generated problem source shares: a deterministic stream, and work written down.

A problem depends on (seed, index) alone. Whether it is held out depends on its question alone: a
hash puts a tenth of all possible questions into the test split, for every seed and every run, and a
training stream never yields one of them.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar

from r1lab.types import Problem

TEST_SHARE = 0.1
SPLITS = ("train", "test")
T = TypeVar("T")


def is_held_out(question: str) -> bool:
    """Whether a question (in its compact form) belongs to the test split."""
    digest = hashlib.sha256(question.encode()).digest()
    return int.from_bytes(digest[:8], "big") < TEST_SHARE * 2**64


@dataclass(frozen=True, slots=True)
class Draft:
    """A problem before it has an id: the compact question decides its split in every form."""

    question: str
    answer: str
    verifier: str
    metadata: dict[str, Any] = field(default_factory=dict)
    words: str = ""


class GeneratedProblems:
    """An endless, indexable stream of problems of one split.

    `stream[i]` is the same problem on every machine; `make` draws a draft from a random generator.
    """

    def __init__(
        self,
        name: str,
        make: Callable[[random.Random], Draft],
        *,
        split: str,
        seed: int = 0,
        form: str = "compact",
    ) -> None:
        if split not in SPLITS:
            raise ValueError(f"split: {split!r} is not one of {', '.join(SPLITS)}")
        if form not in ("compact", "words"):
            raise ValueError(f"form: {form!r} is not one of compact, words")
        self.name, self.split, self.seed, self.form = name, split, seed, form
        self._make = make

    def __getitem__(self, index: int) -> Problem:
        # A string seed is hashed by random with SHA-512: the same on every platform.
        rng = random.Random(f"{self.name}/{self.split}/{self.seed}/{index}")
        for _ in range(10_000):
            draft = self._make(rng)
            if is_held_out(draft.question) == (self.split == "test"):
                return Problem(
                    id=f"{self.name}-{self.split}-{self.seed}-{index}",
                    question=draft.words if self.form == "words" else draft.question,
                    answer=draft.answer,
                    verifier=draft.verifier,
                    source=self.name,
                    metadata=draft.metadata,
                )
        raise ValueError(
            f"{self.name}: no {self.split} problem in 10,000 draws; the difficulty options leave "
            "too few questions, widen them"
        )

    def __iter__(self) -> Iterator[Problem]:
        index = 0
        while True:
            yield self[index]
            index += 1


def check_range(name: str, low: int, high: int, *, least: int, most: int) -> None:
    """Refuse a difficulty range that is empty or outside what the source can pose."""
    if not least <= low <= high <= most:
        raise ValueError(
            f"{name}: {low} to {high} must be an increasing range between {least} and {most}"
        )


@dataclass
class SolutionWriter:
    """Writes down the steps of a solution, slipping and mending slips at the rates of a corpus.

    With all rates at 0 it is the right solution. A slip is carried on: later steps build on the
    wrong value, unless it is noticed, when the step is written again behind `wait`.
    """

    rng: random.Random
    slip_rate: float = 0.0
    notice_rate: float = 0.0
    recheck_rate: float = 0.0
    lines: list[str] = field(default_factory=list)

    def step(self, right: T, render: Callable[[T], str], wrong: Callable[[random.Random], T]) -> T:
        """Write one step; return the value that the work goes on with."""
        if self.rng.random() < self.slip_rate:
            slipped = wrong(self.rng)
            self.lines.append(render(slipped))
            if self.rng.random() >= self.notice_rate:
                return slipped
            self.lines[-1] += " wait " + render(right)
        else:
            self.lines.append(render(right))
        if self.rng.random() < self.recheck_rate:
            self.lines[-1] += " check " + render(right)
        return right


def slipped_number(value: int, rng: random.Random) -> int:
    """A wrong result as a tired person writes it: one off, ten off, or another last digit."""
    candidates = [
        value + 1,
        value - 1,
        value + 10,
        value - 10,
        value - value % 10 + rng.randrange(10),
    ]
    return rng.choice([c for c in candidates if c >= 0 and c != value])
