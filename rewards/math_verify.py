"""Hugging Face's Math-Verify as a reward: a second opinion besides `math`.

Needs the package math-verify (r1lab's extra `grade`). Its rules differ from docs/verifiers.md in
places (it rounds, and reads several answers); `scripts/bench_verifiers.py` shows where. Only what
stands in the answer part is read, gold answers are put into a box, without which it misses many.
"""

from __future__ import annotations

import logging
from functools import lru_cache
from typing import Any

from math_verify import parse, verify

from r1lab.types import Completion, Problem, Verdict

_LONGEST = 10_000  # characters

# It reports every text that it cannot parse.
logging.getLogger("math_verify").setLevel(logging.CRITICAL)


def reward(problem: Problem, completion: Completion) -> Verdict:
    """1.0 where Math-Verify finds the answer equal to the gold answer, else 0.0."""
    if completion.answer is None:
        return Verdict(0.0, "no answer")
    # The time limits of both are signals; the wall around rewards has its own.
    given = parse(_boxed(completion.answer[-_LONGEST:]), parsing_timeout=None)
    if not given:
        return Verdict(0.0, "not readable by Math-Verify")
    equal = bool(verify(_gold(problem.answer), given, timeout_seconds=None))
    return Verdict(float(equal), f"read as {given[-1]}"[:200])


@lru_cache(maxsize=1024)
def _gold(text: str) -> Any:
    return parse(_boxed(text), parsing_timeout=None)


def _boxed(text: str) -> str:
    """Bare LaTeX in a box; a text with formulas, or with several words, as it is."""
    marks = ("$", "\\boxed", "\\(", "\\[")
    if any(mark in text for mark in marks) or len(text.split()) > 8:
        return text
    return rf"\boxed{{{text}}}"
