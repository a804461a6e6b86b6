"""Countdown: make a target out of given numbers with + - * /, each number at most once.

Compact form: `use 19 , 35 , 44 to make 98`, answer `( 44 - 19 ) ...`: one solution of perhaps many;
the verifier checks any. The numbers stand in rising order, so that a problem has one question and
its split cannot depend on their order. With `path`, the rows of TinyZero (`target`, `nums`).
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from typing import Any, overload

from r1lab.data.streams import SPLITS, Draft, GeneratedProblems, check_range, is_held_out
from r1lab.types import Problem

_LARGEST_TARGET = 99


def load(
    split: str,
    *,
    seed: int = 0,
    form: str = "compact",
    min_numbers: int = 3,
    max_numbers: int = 4,
    largest: int = 99,
    path: str | None = None,
) -> GeneratedProblems | CountdownFile:
    """Games with that many numbers from 1 to `largest`, targets from 1 to 99.

    `path`: a JSONL file, split by a hash of each question, or a folder with train.jsonl and
    test.jsonl, of whose train rows those in the test file are left out.
    """
    if path is not None:
        return CountdownFile(Path(path).expanduser(), split, form)
    check_range("numbers", min_numbers, max_numbers, least=2, most=6)
    check_range("largest", 9, largest, least=9, most=999)

    def make(rng: random.Random) -> Draft:
        while True:
            count = rng.randint(min_numbers, max_numbers)
            numbers = [rng.randint(1, largest) for _ in range(count)]
            value, expression = _random_expression(numbers, rng)
            if value.denominator == 1 and 1 <= value <= _LARGEST_TARGET:
                return _draft(sorted(numbers), int(value), expression)

    return GeneratedProblems("countdown", make, split=split, seed=seed, form=form)


def _draft(numbers: list[int], target: int, expression: str) -> Draft:
    return Draft(
        question=compact_question(numbers, target),
        answer=expression,
        verifier="countdown",
        metadata={"numbers": numbers, "target": target},
        words=_words_question(numbers, target),
    )


def compact_question(numbers: Sequence[int], target: int) -> str:
    """The compact form: commas, because the small tokenizer reads digits side by side as one."""
    return f"use {' , '.join(map(str, sorted(numbers)))} to make {target}"


def _words_question(numbers: Sequence[int], target: int) -> str:
    return (
        f"Using the numbers {', '.join(map(str, numbers))}, write an expression that equals "
        f"{target}. You may use +, -, * and /, brackets, and each number at most once."
    )


def _random_expression(numbers: list[int], rng: random.Random) -> tuple[Fraction, str]:
    """All the numbers joined at random; differences and quotients the way round that is positive.

    The text is written for the small tokenizer, a space between all signs.
    """
    parts = [(Fraction(number), str(number)) for number in numbers]
    while len(parts) > 1:
        rng.shuffle(parts)
        (a, left), (b, right) = parts.pop(), parts.pop()
        sign = rng.choice("+-*/")
        if sign == "/" and (b == 0 or (a / b).denominator != 1):
            sign = rng.choice("+-*")
        if sign == "-" and a < b:
            a, b, left, right = b, a, right, left
        parts.append((_apply(a, sign, b), f"( {left} {sign} {right} )"))
    value, text = parts[0]
    return value, _bare(text)


def _apply(left: Fraction, sign: str, right: Fraction) -> Fraction:
    if sign == "/":
        return left / right
    return left + right if sign == "+" else left - right if sign == "-" else left * right


def _bare(text: str) -> str:
    return text[2:-2] if text.startswith("( ") else text


@lru_cache(maxsize=4096)
def find_solution(numbers: tuple[int, ...], target: int) -> str | None:
    """An expression that makes the target out of some of the numbers; None where there is none."""
    found = _search([(Fraction(number), str(number)) for number in numbers], Fraction(target))
    return None if found is None else _bare(found)


def _search(parts: list[tuple[Fraction, str]], target: Fraction) -> str | None:
    for value, text in parts:
        if value == target:
            return text
    for i, (a, left) in enumerate(parts):
        for j, (b, right) in enumerate(parts):
            if i == j:
                continue
            rest = [part for k, part in enumerate(parts) if k not in (i, j)]
            for sign in "+-*/":
                if (sign in "+*" and i > j) or (sign == "/" and b == 0):
                    continue
                joined = (_apply(a, sign, b), f"( {left} {sign} {right} )")
                found = _search([joined, *rest], target)
                if found is not None:
                    return found
    return None


class CountdownFile(Sequence[Problem]):
    """The rows of a local file as problems; a solution is searched for when a problem is read."""

    def __init__(self, path: Path, split: str, form: str = "compact") -> None:
        if split not in SPLITS:
            raise ValueError(f"split: {split!r} is not one of {', '.join(SPLITS)}")
        if form not in ("compact", "words"):
            raise ValueError(f"form: {form!r} is not one of compact, words")
        self.split, self.form = split, form
        if path.is_dir():
            rows = _rows(path / f"{split}.jsonl")
            held_out = set(_rows(path / "test.jsonl")) if split == "train" else set()
            self._rows = [row for row in rows if row not in held_out]
        else:
            test = split == "test"
            self._rows = [row for row in _rows(path) if is_held_out(compact_question(*row)) == test]

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> Problem: ...
    @overload
    def __getitem__(self, index: slice) -> list[Problem]: ...
    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        numbers, target = self._rows[index]
        draft = _draft(list(numbers), target, find_solution(numbers, target) or "")
        question = draft.words if self.form == "words" else draft.question
        return Problem(
            f"countdown-{self.split}-{index % len(self)}", question, draft.answer,
            draft.verifier, "countdown", draft.metadata,
        )  # fmt: skip

    def __iter__(self) -> Iterator[Problem]:
        return (self[index] for index in range(len(self)))


def _rows(path: Path) -> list[tuple[tuple[int, ...], int]]:
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    rows = []
    for place, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            row = json.loads(line)
            rows.append((tuple(sorted(int(n) for n in row["nums"])), int(row["target"])))
        except (ValueError, KeyError, TypeError):
            shape = '{"target": 98, "nums": [44, 19, 35]}'
            raise ValueError(f"{path}, line {place}: not a row such as {shape}") from None
    return list(dict.fromkeys(rows))


def guess(problem: Problem, rng: random.Random) -> str:
    """A wrong answer: all the numbers in a random expression that misses the target."""
    while True:
        numbers = list(problem.metadata["numbers"])
        value, text = _random_expression(numbers, rng)
        if value != problem.metadata["target"]:
            return text
