"""Have two expressions the same value everywhere?

Numbers are compared exactly where both are rational, else to more digits than both are long.
Expressions with names are compared at random points, which are rational themselves: at points of
both signs, and around every number in the expression where it may change its form (`|x - 3|`).
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

from r1lab.rewards.math.grammar import Node, Unreadable
from r1lab.rewards.math.tree import has_branches, names_of, numbers_in, weight
from r1lab.rewards.math.values import Undefined, Value, context, evaluate, is_real, lift

_POINTS = 5  # the first three with positive values alone, the fourth with negative ones
_FAR = (30, 300)
_MOST_ANCHORS = 6
_MOST_NAMES = 30
_MOST_DIGITS = 2048

SamplePoint = dict[str, Fraction]


def scalars_agree(gold: Node, given: Node) -> bool:
    """Whether two expressions have the same value everywhere. Raises Unreadable."""
    if gold == given:
        return True
    if gold.kind == "num" and given.kind == "num":
        return bool(gold.value == given.value)
    if gold.kind == "const" and given.kind == "const":
        return bool(gold.value == given.value)
    pairs = _values(gold, given)
    return bool(pairs) and all(_close(one, two, mp) for one, two, mp in pairs)


def multiples(one: Node, two: Node, *, positive: bool) -> bool:
    """Whether one expression is a fixed non-zero multiple of the other, and neither vanishes."""
    ratio: Value = None
    for left, right, mp in _values(one, two):
        left, right = lift(left, mp), lift(right, mp)
        if _close(left, mp.mpf(0), mp) or _close(right, mp.mpf(0), mp):
            return False
        if ratio is None:
            ratio = left / right
        elif not _close(ratio, left / right, mp):
            return False
    if ratio is None or not names_of(one):
        return False
    return not positive or (getattr(ratio, "imag", 0) == 0 and ratio > 0)


def _values(one: Node, two: Node) -> list[tuple[Value, Value, Any]]:
    """Both values at points where both are defined, real ones alone where there are any."""
    digits = 40 + 2 * (weight(one) + weight(two))
    mp = context(min(-(-digits // 64) * 64, _MOST_DIGITS))
    real, other = [], []
    for place, point in enumerate(_points(one, two)):
        try:
            pair = (evaluate(one, point, mp), evaluate(two, point, mp), mp)
        except Undefined:
            continue
        except Unreadable:
            if place >= _POINTS:  # too large far out
                continue
            raise
        exact = isinstance(pair[0], Fraction) and isinstance(pair[1], Fraction)
        if digits > _MOST_DIGITS and not exact:
            raise Unreadable("numbers beyond the limit")
        all_real = is_real(pair[0], mp) and is_real(pair[1], mp)
        (real if all_real else other).append(pair)
    return real or other


def _points(one: Node, two: Node) -> Iterator[SamplePoint]:
    """The same ones for the same pair."""
    names = sorted(names_of(one) | names_of(two))
    if not names:
        yield {}
        return
    if len(names) > _MOST_NAMES:
        raise Unreadable("too many names")
    draw = random.Random(zlib.crc32(repr((one, two)).encode()))
    for place in range(_POINTS):
        signs = (1,) if place < 3 else (-1,) if place == 3 else (1, -1)
        yield {
            name: Fraction(draw.randint(11, 499), draw.randint(101, 199)) * draw.choice(signs)
            for name in names
        }
    if not (has_branches(one) or has_branches(two)):
        return
    found = sorted({abs(value) for value in (*numbers_in(one), *numbers_in(two))})
    anchors = [Fraction(0), *(value for value in found if 0 < value < 10**6)][:_MOST_ANCHORS]
    near = [anchor + Fraction(draw.choice((-1, 1)) * draw.randint(1, 49), 97)
            for anchor in anchors for _ in range(4)]  # fmt: skip
    values = [sign * value for sign in (1, -1) for value in (*near, *map(Fraction, _FAR))]
    for value in values:
        yield {name: value if len(names) == 1 else draw.choice(values) for name in names}


def _close(one: Value, two: Value, mp: Any) -> bool:
    if isinstance(one, Fraction) and isinstance(two, Fraction):
        return one == two
    one, two = lift(one, mp), lift(two, mp)
    limit = mp.mpf(10) ** (-(mp.dps * 3) // 5)
    return bool(abs(one - two) <= limit * (1 + abs(one)))
