"""Is the stack right? The boxes from bottom to top, in the usual ways to list them."""

from __future__ import annotations

import re

from r1lab.types import Completion, Problem, Verdict

_LONGEST = 500  # characters: a list of boxes is short, and anything longer is refused unread
_BETWEEN = re.compile(r"[\s,;>|.]+")
_FILLERS = frozenset({"and", "then", "the", "box", "boxes", "one"})


def read_stack(text: str) -> list[str]:
    """The names in a list such as `red, blue and green`."""
    words = (word for word in _BETWEEN.split(text.lower()) if word)
    return [word for word in words if word not in _FILLERS]


def reward(problem: Problem, completion: Completion) -> Verdict:
    """1.0 where the answer names the right boxes in the right order, else 0.0."""
    if completion.answer is None:
        return Verdict(0.0, "no answer")
    if len(completion.answer) > _LONGEST:
        return Verdict(0.0, f"answer longer than {_LONGEST} characters")
    named, right = read_stack(completion.answer), read_stack(problem.answer)
    if named == right:
        return Verdict(1.0, "the right stack")
    if sorted(named) == sorted(right):
        return Verdict(0.0, "the right boxes in the wrong order")
    return Verdict(0.0, "not the right boxes")
