"""What can be said of a tree without its value: names, sizes, branches, the entries of matrices."""

from __future__ import annotations

from fractions import Fraction

from r1lab.rewards.math.grammar import Node, Unreadable, has, is_whole


def names_of(node: Node) -> frozenset[str]:
    """The names in a tree that stand for unknowns (e and i do not)."""
    if node.kind == "sym":
        return frozenset() if node.value in ("e", "i") else frozenset((node.value,))
    return frozenset().union(*(names_of(arg) for arg in node.args)) if node.args else frozenset()


def numbers_in(node: Node) -> frozenset[Fraction]:
    """The numbers that stand in a tree."""
    if node.kind == "num":
        return frozenset((node.value,))
    return frozenset().union(*(numbers_in(arg) for arg in node.args)) if node.args else frozenset()


def has_branches(node: Node) -> bool:
    """Whether a part with names may be given by different formulas on different stretches."""
    if node.kind == "call":
        own = node.value in ("abs", "floor", "ceil", "min", "max", "root", "log", "ln", "lg")
    else:
        own = node.kind == "pow" and not is_whole(node.args[1])
    return (own and bool(names_of(node))) or any(has_branches(arg) for arg in node.args)


def is_polynomial(node: Node) -> bool:
    """Whether names are only added, multiplied and raised to whole powers."""
    if not names_of(node):
        return not has(node, "opaque")
    if node.kind == "pow":
        exponent = node.args[1]
        return is_whole(exponent) and exponent.value >= 0 and is_polynomial(node.args[0])
    return node.kind in ("sym", "add", "mul") and all(is_polynomial(arg) for arg in node.args)


def weight(node: Node) -> int:
    """About how many digits the numbers of a tree have together: how close two values may come."""
    if node.kind == "num":
        bits = node.value.numerator.bit_length() + node.value.denominator.bit_length()
        return 1 + bits * 3 // 10
    own = sum(weight(arg) for arg in node.args)
    if node.kind == "pow":
        exponent = node.args[1]
        if exponent.kind == "num":
            own = max(own, min(int(abs(exponent.value)), 2000) * weight(node.args[0]))
    return own


def as_matrix(node: Node) -> list[list[Node]] | None:
    """The entries of a matrix, or of sums and products of matrices; None for anything else."""
    if node.kind == "matrix":
        return [list(row.args) for row in node.args]
    if node.kind == "add":
        parts = [as_matrix(arg) for arg in node.args]
        if any(part is None for part in parts):
            return None
        if len({(len(part), len(part[0])) for part in parts if part}) != 1:
            return None
        rows = [list(zip(*cells, strict=True)) for cells in zip(*parts, strict=True)]  # type: ignore[arg-type]
        return [[Node("add", cell) for cell in row] for row in rows]
    if node.kind == "mul" and has(node, "matrix"):
        if sum(arg.kind != "num" for arg in node.args) > 3:
            raise Unreadable("a product of many matrices")
        result: list[list[Node]] | None = None
        scale: tuple[Node, ...] = ()
        for arg in node.args:
            part = as_matrix(arg)
            if part is None:
                scale = (*scale, arg)
            elif result is None:
                result = part
            elif len(result[0]) != len(part):
                return None
            else:
                columns = list(zip(*part, strict=True))
                result = [
                    [
                        Node("add", tuple(Node("mul", p) for p in zip(row, column, strict=True)))
                        for column in columns
                    ]
                    for row in result
                ]
        if result is None or any(has(part, "matrix") for part in scale):
            return None
        return (
            [[Node("mul", (*scale, cell)) for cell in row] for row in result] if scale else result
        )
    return None
