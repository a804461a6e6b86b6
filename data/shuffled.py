"""Another source's questions with one another's answers, as a control: nothing true can be learnt.

Neighbours in the training split exchange their gold answers. The test split is left as it is, so
that held-out accuracy is measured against the truth.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from importlib import import_module
from typing import Any

from r1lab.types import Problem


class ShuffledAnswers:
    """A training stream whose neighbours have exchanged answers."""

    def __init__(self, problems: Any, name: str) -> None:
        self._problems, self._name = problems, name

    def __getitem__(self, index: int) -> Problem:
        problem, other = self._problems[index], self._problems[index ^ 1]
        return replace(
            problem, id=f"shuffled-{problem.id}", answer=other.answer, verifier=other.verifier,
            metadata=other.metadata, source=self._name,
        )  # fmt: skip

    def __iter__(self) -> Iterator[Problem]:
        index = 0
        while True:
            yield self[index]
            index += 1


def load(split: str, *, of: str = "boxes", seed: int = 0, form: str = "compact") -> Any:
    """The problems of the generated source `of` that ships, answers exchanged in training."""
    if not of.isidentifier() or of == "shuffled":
        raise ValueError(f"of: {of!r} is no source whose answers could be exchanged")
    problems = import_module(f"r1lab.data.{of}").load(split, seed=seed, form=form)
    return ShuffledAnswers(problems, of) if split == "train" else problems
