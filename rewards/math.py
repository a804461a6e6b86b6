"""Is the answer equal to the gold one? Plain numbers and fractions exactly, by sympy.

Model text is hostile: it is read by the small grammar below (digits, a sign, a decimal point, a
fraction bar) into sympy's exact rationals, and is never evaluated. What the grammar does not read
is compared letter by letter after white space and LaTeX's dollar signs are taken away.
"""

from __future__ import annotations

import re

from sympy import Rational

from r1lab.types import Completion, Problem, Verdict

_LONGEST = 200  # characters
_DECIMAL = r"[+-]?(?:\d{1,40}(?:\.\d{0,40})?|\.\d{1,40})"
_NUMBER = re.compile(rf"({_DECIMAL})(?:/({_DECIMAL}))?")
_THOUSANDS = re.compile(r"[+-]?\d{1,3}(?:,\d{3})+(?:\.\d{0,40})?")
_BOXED = re.compile(r"\\boxed\{([^{}]*)\}")


def read_number(text: str) -> Rational | None:
    """The exact value of a number or a fraction of two; None where it is neither."""
    text = text.strip().rstrip(".")
    if _THOUSANDS.fullmatch(text):
        text = text.replace(",", "")
    found = _NUMBER.fullmatch(text.replace(" ", "") if "/" in text else text)
    if found is None:
        return None
    below = Rational(found[2]) if found[2] else Rational(1)
    return None if below == 0 else Rational(found[1]) / below


def _bare(text: str) -> str:
    """The answer without a box, dollar signs or an `x =` in front."""
    boxes = _BOXED.findall(text)
    text = (boxes[-1] if boxes else text).replace("$", "").strip()
    return re.sub(r"^[a-zA-Z]\s*=\s*", "", text)


def reward(problem: Problem, completion: Completion) -> Verdict:
    """1.0 where the answer equals the gold answer, else 0.0."""
    if completion.answer is None:
        return Verdict(0.0, "no answer")
    if len(completion.answer) > _LONGEST:
        return Verdict(0.0, f"answer longer than {_LONGEST} characters")
    given, right = _bare(completion.answer), _bare(problem.answer)
    given_value, right_value = read_number(given), read_number(right)
    if given_value is not None and right_value is not None:
        equal = given_value == right_value
        return Verdict(float(equal), "equal" if equal else f"{given_value} is not {right_value}")
    if "".join(given.split()) == "".join(right.split()):
        return Verdict(1.0, "the same text")
    return Verdict(0.0, "not a number" if right_value is not None else "not the same text")
