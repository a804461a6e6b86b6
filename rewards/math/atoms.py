"""The parts of a formula that hold together by themselves: numbers, names, brackets, commands.

`Atoms` reads them; `math_parser` adds what stands between them. One inherits from the other because
a bracket holds a whole formula again.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod

from r1lab.rewards.math.grammar import (
    ABOUT,
    BIG,
    FUNCTIONS,
    GREEK,
    NAMED,
    Node,
    Unreadable,
    is_whole,
    mixed_number,
    neg,
    number,
)
from r1lab.rewards.math.tokens import Tokens, read_number

_CLOSE = {"(": (")", "]"), "[": ("]", ")"), "\\langle": ("\\rangle",)}
_LETTER_FUNCTIONS = frozenset("fghFGH")
_SPELLED = {"\\varepsilon": "\\epsilon", "\\varphi": "\\phi"}


class Atoms(Tokens, ABC):
    """The parts of formulas that can be read at a place among tokens."""

    def __init__(self, tokens: list[tuple[str, str]]) -> None:
        super().__init__(tokens)
        self.open_bars = self.in_set = 0
        self.digits = ""  # of the number read last, as written

    # What math_parser adds

    @abstractmethod
    def statements(self) -> Node: ...

    @abstractmethod
    def sum(self) -> Node: ...

    @abstractmethod
    def product(self) -> Node: ...

    @abstractmethod
    def power(self) -> Node: ...

    @abstractmethod
    def raised(self, node: Node) -> Node: ...

    @abstractmethod
    def signed_power(self) -> Node: ...

    # Atoms

    def primary(self) -> Node:
        kind, text = self.next()
        if kind == "num":
            return self._number(text)
        if kind == "sym":
            if self.peek() == ("op", "(") and (text in _LETTER_FUNCTIONS or self._of_a_name(text)):
                return Node("opaque", self._call_arguments(), text)
            return Node("sym", (), text)
        if kind == "text":
            return Node("text", (), text)
        if kind != "op":
            raise Unreadable("the end where a value should stand" if kind == "end" else text)
        if text in _CLOSE:
            return self._brackets(text)
        if text in ("{", "\\{"):
            return self._braces(text)
        if text in ("|", "\\vert", "\\lvert"):
            self.open_bars += 1
            inside = self.sum()
            self.open_bars -= 1
            self.expect({"|": "|", "\\vert": "\\vert", "\\lvert": "\\rvert"}[text])
            return Node("call", (inside,), "abs")
        if text == "\\begin":
            return self._matrix()
        if text in BIG:
            return self._big(BIG[text])
        return self._command(text)

    def _of_a_name(self, text: str) -> bool:
        """W(n), P(x): a capital before one small letter in brackets is a function of it."""
        if not text.isupper() or self.tokens[self.place + 2 : self.place + 3] != [("op", ")")]:
            return False
        kind, inside = self.tokens[self.place + 1]
        return kind == "sym" and inside.islower()

    def _number(self, text: str) -> Node:
        self.digits = text
        if self.take("..."):
            repeated = re.fullmatch(r"(\d*\.\d*?)(\d{1,6}?)\2{2,}", text)
            if not repeated:
                raise Unreadable("dots behind a number that does not repeat")
            return number(read_number(f"{repeated[1]}({repeated[2]})"))
        value = read_number(text)
        if value.denominator == 1 and self.peek() == ("op", "\\frac"):
            node = self.primary()
            above_below = node.kind == "mul" and is_whole(node.args[0])
            if above_below and node.args[1].kind == "inv" and is_whole(node.args[1].args[0]):
                return mixed_number(number(value), node)
            return Node("mul", (number(value), self.raised(node)))
        return number(value)

    def _brackets(self, opened: str) -> Node:
        if opened == "(" and self.take(")"):
            raise Unreadable("empty brackets")
        bars, self.open_bars = self.open_bars, 0
        inside = self.statements()
        self.open_bars = bars
        kind, closed = self.next()
        if kind != "op" or closed not in _CLOSE[opened]:
            raise Unreadable("a bracket that does not close")
        if inside.kind == "list":
            return Node("tuple", inside.args, "()" if opened == "\\langle" else opened + closed)
        return inside

    def _braces(self, opened: str) -> Node:
        closing = "}" if opened == "{" else "\\}"
        if self.take(closing):
            if opened == "{":
                raise Unreadable("empty braces")
            return Node("set", ())
        self.in_set += opened == "\\{"
        inside = self.statements()
        self.in_set -= opened == "\\{"
        if opened == "\\{" and self.take("|", "\\mid", ":"):
            if inside.kind != "sym" and not (inside.kind == "rel" and inside.value == ("in",)):
                raise Unreadable("a set of what is no name")
            inside = self.statements()
            self.expect(closing)
            return inside
        self.expect(closing)
        if opened == "{":
            return inside
        return Node("set", inside.args if inside.kind == "list" else (inside,))

    def _call_arguments(self) -> tuple[Node, ...]:
        self.expect("(")
        inside = self.statements()
        self.expect(")")
        return inside.args if inside.kind == "list" else (inside,)

    def _command(self, text: str) -> Node:
        name = text[1:]
        if text == "\\frac":
            above, below = self.argument(), self.argument()
            return Node("mul", (above, Node("inv", (below,))))
        if text == "\\binom":
            return Node("call", (self.argument(), self.argument()), "binom")
        if text == "\\sqrt":
            if not self.take("["):
                return Node("pow", (self.argument(), Node("inv", (number(2),))))
            degree = self.sum()
            self.expect("]")
            return Node("call", (self.argument(), degree), "root")
        if text in ("\\lfloor", "\\lceil"):
            inside = self.sum()
            self.expect("\\r" + name[1:])
            return Node("call", (inside,), name[1:])
        if name in FUNCTIONS:
            return self._function(name)
        if text in ("\\emptyset", "\\varnothing"):
            return Node("set", ())
        if text in ("\\pi", "\\infty"):
            return Node("const", (), name)
        if name in GREEK:
            return Node("sym", (), _SPELLED.get(text, text))
        if text in NAMED:
            return Node("sym", (), f"{text}{{{self._script_of_name()}}}")
        if text in ABOUT:
            return Node("sym", (), f"{text} {self._script_of_name()}")
        if text == "\\mathbb":
            return Node("text", (), self.script())
        raise Unreadable(f"unknown {text!r:.20}")

    def _script_of_name(self) -> str:
        parts = [self.script()]
        while self.peek()[0] == "sym":
            parts.append(self.next()[1])
        return "".join(parts)

    def _function(self, name: str) -> Node:
        exponent = base = None
        while self.peek() in (("op", "^"), ("op", "_")):
            if self.next()[1] == "^":
                exponent = self.argument(signed=True)
            else:
                base = self.argument()
        if self.peek() == ("op", "("):
            self.place += 1
            inside = self.statements()
            if not self.take(")"):
                raise Unreadable("a bracket that does not close")
            args = inside.args if inside.kind == "list" else (inside,)
        else:
            factors = [self.signed_power()]
            while True:
                kind, text = self.peek()
                named = kind == "op" and text[1:] in FUNCTIONS
                if named or not self.starts_factor(kind, text) or text == "(":
                    break
                factors.append(self.power())
            args = (factors[0] if len(factors) == 1 else Node("mul", tuple(factors)),)
        if base is not None:
            args = (*args, base)
        if exponent is not None and exponent == number(-1) and name in ("sin", "cos", "tan"):
            return Node("call", args, "arc" + name)
        called = Node("call", args, name)
        return called if exponent is None else Node("pow", (called, exponent))

    def _big(self, name: str) -> Node:
        """Sums, integrals and limits are not carried out: they equal only themselves."""
        parts = []
        while self.peek() in (("op", "_"), ("op", "^")):
            parts.append(self.next()[1] + self.script())
        return Node("opaque", (self.product(),), f"{name}{''.join(sorted(parts))}")

    def _matrix(self) -> Node:
        name = self._script_in_braces()
        if name == "array":
            self._script_in_braces()
        elif "matrix" not in name:
            raise Unreadable(f"unknown environment {name!r:.20}")
        rows: list[list[Node]] = [[]]
        while True:
            if self.take("\\end"):
                self._script_in_braces()
                break
            if self.take("\\\\"):
                rows.append([])
            elif self.take("\\hline") or self.take("&"):
                continue
            else:
                rows[-1].append(self.sum())
        rows = [row for row in rows if row]
        if not rows or any(len(row) != len(rows[0]) for row in rows):
            raise Unreadable("rows of a matrix that differ in length")
        return Node("matrix", tuple(Node("row", tuple(row)) for row in rows))

    def _script_in_braces(self) -> str:
        if self.peek() != ("op", "{"):
            raise Unreadable("an environment without a name")
        return self.script()

    def argument(self, *, signed: bool = False) -> Node:
        """What stands behind \\frac, \\sqrt or ^: a group in braces, one digit, or one symbol."""
        kind, text = self.peek()
        if (kind, text) == ("op", "{"):
            self.place += 1
            node = self.statements()
            self.expect("}")
            return node
        if signed and self.take("-"):
            return neg(self.argument(signed=True))
        if kind == "num" and len(text) > 1 and not signed and text.isdigit():
            self.tokens[self.place] = ("num", text[1:])
            return number(int(text[0]))
        return self.primary()

    def starts_factor(self, kind: str, text: str) -> bool:
        if kind in ("sym", "text", "num"):
            return True
        if kind != "op":
            return False
        if text == "|" or text == "\\mid":
            return self.open_bars == 0 and not self.in_set and text == "|"
        if text in ("(", "{", "\\lfloor", "\\lceil", "\\begin", "\\{"):
            return True
        return text.startswith("\\") and (
            text[1:] in FUNCTIONS
            or text[1:] in GREEK
            or text in BIG
            or text in NAMED
            or text in ("\\frac", "\\sqrt", "\\pi", "\\binom", "\\infty")
            or text in ABOUT
        )
