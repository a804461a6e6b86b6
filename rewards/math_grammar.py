"""A grammar for written mathematics: LaTeX and plain text into a small tree of numbers and names.

Nothing is evaluated here, and nothing of the text ever reaches Python's or sympy's evaluators. What
the grammar does not know raises `Unreadable`; what is too large raises it before any parsing.
"""

from __future__ import annotations

import re
from fractions import Fraction
from typing import Any, NamedTuple

from r1lab.rewards.math_units import LETTERS

LONGEST = 10_000  # characters
_DEEPEST = 50  # brackets within brackets
_MOST_DIGITS = 400  # of one number


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
_TEXT = (
    r"\\(?:text|textbf|textit|textrm|textnormal|textsf|mbox|hbox|mathrm|mathsf|"
    r"operatorname)\*?\s*\{([^{}]*)\}"
)
_NUM = (
    r"\d+(?:\.\d*)?\\overline\s*\{\d+\}|\d+\.\d*\\(?:bar|dot)\s*\{\d+\}|\d*\.\d*\(\d+\)"
    r"|\d{1,3}(?:,\d{3})+(?![\d,])(?:\.\d+)?|\d{1,3}(?: \d{3})+(?![\d])(?:\.\d+)?"
    r"|(?:\d+\.\d+|\d+|\.\d+)(?:[eE][+-]?\d+(?![\d^]))|\d+\.\d+|\d+|\.\d+"
)
_TOKEN = re.compile(
    rf"\s*(?:{_TEXT}|({_NUM})|(\\[a-zA-Z]+|\\.)|(<=|>=|!=|==|\*\*)|([a-zA-Z]+)|(\.{{3}})|(\S))",
    re.DOTALL,
)
_PLAIN_NAMES = {"pi": "\\pi", "sqrt": "\\sqrt", "infinity": "\\infty", "inf": "\\infty",
                "theta": "\\theta", "alpha": "\\alpha", "beta": "\\beta"}  # fmt: skip
_WORD_PARTS = re.compile(
    r"arcsin|arccos|arctan|sinh|cosh|tanh|sqrt|sin|cos|tan|cot|sec|csc|log|exp|lcm|gcd|min|max|"
    r"infinity|theta|alpha|beta|ln|pi|or|and|[A-Za-z]"
)
_PERCENT = frozenset({"percent", "percentage", "pct"})
_UNICODE = {
    "−": "-", "–": "-", "×": "\\times ", "÷": "/", "·": "\\cdot ", "√": "\\sqrt ", "π": "\\pi ",
    "∞": "\\infty ", "≤": "\\le ", "≥": "\\ge ", "≠": "\\ne ", "∪": "\\cup ", "∩": "\\cap ",
    "∈": "\\in ", "°": "^\\circ ", "²": "^2", "³": "^3", "½": "\\frac12 ", "±": "\\pm ",
    "≈": "\\approx ", "，": ",", "（": "(", "）": ")", "′": "'", "’": "'", "θ": "\\theta ",
    "％": "%", "＝": "=",
}  # fmt: skip
_ODD = re.compile("|".join(map(re.escape, _UNICODE)))
_SKIP = re.compile(
    r"\\(?:left|right|bigl?|bigr|Bigl?|Bigr|biggl?|biggr|displaystyle|textstyle|limits|nolimits|"
    r"mathstrut|rm|it|bf|hfill)(?![a-zA-Z])\.?|\\?\$|(?<!\\)\\[!;:]|\\(?:begin|end)\{(?:align|equation|"
    r"gather|split)\*?\}"
)
_SPACE = re.compile(r"\\(?:q?quad|enspace|hspace\{[^{}]*\})|(?<!\\)\\[ ,]|~")
_COMMA_GROUP = re.compile(r"(?<=\d)\s?\{\s?,\s?\}\s?(?=\d{3})")
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
    if re.search(rf"\d{{{_MOST_DIGITS + 1}}}", text):
        raise Unreadable(f"a number of more than {_MOST_DIGITS} digits")


def tokens_of(text: str) -> list[tuple[str, str]]:
    """(kind, text) of each token of tidied text; commas inside brackets never group digits."""
    found, place, depth = [], 0, 0
    text = text.rstrip()
    while place < len(text):
        match = _TOKEN.match(text, place)
        if match is None:
            break
        place = match.end()
        words, number, command, relation, letters, dots, other = match.groups()
        if number is not None:
            if depth > 0 and "," in number:
                head = number.partition(",")[0]
                place = match.start(2) + len(head)
                number = head
            if len(number) > _MOST_DIGITS:
                raise Unreadable(f"a number of more than {_MOST_DIGITS} digits")
            found.append(("num", number))
        elif words is not None:
            unit = words.strip() in LETTERS and bool(found) and found[-1][0] == "num"
            found.extend([("text", words.strip())] if unit else _text_tokens(words))
        elif letters is not None:
            found.extend(_word_tokens(letters))
        else:
            token = command or relation or dots or other
            if token in ("\\le", "\\ldots", "\\dots", "\\cdots") and token != "\\le":
                token = "..."
            depth += (token in "([{" or token == "\\{") - (token in ")]}" or token == "\\}")
            found.append(("op", token))
    if len(found) > 1500:
        raise Unreadable("too many terms")
    return found


def _text_tokens(words: str) -> list[tuple[str, str]]:
    word = " ".join(words.split())
    if word.lower() in ("and", "or", "and or"):
        return [("sep", "or" if word.lower() == "or" else "and")]
    if word in FUNCTIONS and word not in ("min", "max"):
        return [("op", "\\" + word)]
    if word.lower() in _PERCENT:
        return [("op", "%")]
    if len(word) == 1 and word.isalpha():
        return [("sym", word)]
    if re.fullmatch(r"[-+]?\d+(\.\d+)?", word):
        return [("num", word)]
    return [("text", word)] if word else []


def _word_tokens(letters: str) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    if letters.lower() in _PERCENT:
        return [("op", "%")]
    for part in _WORD_PARTS.findall(letters) if len(letters) > 1 else (letters,):
        if part in ("or", "and"):
            found.append(("sep", part))
        elif part in FUNCTIONS:
            found.append(("op", "\\" + part))
        elif part in _PLAIN_NAMES:
            found.append(("op", _PLAIN_NAMES[part]))
        else:
            found.append(("sym", part))
    return found


def read_number(text: str) -> Fraction:
    """The exact value of a number token, repeating decimals among them."""
    text = text.replace(",", "").replace(" ", "")
    repeated = re.fullmatch(r"(\d*)\.?(\d*)(?:\\(?:overline|bar|dot)\{|\()(\d+)[})]", text)
    if repeated:
        whole, fixed, again = repeated.groups()
        ones = (10 ** len(again) - 1) * 10 ** len(fixed)
        return Fraction(int((whole or "0") + fixed)) / 10 ** len(fixed) + Fraction(int(again), ones)
    mantissa, _, exponent = text.lower().partition("e")
    if not exponent:
        return Fraction(mantissa)
    if len(exponent.lstrip("+-0")) > 3 or abs(int(exponent)) > _MOST_DIGITS:
        raise Unreadable("an exponent beyond the limit")
    return Fraction(mantissa) * Fraction(10) ** int(exponent)


def number(value: int | Fraction) -> Node:
    """A number as a leaf."""
    return Node("num", (), Fraction(value))


def neg(node: Node) -> Node:
    """The node with the other sign."""
    return number(-node.value) if node.kind == "num" else Node("mul", (number(-1), node))


def has(node: Node, *kinds: str) -> bool:
    """Whether the tree holds a node of one of the kinds."""
    return node.kind in kinds or any(has(arg, *kinds) for arg in node.args)
