"""From text to the tree of `math_grammar`: a parser by recursive descent, bounded in depth.

Lists, relations, ratios, sums, products, powers, in this order from loose to tight.
"""

from __future__ import annotations

from r1lab.rewards.math.atoms import Atoms
from r1lab.rewards.math.grammar import (
    RELATIONS,
    Node,
    Unreadable,
    check_size,
    is_whole,
    mixed_number,
    neg,
    tidy,
)
from r1lab.rewards.math.tokens import END, tokens_of

_MULTIPLY = frozenset({"*", "\\cdot", "\\times", "\\ast", "\\cdotp"})
_DIVIDE = frozenset({"/", "\\div"})
_BASES = {"two": "2", "three": "3", "four": "4", "five": "5", "six": "6", "seven": "7",
          "eight": "8", "nine": "9", "ten": "10", "twelve": "12", "sixteen": "16"}  # fmt: skip
_CLOSING = frozenset({")", "]", "}", "\\}", "\\rangle"})


def parse(text: str) -> Node:
    """The tree of a whole answer. Raises Unreadable."""
    text = tidy(text)
    check_size(text)
    parser = _Parser(tokens_of(text))
    try:
        node = parser.statements()
    except RecursionError:
        raise Unreadable("nested too deeply") from None
    if parser.peek() != END:
        raise Unreadable(f"unexpected {parser.peek()[1]!r:.20}")
    return node


class _Parser(Atoms):
    # Lists and relations

    def statements(self) -> Node:
        """Statements with `,`, `;`, `and`, `or` between them: one node, or a list of them."""
        groups: list[list[Node]] = [[self.relation()]]
        joint = ","
        while True:
            loose = ""
            tight = False
            while True:
                kind, text = self.peek()
                if kind == "sep":
                    loose = text
                elif (kind, text) == ("op", ";"):
                    loose = loose or ";"
                elif (kind, text) == ("op", ","):
                    tight = True
                else:
                    break
                self.place += 1
            if not (loose or tight) or self.peek() == END:
                break
            if self.peek()[0] == "op" and self.peek()[1] in _CLOSING:
                break
            joint = loose or joint
            if loose and not tight:
                groups.append([self.relation()])
            else:
                groups[-1].append(self.relation())
        width = len(groups[0])
        if (
            len(groups) > 1
            and width > 1
            and all(
                len(group) == width and all(item.kind == "rel" for item in group)
                for group in groups
            )
        ):
            return Node("list", tuple(Node("tuple", tuple(g), "()") for g in groups), joint)
        items = [item for group in groups for item in group]
        return items[0] if len(items) == 1 else Node("list", tuple(items), joint)

    def relation(self) -> Node:
        sides, signs = [], []
        if not (self.peek()[0] == "op" and self.peek()[1] in RELATIONS):
            sides.append(self.ratio())
        else:
            sides.append(Node("text", (), ""))
        while self.peek()[0] == "op" and self.peek()[1] in RELATIONS:
            signs.append(RELATIONS[self.next()[1]])
            sides.append(self.ratio())
        return Node("rel", tuple(sides), tuple(signs)) if signs else sides[0]

    def ratio(self) -> Node:
        sides = [self.union()]
        while not self.in_set and self.take(":"):
            sides.append(self.union())
        return Node("ratio", tuple(sides)) if len(sides) > 1 else sides[0]

    def union(self) -> Node:
        node = self.sum()
        while self.peek()[0] == "op" and self.peek()[1] in ("\\cup", "\\cap", "\\setminus"):
            node = Node({"\\cup": "union", "\\cap": "cap", "\\setminus": "minus"}[self.next()[1]],
                        (node, self.sum()))  # fmt: skip
        return node

    # Arithmetic

    def sum(self) -> Node:
        terms = []
        while True:
            sign = 1
            plus_minus = ""
            while self.peek()[0] == "op" and self.peek()[1] in ("+", "-", "\\pm", "\\mp"):
                text = self.next()[1]
                if text == "-":
                    sign = -sign
                elif text != "+":
                    plus_minus = text[1:]
            term = self.product()
            if plus_minus:
                term = Node("pm", (term,), plus_minus)
            terms.append(neg(term) if sign < 0 else term)
            if self.peek()[0] != "op" or self.peek()[1] not in ("+", "-", "\\pm", "\\mp"):
                break
        return terms[0] if len(terms) == 1 else Node("add", tuple(terms))

    def product(self) -> Node:
        factors = [self.power()]
        mixed = False  # a whole number directly before another: 2 1/2
        while True:
            kind, text = self.peek()
            if mixed and not (kind == "op" and text == "/"):
                raise Unreadable("two numbers side by side")
            if kind == "op" and text in _MULTIPLY:
                self.place += 1
                factors.append(self.signed_power())
            elif kind == "op" and text in _DIVIDE:
                self.place += 1
                below = Node("inv", (self.signed_power(),))
                if mixed:
                    factors[-2:] = [mixed_number(factors[-2], Node("mul", (factors[-1], below)))]
                    mixed = False
                else:
                    factors.append(below)
            elif self.starts_factor(kind, text):
                mixed = kind == "num" and is_whole(factors[-1])
                factors.append(self.power())
            else:
                break
        return factors[0] if len(factors) == 1 else Node("mul", tuple(factors))

    def signed_power(self) -> Node:
        if self.take("-"):
            return neg(self.signed_power())
        self.take("+")
        return self.power()

    def power(self) -> Node:
        return self.raised(self.primary())

    def raised(self, node: Node) -> Node:
        """The node with the powers and signs that stand behind it."""
        node = self.postfix(node)
        while self.take("^", "**"):
            if self.take("\\circ") or self._braced("\\circ"):
                node = Node("degree", (node,))
            elif self.peek() == ("op", "\\prime") or self.peek() == ("op", "'"):
                self.place += 1
                if node.kind != "sym":
                    raise Unreadable("a prime behind what is no name")
                node = Node("sym", (), f"{node.value}'")
            else:
                node = Node("pow", (node, self.exponent()))
            node = self.postfix(node)
        return node

    def exponent(self) -> Node:
        """What stands behind ^; a tower is read from its top: 2^3^2 is 2^9."""
        node = self.argument(signed=True)
        if self.take("^", "**"):
            return Node("pow", (node, self.exponent()))
        return node

    def postfix(self, node: Node) -> Node:
        while True:
            if self.take("!"):
                node = Node("call", (node,), "factorial")
            elif self.take("%", "\\%"):
                node = Node("percent", (node,))
            elif self.take("\\degree"):
                node = Node("degree", (node,))
            elif node.kind == "sym" and self.take("'"):
                node = Node("sym", (), f"{node.value}'")
            elif node.kind in ("sym", "text", "num") and self.take("_"):
                below = self.script()
                if node.kind == "num":
                    below = _BASES.get(below.lower(), below)
                    if not below.isdigit() or node.value.denominator != 1:
                        raise Unreadable("a base that is no number")
                    node = Node("base", (), f"{self.digits}_{below}")
                else:
                    node = Node("sym", (), f"{node.value}_{below}")
            else:
                return node

    def _braced(self, text: str) -> bool:
        if self.tokens[self.place : self.place + 3] == [("op", "{"), ("op", text), ("op", "}")]:
            self.place += 3
            return True
        return False
