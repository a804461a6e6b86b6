"""Countdown: does the expression make the target out of the given numbers?

The game of TinyZero (Jiayi Pan et al., 2025). The problem's metadata holds `numbers` and `target`
(`nums` in TinyZero's rows). The expression is read by the parser below and never evaluated as code:
whole numbers, + - * / and brackets, no sign in front of a number, exact rational arithmetic.
"""

from __future__ import annotations

import re
from collections import Counter
from fractions import Fraction

from r1lab.types import Completion, Problem, Verdict

_LONGEST = 300  # characters
_MOST_TOKENS = 64
_TOKEN = re.compile(r"\s*(?:([0-9]{1,9})|([-+*/()=]))")
_SPELLINGS = {"×": "*", "·": "*", "÷": "/", "−": "-", "–": "-", "\\times": "*", "\\cdot": "*",
              "\\div": "/", "\\left": "", "\\right": "", "$": "", "[": "(", "]": ")"}  # fmt: skip
_BOX = re.compile(r"\\boxed\s*\{([^{}]*)\}\s*\.?\s*")
_FRACTION = re.compile(r"\\[dt]?frac\s*\{([^{}]*)\}\s*\{([^{}]*)\}")


class BadExpression(ValueError):
    """What is wrong with an expression, for the verdict's reason."""


def evaluate(text: str) -> tuple[Fraction, list[int]]:
    """(exact value, the numbers used) of an expression; one `= result` behind it must hold.

    Raises BadExpression.
    """
    tokens = _tokens(text)
    if "=" in tokens:
        place = tokens.index("=")
        tokens, claim = tokens[:place], tokens[place + 1 :]
        value, used = _CountdownParser(tokens).whole()
        if len(claim) != 1 or not claim[0].isdigit() or int(claim[0]) != value:
            raise BadExpression("what stands behind the equals sign is not its value")
        return value, used
    return _CountdownParser(tokens).whole()


def _tokens(text: str) -> list[str]:
    if len(text) > _LONGEST:
        raise BadExpression(f"longer than {_LONGEST} characters")
    if boxed := _BOX.fullmatch(text.strip().strip("$")):
        text = boxed[1]
    text = _FRACTION.sub(r"((\1)/(\2))", text)
    for spelling, plain in _SPELLINGS.items():
        text = text.replace(spelling, plain)
    text = text.strip().rstrip(".").rstrip()
    tokens, place = [], 0
    while place < len(text):
        found = _TOKEN.match(text, place)
        if found is None:
            raise BadExpression(f"unexpected {text[place:].strip()[:1]!r}")
        tokens.append(found[1] or found[2])
        place = found.end()
    if len(tokens) > _MOST_TOKENS:
        raise BadExpression(f"more than {_MOST_TOKENS} numbers and signs")
    return tokens


class _CountdownParser:
    """Recursive descent; at most 64 tokens, so never deep."""

    def __init__(self, tokens: list[str]) -> None:
        self.tokens, self.place, self.used = tokens, 0, list[int]()

    def whole(self) -> tuple[Fraction, list[int]]:
        value = self.sum()
        if self.place < len(self.tokens):
            raise BadExpression(f"unexpected {self.tokens[self.place]!r}")
        return value, self.used

    def take(self, signs: str) -> str:
        if self.place < len(self.tokens) and self.tokens[self.place] in signs:
            self.place += 1
            return self.tokens[self.place - 1]
        return ""

    def sum(self) -> Fraction:
        value = self.product()
        while sign := self.take("+-"):
            other = self.product()
            value = value + other if sign == "+" else value - other
        return value

    def product(self) -> Fraction:
        value = self.single()
        while sign := self.take("*/"):
            other = self.single()
            if sign == "/" and other == 0:
                raise BadExpression("a division by zero")
            value = value * other if sign == "*" else value / other
        return value

    def single(self) -> Fraction:
        if self.take("("):
            value = self.sum()
            if not self.take(")"):
                raise BadExpression("a bracket that does not close")
            return value
        token = self.tokens[self.place] if self.place < len(self.tokens) else ""
        if not token.isdigit():
            raise BadExpression(f"{token!r} where a number should stand" if token else "incomplete")
        self.place += 1
        self.used.append(int(token))
        return Fraction(int(token))


def reward(problem: Problem, completion: Completion, *, use_all: bool = False) -> Verdict:
    """1.0 for an expression that makes the target; `use_all` asks for every number to be used."""
    numbers = problem.metadata.get("numbers", problem.metadata.get("nums"))
    target = problem.metadata.get("target")
    if numbers is None or target is None:
        raise ValueError(f"problem {problem.id}: metadata needs `numbers` and `target`")
    if completion.answer is None:
        return Verdict(0.0, "no answer")
    try:
        value, used = evaluate(completion.answer)
    except BadExpression as error:
        return Verdict(0.0, str(error))
    if missing := Counter(used) - Counter(int(number) for number in numbers):
        return Verdict(0.0, f"{next(iter(missing))} is not there to be used (again)")
    if use_all and len(used) < len(numbers):
        return Verdict(0.0, "not every number is used")
    if value != int(target):
        return Verdict(0.0, "another value than the target")
    return Verdict(1.0, "makes the target")
