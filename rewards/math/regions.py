"""Sets of real numbers: unions of intervals, and the inequalities that describe them."""

from __future__ import annotations

import itertools
from fractions import Fraction
from typing import Any, NamedTuple

from r1lab.rewards.math.grammar import Node, has, neg, number
from r1lab.rewards.math.tree import is_polynomial, names_of
from r1lab.rewards.math.values import Undefined, context, evaluate, is_real, lift

# The same inequality read from the right.
REGIONS = {"<": ">", ">": "<", "<=": ">=", ">=": "<=", "!=": "!="}
_DIGITS = 64
_TEXTS = frozenset({"R", "all real numbers", "real numbers", "reals"})


class Piece(NamedTuple):
    """One interval; an end of None is infinite."""

    low: Any
    has_low: bool
    high: Any
    has_high: bool


Region = list[Piece]


def is_region(node: Node) -> bool:
    """Whether the node can only be a set of numbers: a pair in round brackets alone may not be."""
    if node.kind in ("inequality", "union", "minus", "cap"):
        return True
    if node.kind == "tuple" and len(node.args) == 2:
        return node.value != "()" or any(has(arg, "const") and _is_infinite(arg) is not None
                                         for arg in node.args)  # fmt: skip
    if node.kind == "list":
        return all(member.kind == "inequality" for member in node.args)
    return node.kind == "text" and node.value in _TEXTS


def as_region(node: Node) -> Region | None:
    """The intervals, sorted and merged; None where the node is no set of numbers."""
    try:
        pieces = _pieces(node)
    except Undefined:
        return None
    return None if pieces is None else _merged(pieces)


def _pieces(node: Node) -> Region | None:
    if node.kind == "text":
        return [Piece(None, False, None, False)] if node.value in _TEXTS else None
    if node.kind == "named":
        return _pieces(node.args[1])
    if node.kind == "tuple" and len(node.args) == 2:
        low, high = node.args
        ends = [None if _is_infinite(end) is not None else _real(end) for end in (low, high)]
        if _is_infinite(low) == 1 or _is_infinite(high) == -1:
            return None
        return [Piece(ends[0], node.value[0] == "[", ends[1], node.value[1] == "]")]
    if node.kind == "set":
        points = [_real(arg) for arg in node.args]
        return [Piece(point, True, point, True) for point in points]
    if node.kind == "inequality":
        return _solved(node)
    if node.kind == "minus":
        whole, points = as_region(node.args[0]), as_region(node.args[1])
        if whole is None or points is None or any(p.low is None or p.low != p.high for p in points):
            return None
        for point in points:
            whole = _without(whole, point.low)
        return whole
    if node.kind in ("union", "list"):
        parts = [as_region(arg) for arg in node.args]
        if any(part is None for part in parts):
            return None
        if node.kind == "list" and node.value in ("and", ",") and len(parts) == 2:
            meeting = _two_rays(parts[0], parts[1])  # type: ignore[arg-type]
            if meeting is not None:
                return meeting
        return [piece for part in parts if part for piece in part]
    return None


def _two_rays(one: Region, two: Region) -> Region | None:
    """`x > 1 and x < 3`: the interval between; None where the rays do not overlap."""
    if len(one) != 1 or len(two) != 1:
        return None
    left, right = (one[0], two[0]) if one[0].high is None else (two[0], one[0])
    if left.high is not None or right.low is not None or left.low is None or right.high is None:
        return None
    if left.low > right.high:
        return None
    return [Piece(left.low, left.has_low, right.high, right.has_high)]


def _is_infinite(node: Node) -> int | None:
    """1 or -1 for plus or minus infinity, None for anything else."""
    if node.kind == "const":
        return 1 if node.value == "infty" else None
    if node.kind == "mul" and len(node.args) == 2 and node.args[0] == number(-1):
        inner = _is_infinite(node.args[1])
        return None if inner is None else -inner
    return None


def _real(node: Node) -> Any:
    if node.kind not in ("num", "mul", "add", "pow", "inv", "const", "call", "sym", "percent"):
        raise Undefined("no number")
    mp = context(_DIGITS)
    value = evaluate(node, {}, mp)
    if not is_real(value, mp):
        raise Undefined("not real")
    return value if isinstance(value, Fraction) else mp.mpf(value.real)


def _solved(node: Node) -> Region | None:
    """The numbers that satisfy an inequality that is linear in one unknown."""
    if len(node.args) == 3:
        left, middle, right = node.args
        if not _is_variable(middle):
            return None
        pieces = [
            _ray(_real(left), REGIONS[node.value[0]]),
            _ray(_real(right), node.value[1]),
        ]
        return _two_rays(*pieces)
    if len(node.args) != 2:
        return None
    left, right = node.args
    sign = node.value[0]
    for variable, other, direction in ((left, right, sign), (right, left, REGIONS[sign])):
        if _is_variable(variable) and not names_of(other):
            return _ray(_real(other), direction)
    names = names_of(left) | names_of(right)
    if len(names) != 1 or not (is_polynomial(left) and is_polynomial(right)):
        return None
    difference, mp, (name,) = Node("add", (left, neg(right))), context(_DIGITS), tuple(names)
    places = [Fraction(x) for x in ("0", "1", "-19/7", "283/11", "-4001/13")]
    at = [evaluate(difference, {name: x}, mp) for x in places]
    slope = at[1] - at[0]
    if not all(isinstance(value, Fraction) for value in at) or slope == 0:
        return None
    if any(value - at[0] != x * slope for x, value in zip(places, at, strict=True)):
        return None
    return _ray(-at[0] / slope, sign if slope > 0 else REGIONS[sign])


def _is_variable(node: Node) -> bool:
    return node.kind in ("sym", "opaque") and bool(names_of(node) or node.kind == "opaque")


def _ray(end: Any, sign: str) -> Region:
    if sign == "!=":
        return [Piece(None, False, end, False), Piece(end, False, None, False)]
    if sign[0] == ">":
        return [Piece(end, sign == ">=", None, False)]
    return [Piece(None, False, end, sign == "<=")]


def _equal(one: Any, two: Any) -> bool:
    if one is None or two is None:
        return one is two
    if isinstance(one, Fraction) and isinstance(two, Fraction):
        return one == two
    mp = context(_DIGITS)
    one, two = lift(one, mp), lift(two, mp)
    return bool(abs(one - two) <= mp.mpf(10) ** -40 * (1 + abs(one)))


def _order(value: Any) -> Any:
    mp = context(_DIGITS)
    return mp.mpf("-inf") if value is None else lift(value, mp)


def _merged(pieces: Region) -> Region:
    pieces = sorted(pieces, key=lambda piece: (_order(piece.low), not piece.has_low))
    merged: Region = []
    for piece in pieces:
        if merged:
            last = merged[-1]
            touching = last.high is None or (
                piece.low is not None
                and (
                    (_equal(piece.low, last.high) and (piece.has_low or last.has_high))
                    or (not _equal(piece.low, last.high) and _order(piece.low) < _order(last.high))
                )
            )
            if touching:
                merged[-1] = _joined(last, piece)
                continue
        merged.append(piece)
    return merged


def _joined(last: Piece, piece: Piece) -> Piece:
    if last.high is None or piece.high is None:
        return last._replace(high=None, has_high=False)
    if _equal(last.high, piece.high):
        return last._replace(has_high=last.has_high or piece.has_high)
    if _order(piece.high) > _order(last.high):
        return last._replace(high=piece.high, has_high=piece.has_high)
    return last


def _without(region: Region, point: Any) -> Region:
    result: Region = []
    for piece in region:
        above = piece.low is None or _order(point) > _order(piece.low)
        below = piece.high is None or _order(point) < _order(piece.high)
        if above and below:
            result += [piece._replace(high=point, has_high=False),
                       piece._replace(low=point, has_low=False)]  # fmt: skip
        else:
            if piece.low is not None and _equal(point, piece.low):
                piece = piece._replace(has_low=False)
            if piece.high is not None and _equal(point, piece.high):
                piece = piece._replace(has_high=False)
            result.append(piece)
    return result


def same_regions(one: Region, two: Region) -> bool:
    """Whether two merged regions have the same pieces."""
    return len(one) == len(two) and all(
        _equal(a.low, b.low)
        and _equal(a.high, b.high)
        and a.has_low == b.has_low
        and a.has_high == b.has_high
        for a, b in zip(one, two, strict=True)
    )


def holds_in(inequality: Node, region: Region) -> bool:
    """Whether an inequality in one unknown holds in the region and nowhere else, by its ends."""
    names = frozenset().union(*(names_of(side) for side in inequality.args))
    found = [end for piece in region for end in (piece.low, piece.high) if end is not None]
    ends = sorted({end if isinstance(end, Fraction) else Fraction(str(end)) for end in found})
    if len(names) != 1 or not ends or len(ends) > 40:
        return False
    (name,) = names
    between = [(a + b) / 2 for a, b in itertools.pairwise(ends)]
    near = [end + shift for end in ends for shift in (Fraction(-1, 10**9), Fraction(1, 10**9))]
    outside = [ends[0] - 1, ends[-1] + 1, ends[0] - 1000, ends[-1] + 1000]
    for x in (*ends, *between, *near, *outside):
        inside = any(
            (p.low is None or x > p.low or (p.has_low and x == p.low))
            and (p.high is None or x < p.high or (p.has_high and x == p.high))
            for p in region
        )
        if _holds(inequality, {name: x}) != inside:
            return False
    return True


def _holds(inequality: Node, point: dict[str, Fraction]) -> bool:
    mp = context(_DIGITS)
    try:
        values = [evaluate(side, point, mp) for side in inequality.args]
    except Undefined:
        return False
    if not all(is_real(value, mp) for value in values):
        return False
    for one, two, sign in zip(values, values[1:], inequality.value, strict=False):
        equal = _equal(one, two)
        less = not equal and _order(one) < _order(two)
        if {"<": not less, "<=": not (less or equal), ">": less or equal, ">=": less,
            "!=": equal}[sign]:  # fmt: skip
            return False
    return True
