"""From tidied text to tokens, and a place among them."""

from __future__ import annotations

import re
from fractions import Fraction

from r1lab.rewards.math.grammar import FUNCTIONS, MOST_DIGITS, Unreadable
from r1lab.rewards.math.units import LETTERS

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
_SCALES = {"hundred": "100", "thousand": "1000", "million": "1" + 6 * "0",
           "billion": "1" + 9 * "0", "trillion": "1" + 12 * "0"}  # fmt: skip
_PERCENT = frozenset({"percent", "percentage", "pct"})
END = ("end", "")


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
            if len(number) > MOST_DIGITS:
                raise Unreadable(f"a number of more than {MOST_DIGITS} digits")
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
    scale, _, rest = word.partition(" ")
    if scale.lower() in _SCALES:
        return [("op", "\\cdot"), ("num", _SCALES[scale.lower()]), *_text_tokens(rest)]
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
    if len(exponent.lstrip("+-0")) > 3 or abs(int(exponent)) > MOST_DIGITS:
        raise Unreadable("an exponent beyond the limit")
    return Fraction(mantissa) * Fraction(10) ** int(exponent)


class Tokens:
    """A place in a list of tokens."""

    def __init__(self, tokens: list[tuple[str, str]]) -> None:
        self.tokens, self.place = tokens, 0

    def peek(self) -> tuple[str, str]:
        return self.tokens[self.place] if self.place < len(self.tokens) else END

    def next(self) -> tuple[str, str]:
        token = self.peek()
        self.place += 1
        return token

    def take(self, *texts: str) -> bool:
        kind, text = self.peek()
        if kind == "op" and text in texts:
            self.place += 1
            return True
        return False

    def expect(self, text: str) -> None:
        if not self.take(text):
            raise Unreadable(f"expected {text!r} before {self.peek()[1]!r:.20}")

    def script(self) -> str:
        """The text of a subscript: it is part of a name."""
        if not self.take("{"):
            return self.next()[1]
        depth, parts = 1, []
        while depth:
            kind, text = self.next()
            if kind == "end":
                raise Unreadable("a subscript that does not end")
            depth += (text == "{") - (text == "}") if kind == "op" else 0
            if depth:
                parts.append(text)
        return "".join(parts)
