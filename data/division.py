"""Long division by one digit, with quotient and remainder.

Compact form: `847 / 6 = ?`, answer `141 r 1`.
"""

from __future__ import annotations

import random

from r1lab.data.streams import Draft, GeneratedProblems, SolutionWriter, check_range
from r1lab.types import Problem

SEPARATOR = " , "


def load(
    split: str,
    *,
    seed: int = 0,
    form: str = "compact",
    min_digits: int = 2,
    max_digits: int = 4,
) -> GeneratedProblems:
    """Numbers of `min_digits` to `max_digits` divided by 2 to 9."""
    check_range("digits", min_digits, max_digits, least=1, most=12)

    def make(rng: random.Random) -> Draft:
        digits = rng.randint(min_digits, max_digits)
        dividend = rng.randint(10 ** (digits - 1), 10**digits - 1)
        divisor = rng.randint(2, 9)
        quotient, remainder = divmod(dividend, divisor)
        return Draft(
            question=f"{dividend} / {divisor} = ?",
            answer=f"{quotient} r {remainder}",
            verifier="division",
            metadata={"dividend": dividend, "divisor": divisor},
            words=f"Divide {dividend} by {divisor}. Give the quotient and the remainder, "
            "like this: 7 r 2.",
        )

    return GeneratedProblems("division", make, split=split, seed=seed, form=form)


def solve(problem: Problem, work: SolutionWriter) -> str:
    """Bring down digit by digit; return quotient and remainder as the work arrives at them."""
    divisor, remainder, quotient = problem.metadata["divisor"], 0, ""
    for digit in str(problem.metadata["dividend"]):
        part = remainder * 10 + int(digit)
        found = work.step(
            divmod(part, divisor),
            lambda pair, part=part: f"{part} / {divisor} = {pair[0]} r {pair[1]}",
            lambda rng, part=part: _slip(divmod(part, divisor), divisor, rng),
        )
        quotient, remainder = quotient + str(found[0]), found[1]
    return f"{int(quotient)} r {remainder}"


def _slip(right: tuple[int, int], divisor: int, rng: random.Random) -> tuple[int, int]:
    quotient = right[0]
    options = [(q, r) for q in (quotient - 1, quotient, quotient + 1) for r in range(divisor)]
    return rng.choice([(q, r) for q, r in options if 0 <= q <= 9 and (q, r) != right])


def guess(problem: Problem, rng: random.Random) -> str:
    """A wrong answer of about the right size."""
    divisor = problem.metadata["divisor"]
    quotient, remainder = divmod(problem.metadata["dividend"], divisor)
    off = rng.choice([-10, -2, -1, 1, 2, 10])
    return (
        f"{max(quotient + off, 0)} r {rng.randrange(divisor)}"
        if rng.random() < 0.7
        else (f"{quotient} r {(remainder + rng.randint(1, divisor - 1)) % divisor}")
    )


def drill(rng: random.Random) -> str:
    """One division with remainder on its own, as a fact."""
    divisor = rng.randint(2, 9)
    part = rng.randrange(divisor * 10)
    return f"{part} / {divisor} = {part // divisor} r {part % divisor}"
