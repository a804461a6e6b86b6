"""Addition and multiplication by one digit, worked column by column as at school.

Compact form: `347 + 859 = ?`, answer `1206`.
"""

from __future__ import annotations

import random

from r1lab.data.streams import Draft, GeneratedProblems, SolutionWriter, check_range, slipped_number
from r1lab.types import Problem

OPERATIONS = ("addition", "multiplication")
SEPARATOR = " , "


def _with_digits(rng: random.Random, digits: int) -> int:
    return rng.randint(10 ** (digits - 1), 10**digits - 1)


def load(
    split: str,
    *,
    seed: int = 0,
    form: str = "compact",
    operations: tuple[str, ...] = OPERATIONS,
    min_digits: int = 2,
    max_digits: int = 4,
    max_factor_digits: int = 3,
) -> GeneratedProblems:
    """Sums of two numbers of `min_digits` to `max_digits`, and products by one digit.

    The factor with several digits has `min_digits` to `max_factor_digits`.
    """
    check_range("digits", min_digits, max_digits, least=1, most=12)
    check_range("factor digits", min_digits, max_factor_digits, least=1, most=12)
    unknown = [name for name in operations if name not in OPERATIONS]
    if unknown or not operations:
        raise ValueError(f"operations: {list(operations)} must be among {', '.join(OPERATIONS)}")

    def make(rng: random.Random) -> Draft:
        if rng.choice(list(operations)) == "addition":
            left = _with_digits(rng, rng.randint(min_digits, max_digits))
            right = _with_digits(rng, rng.randint(min_digits, max_digits))
            sign, value, said = "+", left + right, "the sum of"
        else:
            left = _with_digits(rng, rng.randint(min_digits, max_factor_digits))
            right = rng.randint(2, 9)
            sign, value, said = "*", left * right, "the product of"
        return Draft(
            question=f"{left} {sign} {right} = ?",
            answer=str(value),
            verifier="math",
            metadata={"left": left, "sign": sign, "right": right},
            words=f"What is {said} {left} and {right}?",
        )

    return GeneratedProblems("arithmetic", make, split=split, seed=seed, form=form)


def solve(problem: Problem, work: SolutionWriter) -> str:
    """Write each column with its carry; return the number that the columns spell."""
    left, right = problem.metadata["left"], problem.metadata["right"]
    adding = problem.metadata["sign"] == "+"
    top = [int(digit) for digit in reversed(str(left))]
    low = [int(digit) for digit in reversed(str(right))]
    width = max(len(top), len(low)) if adding else len(top)
    carry, digits = 0, ""
    for column in range(width):
        if adding:
            terms = [d[column] for d in (top, low) if column < len(d)] + [carry] * (carry > 0)
            told, right_value = " + ".join(map(str, terms)), sum(terms)
        else:
            told = f"{top[column]} * {right}" + (f" + {carry}" if carry else "")
            right_value = top[column] * right + carry
        value = work.step(
            right_value,
            lambda number, told=told: f"{told} = {number}",
            lambda rng, value=right_value: slipped_number(value, rng),
        )
        carry, digits = value // 10, str(value % 10) + digits
    return str(int(f"{carry}{digits}"))


def guess(problem: Problem, rng: random.Random) -> str:
    """A wrong answer of about the right size: one or two digits changed."""
    digits = list(problem.answer)
    for _ in range(rng.randint(1, 2)):
        place = rng.randrange(len(digits))
        digits[place] = rng.choice([d for d in "0123456789" if d != digits[place]])
    guessed = str(int("".join(digits)))
    return guessed if guessed != problem.answer else str(int(problem.answer) + 1)


def drill(rng: random.Random) -> str:
    """One column on its own, as a fact."""
    left, right, carry = rng.randint(0, 9), rng.randint(0, 9), rng.randint(0, 8)
    if rng.random() < 0.3:
        carry = min(carry, 1)
        return f"{left} + {right}" + (f" + {carry}" if carry else "") + f" = {left + right + carry}"
    right = max(right, 2)
    carry = min(carry, right - 1)
    return f"{left} * {right}" + (f" + {carry}" if carry else "") + f" = {left * right + carry}"
