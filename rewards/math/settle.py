"""What a tree claims: a named value, an equation, a set of numbers, a list, a quantity."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction

from r1lab.rewards.math.grammar import Node, Unreadable, has, neg, number
from r1lab.rewards.math.tree import names_of
from r1lab.rewards.math.units import conversion, read_unit

_MOST_SPREAD = 4  # plus-minus signs in one answer


class Contradiction(ValueError):
    """A chain of equalities with a wrong link."""


Agree = Callable[[Node, Node], bool]


def settle(node: Node, agree: Agree) -> Node:
    """The claim of a tree, its parts settled too. Raises Contradiction and Unreadable.

    Claims: named (name, value), equation (left, right), inequality, list, set, tuple, union, minus,
    quantity (expression; unit), and any expression as it is.
    """
    if node.kind == "rel":
        return _relation(node, agree)
    if node.kind in ("list", "set", "tuple", "union", "minus", "cap"):
        args = _without_remarks(node.args) if node.kind == "list" else node.args
        if len(args) == 1 and node.kind == "list":
            return settle(args[0], agree)
        members = [settle(arg, agree) for arg in args]
        if node.kind in ("list", "set"):
            members = [m for member in members for m in _spread(member)]
            if node.kind == "set" and len(members) == 1 and members[0].kind == "list":
                members = list(members[0].args)
        return Node(node.kind, tuple(members), node.value)
    spread = _spread(node)
    if len(spread) > 1:
        return Node("list", tuple(spread), "or")
    return pack(node)


def _without_remarks(args: tuple[Node, ...]) -> tuple[Node, ...]:
    """Without `k \\in \\mathbb{Z}` beside the expression that holds k."""
    kept = tuple(arg for arg in args if not _says_whole(arg))
    names = frozenset().union(*(names_of(arg) for arg in kept)) if kept else frozenset()
    remarks = [arg for arg in args if _says_whole(arg)]
    return kept if kept and all(arg.args[0].value in names for arg in remarks) else args


def _says_whole(node: Node) -> bool:
    return (
        node.kind == "rel"
        and node.value == ("in",)
        and node.args[0].kind == "sym"
        and node.args[1].kind == "text"
        and node.args[1].value in ("Z", "N")
    )


def _relation(node: Node, agree: Agree) -> Node:
    sides, signs = list(node.args), list(node.value)
    if "to" in signs or "notin" in signs:
        raise Unreadable("an arrow")
    if "~" in signs:
        # What stands behind an approximation is a remark, unless nothing but a name is before it.
        cut = signs.index("~")
        if cut == 0 and is_name(sides[0]):
            signs[0] = "="
            cut = signs.index("~") if "~" in signs else len(signs)
        sides, signs = sides[: cut + 1], signs[:cut]
    if not signs:
        return settle(sides[0], agree)
    if signs[-1] == "in" and len(signs) == 1:
        return Node("named", (sides[0], settle(sides[1], agree)))
    if any(sign == "in" for sign in signs):
        raise Unreadable("membership in a chain")
    if all(sign == "=" for sign in signs):
        return _equality(sides, agree)
    if any(sign == "=" for sign in signs):
        if signs[0] == "=" and is_name(sides[0]) and len(signs) > 1:
            return _relation(Node("rel", tuple(sides[1:]), tuple(signs[1:])), agree)
        raise Unreadable("equality in a chain of inequalities")
    if len(signs) > 1 and len({sign[0] for sign in signs}) > 1:
        raise Unreadable("a chain of inequalities in two directions")
    return Node("inequality", tuple(sides), tuple(signs))


def _equality(sides: list[Node], agree: Agree) -> Node:
    fixed = [side for side in sides if _is_fixed(side)]
    for other in fixed[1:]:
        one, two = pack(fixed[0]), pack(other)
        if not agree(bare(one), bare(two)) and not _signs(one, two, agree):
            raise Contradiction("a chain of equalities with a wrong link")
    if len(fixed) == len(sides):
        return settle(sides[-1], agree)
    if sides[0].kind == "text" and not sides[0].value:
        return settle(sides[-1], agree)
    if is_name(sides[0]):
        return Node("named", (_flat_name(sides[0]), settle(sides[-1], agree)))
    if is_name(sides[-1]) and len(sides) == 2 and _is_fixed(sides[0]):
        return Node("named", (_flat_name(sides[-1]), settle(sides[0], agree)))
    if len(sides) == 2:
        return Node("equation", tuple(sides))
    raise Unreadable("a chain of equations")


def _signs(one: Node, two: Node, agree: Agree) -> bool:
    """0.56 = 56%: equal by the value of a sign."""
    signed = {one.kind, two.kind} & {"percent", "degree"}
    return bool(signed) and "quantity" not in (one.kind, two.kind) and agree(one, two)


def _is_fixed(node: Node) -> bool:
    """A number without unknowns, so that a link of a chain can be checked."""
    odd = (
        "matrix",
        "tuple",
        "set",
        "list",
        "text",
        "ratio",
        "base",
        "pm",
        "union",
        "opaque",
        "rel",
    )
    return not names_of(node) and not has(pack(node) if node.kind == "mul" else node, *odd)


def is_name(node: Node) -> bool:
    """A name that may stand before an equals sign: x, f(x), |AB|, A:B, NO/BO, (p, q)."""
    if node.kind in ("sym", "opaque", "text"):
        return True
    if node.kind == "call":
        return node.value in ("abs", "sin", "cos", "tan") and is_name(node.args[0])
    return node.kind in ("mul", "inv", "ratio", "tuple", "degree") and all(
        is_name(arg) for arg in node.args
    )


def _flat_name(node: Node) -> Node:
    """P(A) is a name as a whole, not a product of P and A that could be turned round."""
    return Node("text", (), repr(node)) if node.kind == "mul" else node


def _spread(node: Node) -> list[Node]:
    """Both readings of an expression with a plus-minus sign; the node alone where it has none."""
    if node.kind == "named":
        return [Node("named", (node.args[0], value)) for value in _spread(node.args[1])]
    if node.kind == "list":
        return [part for arg in node.args for part in _spread(arg)]
    if not has(node, "pm"):
        return [node]
    if _count(node) > _MOST_SPREAD:
        raise Unreadable("too many plus-minus signs")
    return [pack(_choose(node, upper=upper)) for upper in (True, False)]


def _count(node: Node) -> int:
    return (node.kind == "pm") + sum(_count(arg) for arg in node.args)


def _choose(node: Node, *, upper: bool) -> Node:
    args = tuple(_choose(arg, upper=upper) for arg in node.args)
    if node.kind != "pm":
        return node._replace(args=args)
    return args[0] if upper == (node.value == "pm") else neg(args[0])


def pack(node: Node) -> Node:
    """A product of a number and words as a quantity with a unit."""
    if node.kind != "mul" or not has(node, "text"):
        return node
    factors, units = [], []
    for arg in node.args:
        unit = _as_unit(arg)
        if unit is None:
            factors.append(arg)
        else:
            units.append(unit)
    if not factors or len(units) != 1:
        if not factors or any(has(factor, "text") for factor in factors):
            return Node("text", (), repr(node))
        units = [(" ".join(unit[0] for unit in units), 1)]
    if len(factors) > 1 and (total := _in_parts(node.args)) is not None:
        return total
    core = factors[0] if len(factors) == 1 else Node("mul", tuple(factors))
    if len(factors) > 1 and factors[0] == Node("num", (), -1) and factors[1].kind == "mul":
        core = neg(pack(factors[1]))
    return Node("quantity", (core,), units[0])


def _in_parts(args: tuple[Node, ...]) -> Node | None:
    """3 hours 20 minutes: one quantity, where the units measure the same; else None."""
    units = [_as_unit(arg) for arg in args[1::2]]
    if len(args) % 2 or None in units or not all(arg.kind == "num" for arg in args[::2]):
        return None
    total = Fraction(0)
    for value, unit in zip(args[::2], units, strict=True):
        factor = conversion(units[0], unit)  # type: ignore[arg-type]
        if factor is None or read_unit(*unit)[1] is None:  # type: ignore[misc]
            return None
        total += value.value * factor
    return Node("quantity", (number(total),), units[0])


def _as_unit(node: Node) -> tuple[str, int] | None:
    if node.kind == "text":
        return str(node.value), 1
    if node.kind == "pow" and node.args[0].kind == "text" and node.args[1].kind == "num":
        power = node.args[1].value
        return (str(node.args[0].value), int(power)) if abs(power) < 10 else None
    return None


def unit_of(node: Node) -> tuple[str, int] | None:
    """(words, exponent) of a quantity's unit."""
    if node.kind == "quantity":
        unit: tuple[str, int] = node.value
        return unit
    return ("degree", 1) if node.kind == "degree" else None


def bare(node: Node) -> Node:
    """The expression without its unit, percent sign or degree sign."""
    return node.args[0] if node.kind in ("quantity", "percent", "degree") else node
