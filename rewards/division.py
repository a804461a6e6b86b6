"""Quotient and remainder, checked against the problem itself, in the usual ways to write them."""

from __future__ import annotations

import re

from r1lab.types import Completion, Problem, Verdict

_NUMBER = r"(\d{1,20})"
_FORMS = tuple(
    re.compile(form)
    for form in (
        rf"{_NUMBER} ?(?:r|R|rest|rem\.?|remainder) ?{_NUMBER}",
        rf"{_NUMBER},? (?:with )?(?:a )?(?:rest|remainder)(?: of)? {_NUMBER}",
        rf"(?:quotient|q) ?[:=]? ?{_NUMBER},? (?:and )?(?:remainder|rest|r) ?[:=]? ?{_NUMBER}",
    )
)
_ALONE = re.compile(_NUMBER)


def read_division(text: str) -> tuple[int, int] | None:
    """(quotient, remainder) of an answer; a number alone has remainder 0; None: unreadable."""
    text = " ".join(text.split())
    for form in _FORMS:
        if found := form.fullmatch(text):
            return int(found[1]), int(found[2])
    alone = _ALONE.fullmatch(text)
    return (int(alone[1]), 0) if alone else None


def reward(problem: Problem, completion: Completion) -> Verdict:
    """1.0 for the right quotient and remainder, else 0.0."""
    if completion.answer is None:
        return Verdict(0.0, "no answer")
    # Long text is refused before any pattern sees it.
    found = read_division(completion.answer) if len(completion.answer) <= 100 else None
    if found is None:
        return Verdict(0.0, "not a quotient with a remainder")
    right = read_division(problem.answer)
    if right is None:
        raise ValueError(f"problem {problem.id}: the gold answer {problem.answer!r} is no division")
    if found == right:
        return Verdict(1.0, "right quotient and remainder")
    if found[0] == right[0]:
        return Verdict(0.0, "right quotient, wrong remainder")
    return Verdict(0.0, "wrong quotient")
