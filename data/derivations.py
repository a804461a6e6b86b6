"""Simple derivations: simplify an expression, or solve an equation, as a chain of equalities.

Compact forms: `simplify ( 3 + 4 ) * 2 - 5`, answer `9`, worked as
`( 3 + 4 ) * 2 - 5 = 7 * 2 - 5 = 14 - 5 = 9`; and `solve 3 x + 4 = 19`, answer `5`, worked as
`3 x = 19 - 4 = 15 , x = 15 / 3 = 5`.
"""

from __future__ import annotations

import random

from r1lab.data.streams import Draft, GeneratedProblems, SolutionWriter, check_range, slipped_number
from r1lab.types import Problem

KINDS = ("simplify", "solve")
SEPARATOR = " "
_LARGEST = 99
_SHAPES = {
    2: ("a o b o c", "( a o b ) * c", "a * ( b o c )", "a o ( b o c )"),
    3: (
        "( a o b ) * c o d", "a * b o c * d", "( a o b ) * ( c o d )", "a o b * c o d",
        "a * ( b o c ) o d",
    ),
}  # fmt: skip


def _apply(left: int, sign: str, right: int) -> int:
    return {"+": left + right, "-": left - right, "*": left * right}[sign]


def next_reduction(tokens: list[str]) -> tuple[int, int] | None:
    """Where the next operation stands: (place of its left operand, places it takes up).

    Brackets first, then products, then from the left. A bracket around two numbers is taken away
    with its operation. None: the expression is a number already.
    """
    if len(tokens) == 1:
        return None
    if "(" in tokens:
        end = tokens.index(")")
        start = max(i for i in range(end) if tokens[i] == "(")
        if end == start + 4:
            return start, 5
        inner = next_reduction(tokens[start + 1 : end])
        assert inner is not None
        return start + 1 + inner[0], inner[1]
    signs = range(1, len(tokens), 2)
    place = next((i for i in signs if tokens[i] == "*"), signs[0])
    return place - 1, 3


def _reduce(tokens: list[str], place: int, width: int, value: int) -> list[str]:
    return [*tokens[:place], str(value), *tokens[place + width :]]


def _operation(tokens: list[str], place: int, width: int) -> tuple[int, str, int]:
    left, sign, right = tokens[place + (width == 5) : place + (width == 5) + 3]
    return int(left), sign, int(right)


def _evaluates(tokens: list[str]) -> int | None:
    """The value, or None where a step leaves 0 to 99, which the small base has not been taught."""
    while (found := next_reduction(tokens)) is not None:
        value = _apply(*_operation(tokens, *found))
        if not 0 <= value <= _LARGEST:
            return None
        tokens = _reduce(tokens, *found, value)
    return int(tokens[0])


def _draft_simplify(rng: random.Random, operators: tuple[int, int]) -> Draft:
    while True:
        shape = rng.choice(_SHAPES[rng.randint(*operators)]).split()
        fill = {"o": lambda: rng.choice("+-"), "*": lambda: "*"}
        tokens = [
            str(rng.randint(1, 9)) if token in "abcd" else fill.get(token, lambda t=token: t)()
            for token in shape
        ]
        value = _evaluates(tokens)
        if value is not None:
            expression = " ".join(tokens)
            return Draft(
                question=f"simplify {expression}",
                answer=str(value),
                verifier="math",
                metadata={"kind": "simplify", "expression": expression},
                words=f"Simplify {expression} step by step to one number.",
            )


def _draft_solve(rng: random.Random) -> Draft:
    while True:
        factor, unknown, added = rng.randint(2, 9), rng.randint(1, 12), rng.randint(1, 20)
        right = factor * unknown + added
        if right <= _LARGEST:
            return Draft(
                question=f"solve {factor} x + {added} = {right}",
                answer=str(unknown),
                verifier="math",
                metadata={"kind": "solve", "factor": factor, "added": added, "right": right},
                words=f"Solve {factor}x + {added} = {right} for x.",
            )


def load(
    split: str,
    *,
    seed: int = 0,
    form: str = "compact",
    kinds: tuple[str, ...] = KINDS,
    min_operators: int = 2,
    max_operators: int = 3,
) -> GeneratedProblems:
    """Expressions of that many operators over 1 to 9, and linear equations."""
    check_range("operators", min_operators, max_operators, least=2, most=3)
    if not kinds or any(kind not in KINDS for kind in kinds):
        raise ValueError(f"kinds: {list(kinds)} must be among {', '.join(KINDS)}")

    def make(rng: random.Random) -> Draft:
        if rng.choice(list(kinds)) == "solve":
            return _draft_solve(rng)
        return _draft_simplify(rng, (min_operators, max_operators))

    return GeneratedProblems("derivations", make, split=split, seed=seed, form=form)


def solve(problem: Problem, work: SolutionWriter) -> str:
    """Write the chain of equalities; return the number that it ends in."""
    if problem.metadata["kind"] == "solve":
        return _solve_equation(problem, work)
    tokens = problem.metadata["expression"].split()
    work.lines.append(" ".join(tokens))
    while (found := next_reduction(tokens)) is not None:
        value = _apply(*_operation(tokens, *found))
        tokens = work.step(
            _reduce(tokens, *found, value),
            lambda line: "= " + " ".join(line),
            lambda rng, now=tokens, found=found, value=value: _reduce(
                now, *found, slipped_number(value, rng)
            ),
        )
        # After a slip a difference may fall below zero: the chain ends there, as an unread rest.
        if (rest := next_reduction(tokens)) and _apply(*_operation(tokens, *rest)) < 0:
            return tokens[0] if tokens[0].isdigit() else str(value)
    return tokens[0]


def _solve_equation(problem: Problem, work: SolutionWriter) -> str:
    factor, added, right = (problem.metadata[key] for key in ("factor", "added", "right"))
    product = work.step(
        right - added,
        lambda value: f"{factor} x = {right} - {added} = {value} ,",
        lambda rng: slipped_number(right - added, rng),
    )
    unknown = work.step(
        product // factor,
        lambda value: f"x = {product} / {factor} = {value}",
        lambda rng: slipped_number(product // factor, rng),
    )
    return str(unknown)


def guess(problem: Problem, rng: random.Random) -> str:
    """A wrong answer near the right one."""
    answer = int(problem.answer)
    wrong = [answer + off for off in (-9, -4, -3, -2, -1, 1, 2, 3, 4, 9) if answer + off >= 0]
    return str(rng.choice(wrong))


def drill(rng: random.Random) -> str:
    """One operation on numbers up to 99, as a fact."""
    kind = rng.choice("+-*/")
    if kind == "*":
        left, right = rng.randint(1, 18), rng.randint(1, 9)
        if left * right > _LARGEST:
            left = rng.randint(1, 9)
        return f"{left} * {right} = {left * right}"
    if kind == "/":
        factor, unknown = rng.randint(2, 9), rng.randint(1, 12)
        return f"{factor * unknown} / {factor} = {unknown}"
    left, right = rng.randint(1, 90), rng.randint(1, 20)
    if kind == "+":
        return f"{left} + {right} = {left + right}"
    return f"{max(left, right)} - {min(left, right)} = {abs(left - right)}"
