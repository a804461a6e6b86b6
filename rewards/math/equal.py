"""Are two trees the same answer? The policy of docs/verifiers.md.

`same(gold, given)` settles what each side claims (a named value, an equation, a set of numbers, a
list) and compares claims of one kind.
"""

from __future__ import annotations

from itertools import pairwise

from r1lab.rewards.math.grammar import Node, Unreadable, has, is_whole, neg, number
from r1lab.rewards.math.regions import REGIONS, as_region, holds_in, is_region, same_regions
from r1lab.rewards.math.scalars import multiples, scalars_agree
from r1lab.rewards.math.settle import Contradiction, bare, settle, unit_of
from r1lab.rewards.math.tree import as_matrix, names_of
from r1lab.rewards.math.units import conversion

_MOST_MEMBERS = 60


def same(gold: Node, given: Node) -> bool:
    """Whether the trees are the same answer. Raises Unreadable for what cannot be judged."""
    try:
        gold, given = settle(gold, scalars_agree), settle(given, scalars_agree)
    except Contradiction:
        return False
    gold, given = _single(gold), _single(given)
    # A set of one member is that member, where the other side is no collection of several.
    if gold.kind == "set" and len(gold.args) == 1 and given.kind not in ("list", "set"):
        gold = gold.args[0]
    elif given.kind == "set" and len(given.args) == 1 and gold.kind not in ("list", "set"):
        given = given.args[0]
    return agree(gold, given)


def _single(node: Node) -> Node:
    """The value that a list gives twice; the node itself for anything else."""
    if node.kind != "list" or len(node.args) > _MOST_MEMBERS:
        return node
    first, *rest = node.args
    return first if all(agree(first, other) for other in rest) else node


def agree(gold: Node, given: Node) -> bool:
    """`same`, for sides that are settled already."""
    if gold == given:
        return True
    kinds = {gold.kind, given.kind}
    if "named" in kinds or "equation" in kinds:
        return _equations_agree(gold, given)
    if "list" in kinds or "set" in kinds:
        return _collections_agree(gold, given)
    if is_region(gold) or is_region(given):
        return _regions_agree(gold, given)
    if "tuple" in kinds or has(gold, "matrix") or has(given, "matrix"):
        return _tables_agree(gold, given)
    if "ratio" in kinds:
        return gold.kind == given.kind and _ratios_agree(gold, given)
    if "text" in kinds or "base" in kinds:
        return gold.kind == given.kind and gold.value == given.value
    return _quantities_agree(gold, given)


def _equations_agree(gold: Node, given: Node) -> bool:
    if gold.kind == "named" and given.kind == "named":
        if agree(gold.args[0], given.args[0]):
            return agree(gold.args[1], given.args[1])
        name, other = gold.args[0], given.args[0]
        one_function = name.kind == other.kind == "opaque" and name.value == other.value
        if one_function and all(arg.kind == "sym" for arg in (*name.args, *other.args)):
            renaming = {b.value: a for a, b in zip(name.args, other.args, strict=False)}
            return agree(gold.args[1], _renamed(given.args[1], renaming))
    elif "equation" not in (gold.kind, given.kind):
        value, other = (gold, given) if gold.kind == "named" else (given, gold)
        return agree(value.args[1], other)
    if any(node.kind not in ("named", "equation") for node in (gold, given)):
        return False
    if any(is_region(node.args[1]) or node.args[1].kind in _MANY for node in (gold, given)):
        return False
    one, two = (Node("add", (node.args[0], neg(node.args[1]))) for node in (gold, given))
    if has(one, "text") or has(two, "text"):
        return False
    return names_of(one) == names_of(two) and multiples(one, two, positive=False)


_MANY = ("list", "set", "tuple", "matrix", "text", "ratio", "base")


def _renamed(node: Node, renaming: dict[str, Node]) -> Node:
    if node.kind == "sym":
        return renaming.get(node.value, node)
    return node._replace(args=tuple(_renamed(arg, renaming) for arg in node.args))


def _collections_agree(gold: Node, given: Node) -> bool:
    if (is_region(gold) or is_region(given)) and _regions_agree(gold, given):
        return True
    if gold.kind not in ("list", "set", "tuple") or given.kind not in ("list", "set", "tuple"):
        table = as_matrix(gold) or as_matrix(given)
        return table is not None and _tables_agree(gold, given)
    if max(len(gold.args), len(given.args)) > _MOST_MEMBERS:
        raise Unreadable("a collection beyond the limit")
    if "tuple" in (gold.kind, given.kind):
        other = given if gold.kind == "tuple" else gold
        if other.kind == "set" or (other.kind == "list" and other.value == "or"):
            return False
        return _in_order(gold.args, given.args)
    one, two = gold.args, given.args
    if _distinct_names(one) != _distinct_names(two):
        return _in_order(one, two)
    return all(any(agree(a, b) for b in two) for a in one) and all(
        any(agree(a, b) for a in one) for b in two
    )


def _distinct_names(members: tuple[Node, ...]) -> bool:
    """Whether the members are values of different names: x = 1, y = 2."""
    names = [member.args[0] for member in members if member.kind == "named"]
    return len(names) == len(members) > 1 and len(set(names)) == len(names)


def _in_order(one: tuple[Node, ...], two: tuple[Node, ...]) -> bool:
    return len(one) == len(two) and all(agree(a, b) for a, b in zip(one, two, strict=True))


def _regions_agree(gold: Node, given: Node) -> bool:
    if gold.kind == given.kind == "inequality":
        if _inequalities_agree(gold, given):
            return True
        if names_of(gold) != names_of(given):
            return False
    one, two = as_region(gold), as_region(given)
    if one is not None and two is not None:
        return same_regions(one, two)
    if one is not None and given.kind == "inequality":
        return holds_in(given, one)
    return two is not None and gold.kind == "inequality" and holds_in(gold, two)


def _inequalities_agree(gold: Node, given: Node) -> bool:
    for sides, signs in (
        (given.args, given.value),
        (given.args[::-1], tuple(REGIONS[sign] for sign in given.value[::-1])),
    ):
        if signs == gold.value and all(
            scalars_agree(a, b) for a, b in zip(gold.args, sides, strict=True)
        ):
            return True
    if len(gold.value) != 1 or len(given.value) != 1:
        return False
    parts = []
    for node in (gold, given):
        left, right = node.args
        if node.value[0] in ("<", "<="):
            left, right = right, left
        parts.append(Node("add", (left, neg(right))))
    strict = [node.value[0].rstrip("=") == node.value[0] for node in (gold, given)]
    unequal = [node.value[0] == "!=" for node in (gold, given)]
    if strict[0] != strict[1] or unequal[0] != unequal[1]:
        return False
    return multiples(parts[0], parts[1], positive=not unequal[0])


def _tables_agree(gold: Node, given: Node) -> bool:
    if gold.kind == given.kind == "tuple":
        return _in_order(gold.args, given.args)
    tables = [as_matrix(node) for node in (gold, given)]
    if tables[0] is not None and tables[1] is not None:
        one, two = tables
        return len(one) == len(two) and all(
            _in_order(tuple(a), tuple(b)) for a, b in zip(one, two, strict=True)
        )
    table, other = (tables[0], given) if tables[0] is not None else (tables[1], gold)
    if table is None or other.kind not in ("tuple", "list") or min(len(table), len(table[0])) > 1:
        return False
    return _in_order(tuple(cell for row in table for cell in row), other.args)


def _ratios_agree(gold: Node, given: Node) -> bool:
    one, two = gold.args, given.args
    if len(one) != len(two):
        return False
    if _in_order(one, two):
        return True
    if _is_clock_time(one) and _is_clock_time(two):
        return False
    return all(
        scalars_agree(Node("mul", (a, d)), Node("mul", (b, c)))
        for (a, b), (c, d) in zip(pairwise(one), pairwise(two), strict=True)
    ) and not any(scalars_agree(arg, number(0)) for arg in (*one, *two))


def _is_clock_time(sides: tuple[Node, ...]) -> bool:
    """Whether a ratio may be a time of day: 4:30 is not 8:60, and 2:30 is not 1:15."""
    whole = [side.value for side in sides if is_whole(side)]
    return len(whole) == len(sides) == 2 and 0 <= whole[0] <= 24 and 10 <= whole[1] < 60


def _quantities_agree(gold: Node, given: Node) -> bool:
    """Scalars, each perhaps with a unit, a percent sign or a degree sign."""
    unit_gold, unit_given = unit_of(gold), unit_of(given)
    one, two = bare(gold), bare(given)
    if unit_gold and unit_given:
        factor = conversion(unit_gold, unit_given)
        if factor is None:
            return False
        if factor != 1:
            two = Node("mul", (number(factor), two))
    if {gold.kind, given.kind} == {"percent", "degree"}:
        return False
    if scalars_agree(one, two):
        return True
    if "percent" in (gold.kind, given.kind) or "degree" in (gold.kind, given.kind):
        # The value that the sign stands for: 50% is 1/2, 180 degrees are pi.
        return gold.kind != given.kind and scalars_agree(gold, given)
    return False
