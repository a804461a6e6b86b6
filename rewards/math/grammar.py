"""A grammar for written mathematics: LaTeX and plain text into a small tree of numbers and names.

Nothing is evaluated here, and nothing of the text ever reaches Python's or sympy's evaluators. What
the grammar does not know raises `Unreadable`; what is too large raises it before any parsing.
"""

from __future__ import annotations

import re
from fractions import Fraction
from typing import Any, NamedTuple

LONGEST = 10_000  # characters
_DEEPEST = 50  # brackets within brackets
MOST_DIGITS = 400  # of one number


class Unreadable(ValueError):
    """Text outside the grammar, or too large to look at; the message says which."""


class Node(NamedTuple):
    """One part of an expression: what it is, its parts, and a value (a number, a name, a sign)."""

    kind: str
    args: tuple[Any, ...] = ()
    value: Any = None


FUNCTIONS = frozenset(
    re.findall(
        r"\S+",
        "sin cos tan cot sec csc arcsin arccos arctan sinh cosh tanh log ln lg exp gcd lcm min max "
        "asin acos atan",
    )
)
GREEK = frozenset(
    re.findall(
        r"\S+",
        "alpha beta gamma delta epsilon varepsilon zeta eta theta vartheta iota kappa lambda mu nu "
        "xi rho sigma tau upsilon phi varphi chi psi omega Gamma Delta Theta Lambda Xi Pi Sigma "
        "Phi Psi Omega ell hbar nabla partial aleph emptyset varnothing prime",
    )
)
RELATIONS = {
    "=": "=", "<": "<", ">": ">", "\\lt": "<", "\\gt": ">", "\\le": "<=", "\\leq": "<=",
    "\\leqslant": "<=", "\\ge": ">=", "\\geq": ">=", "\\geqslant": ">=", "\\ne": "!=",
    "\\neq": "!=", "\\approx": "~", "\\in": "in", "\\equiv": "=", "<=": "<=", ">=": ">=",
    "!=": "!=", "==": "=", "\\sim": "~", "\\simeq": "~", "\\notin": "notin", "\\to": "to",
    "\\Rightarrow": "to", "\\implies": "to", "\\Leftrightarrow": "to", "\\mapsto": "to",
}  # fmt: skip
BIG = {"\\sum": "sum", "\\int": "int", "\\prod": "prod", "\\lim": "lim", "\\iint": "iint"}
NAMED = frozenset(
    re.findall(
        r"\S+",
        "\\mathbf \\vec \\hat \\bar \\overline \\overrightarrow \\widehat \\tilde \\boldsymbol "
        "\\mathcal \\underline \\widetilde \\bm",
    )
)
ABOUT = frozenset({"\\angle", "\\triangle", "\\measuredangle", "\\operatorname"})
_UNICODE = {
    "−": "-", "–": "-", "×": "\\times ", "÷": "/", "·": "\\cdot ", "√": "\\sqrt ", "π": "\\pi ",
    "∞": "\\infty ", "≤": "\\le ", "≥": "\\ge ", "≠": "\\ne ", "∪": "\\cup ", "∩": "\\cap ",
    "∈": "\\in ", "∅": "\\emptyset ", "°": "^\\circ ", "²": "^2", "³": "^3", "½": "\\frac12 ",
    "⅓": "\\frac13 ", "⅔": "\\frac23 ", "¼": "\\frac14 ", "¾": "\\frac34 ", "⅛": "\\frac18 ",
    "±": "\\pm ", "≈": "\\approx ", "，": ",", "（": "(", "）": ")", "′": "'", "’": "'",
    "θ": "\\theta ", "％": "%", "＝": "=",
}  # fmt: skip
_ODD = re.compile("|".join(map(re.escape, _UNICODE)))
_SKIP = re.compile(
    r"\\(?:textcolor|color)\s*\{[a-zA-Z]{1,20}\}|\\(?:left|right|bigl?|bigr|Bigl?|Bigr|biggl?|biggr|displaystyle|textstyle|limits|nolimits|"
    r"mathstrut|rm|it|bf|hfill|large|Large|LARGE|huge|Huge|small|normalsize)(?![a-zA-Z])\.?|\\?\$|(?<!\\)\\[!;:]|\\(?:begin|end)\{(?:align|equation|"
    r"gather|split)\*?\}"
)
_SPACE = re.compile(r"\\(?:q?quad|enspace|hspace\{[^{}]*\})|(?<!\\)\\[ ,]|~")
_COMMA_GROUP = re.compile(r"(?<=\d)\s?\{\s?,\s?\}\s?(?=\d{3})")
# Second spellings, tried one after the other where the text holds a backslash.
_SPELLINGS = tuple(
    (re.compile(pattern), plain)
    for pattern, plain in (
        (r"\\lbrace(?![a-zA-Z])", r"\\{"),
        (r"\\rbrace(?![a-zA-Z])", r"\\}"),
        (r"\\(?:dots|cdots|dotsc)(?![a-zA-Z])", r"\\ldots"),
        (r"\\(?:underline|mathbf|boldsymbol|bm)\s*\{(\d[\d.,/]{0,50})\}", r"\1"),
        (r"\{([^{}]{1,200})\\over(?![a-zA-Z])([^{}]{1,200})\}", r"\\frac{\1}{\2}"),
        (r"^([^{}]{1,200})\\over(?![a-zA-Z])([^{}]{1,200})$", r"\\frac{\1}{\2}"),
        (r"(\\mathbb\s*\{R\}\s*)-(?=\s*\\\{)", r"\1\\setminus "),
    )
)
_DEGREES = re.compile(r"(?<=\d)\s?\^\s?(?:o|\{o\})(?![a-zA-Z])")
_NOT = re.compile(r"\\not\s*(=|\\in(?![a-zA-Z]))")
_NEGATED = {"=": "\\ne ", "\\in": "\\notin "}
_FRACTIONS = re.compile(r"\\[dtc]frac(?![a-zA-Z])")


def tidy(text: str) -> str:
    """The same mathematics with LaTeX's dressing and its second spellings taken away."""
    if not text.isascii():
        text = _ODD.sub(lambda found: _UNICODE[found[0]], text)
    if "\\" in text:
        if "\\\\" in text and "\\begin" not in text:
            text = re.sub(r"\\\\(?=[a-zA-Z({\[])", r"\\", text)
        text = re.sub(r",\\!\s*(?=\d{3})|(?<=\d)\\[,!](?=\d{3})", "", text)
        text = _FRACTIONS.sub(r"\\frac", text)
        for pattern, plain in _SPELLINGS:
            text = pattern.sub(plain, text)
        text = _NOT.sub(lambda found: _NEGATED[found[1]], text) if "\\not" in text else text
    if "^" in text:
        text = _DEGREES.sub(r"^\\circ ", text)
    if "{" in text:
        text = _COMMA_GROUP.sub("", text)
    return _SPACE.sub(" ", _SKIP.sub("", text)).strip()


def check_size(text: str) -> None:
    """Refuse text that would cost much to read. Linear in its length."""
    if len(text) > LONGEST:
        raise Unreadable(f"longer than {LONGEST} characters")
    depth = deepest = 0
    for character in text:
        if character in "([{":
            depth += 1
            deepest = max(deepest, depth)
        elif character in ")]}":
            depth -= 1
    if deepest > _DEEPEST:
        raise Unreadable(f"brackets nested deeper than {_DEEPEST}")
    if text.count("\\frac") + text.count("^") + text.count("\\sqrt") > 200:
        raise Unreadable("too many powers and fractions")
    if re.search(rf"\d{{{MOST_DIGITS + 1}}}", text):
        raise Unreadable(f"a number of more than {MOST_DIGITS} digits")


def number(value: int | Fraction) -> Node:
    """A number as a leaf."""
    return Node("num", (), Fraction(value))


def neg(node: Node) -> Node:
    """The node with the other sign."""
    return number(-node.value) if node.kind == "num" else Node("mul", (number(-1), node))


def has(node: Node, *kinds: str) -> bool:
    """Whether the tree holds a node of one of the kinds."""
    return node.kind in kinds or any(has(arg, *kinds) for arg in node.args)


def is_whole(node: Node) -> bool:
    """Whether a node is a whole number as it stands."""
    return node.kind == "num" and node.value.denominator == 1


def mixed_number(whole: Node, part: Node) -> Node:
    """2 1/2 as the sum that it is."""
    return Node("add", (whole, part))
