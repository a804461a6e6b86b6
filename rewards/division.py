"""Quotient and remainder, checked against the problem itself, in the usual ways to write them."""

from __future__ import annotations

import re

from r1lab.types import Completion, Problem, Verdict

_NUMBER = r"([0-9]{1,20})"
_QUOTIENT, _REMAINDER = r"(?:the )?(?:quotient|q)", r"(?:the )?(?:remainder|rest|r)"
_OF = r" ?(?:is|of|=|:)? ?"
_FORMS = tuple(
    re.compile(form, re.IGNORECASE)
    for form in (
        rf"{_NUMBER} ?(?:r|rest|rem\.?|remainder){_OF}{_NUMBER}",
        rf"{_NUMBER},? (?:with |and )?(?:a |the )?(?:rest|remainder){_OF}{_NUMBER}",
        rf"{_QUOTIENT}{_OF}{_NUMBER}[,;]? (?:and )?{_REMAINDER}{_OF}{_NUMBER}",
        rf"\( ?{_NUMBER} ?, ?{_NUMBER} ?\)",
    )
)
_BACKWARDS = re.compile(
    rf"{_REMAINDER}{_OF}{_NUMBER}[,;]? (?:and )?{_QUOTIENT}{_OF}{_NUMBER}",
    re.IGNORECASE,
)
_ALONE = re.compile(_NUMBER)
_MIXED = re.compile(rf"{_NUMBER} (?:and )?{_NUMBER} ?/ ?{_NUMBER}")
_CLAIM = re.compile(rf"{_NUMBER} ?[/:÷] ?{_NUMBER} ?= ?(.+)")
_PROOF = re.compile(rf"{_NUMBER} ?= ?{_NUMBER} ?[*x×·] ?{_NUMBER}(?: ?\+ ?{_NUMBER})?")
_BOXED = re.compile(r"\\boxed\s*\{([^{}]*)\}")
_DRESSING = re.compile(r"\\(?:text|mathrm|textbf)\s*\{([^{}]*)\}|\\[ ,;:!]|[$]")


def read_division(text: str, divisor: int | None = None) -> tuple[int, int] | None:
    """(quotient, remainder) of an answer; a number alone has remainder 0; None: unreadable.

    `divisor` is needed for the ways that name it: `141 1/6`, `847 = 6 * 141 + 1`.
    """
    text = text.strip()
    if boxed := _BOXED.fullmatch(text.strip("$. ")):
        text = boxed[1]
    text = _DRESSING.sub(r" \1 ", text.replace("\\times", "*").replace("\\div", "/"))
    text = " ".join(text.split()).removesuffix(".").rstrip()
    if claim := _CLAIM.fullmatch(text):
        if int(claim[2]) != divisor:
            return None
        text = claim[3]
    for form in _FORMS:
        if found := form.fullmatch(text):
            return int(found[1]), int(found[2])
    if found := _BACKWARDS.fullmatch(text):
        return int(found[2]), int(found[1])
    if alone := _ALONE.fullmatch(text):
        return int(alone[1]), 0
    return _with_divisor(text, divisor) if divisor else None


def _with_divisor(text: str, divisor: int) -> tuple[int, int] | None:
    if found := _MIXED.fullmatch(text):
        # A reduced fraction is the same remainder: 2 1/2 of a division by 4 has remainder 2.
        quotient, above, below = (int(found[i]) for i in (1, 2, 3))
        if below and divisor % below == 0 and above < below:
            return quotient, above * (divisor // below)
        return None
    if found := _PROOF.fullmatch(text):
        whole, one, two, rest = (int(found[i] or 0) for i in (1, 2, 3, 4))
        if whole == one * two + rest and divisor in (one, two):
            return (two if one == divisor else one), rest
    return None


def reward(problem: Problem, completion: Completion) -> Verdict:
    """1.0 for the right quotient and remainder, else 0.0."""
    if completion.answer is None:
        return Verdict(0.0, "no answer")
    # Long text is refused before any pattern sees it.
    divisor = problem.metadata.get("divisor")
    found = read_division(completion.answer, divisor) if len(completion.answer) <= 200 else None
    if found is None:
        return Verdict(0.0, "not a quotient with a remainder")
    right = read_division(problem.answer, divisor)
    if right is None:
        raise ValueError(f"problem {problem.id}: the gold answer {problem.answer!r} is no division")
    if found == right:
        return Verdict(1.0, "right quotient and remainder")
    if found[0] == right[0]:
        return Verdict(0.0, "right quotient, wrong remainder")
    return Verdict(0.0, "wrong quotient")
