"""Finding the final answer in what was written: boxes, the answer part, prose.

The rules are in docs/verifiers.md, "Where the answer is read from". All scans are linear.
"""

from __future__ import annotations

import re
from itertools import pairwise

from r1lab.prompts import THINK_CLOSE, THINK_OPEN
from r1lab.rewards.math_grammar import FUNCTIONS, LONGEST
from r1lab.rewards.math_units import LETTERS, is_unit
from r1lab.types import Completion

_BOX = re.compile(r"\\f?boxed\s*\{")
_BETWEEN_BOXES = 60  # characters
_JOINT = re.compile(r"(?:,|;|\band|\bor)$")
_NAMED_BOX = re.compile(r"(?:[A-Za-z](?:_\{?\w{1,3}\}?)?\s*=)$")
_CUE = re.compile(
    r"(?:answer|solution|result|option|choice|r[eé]ponse|答案)s?\b\**\s*"
    r"(?:is|are|was|est|should be|would be|[:：=是])\s*:?"
    r"|答案[:：是]?|(?:think|believe) (?:that )?(?:it's|it is|the correct answer is)",
    re.IGNORECASE,
)
_FORMULA = re.compile(
    r"\$\$(?P<a>[^$]{1,2000})\$\$|(?<!\\)\$(?P<b>[^$]{1,2000})(?<!\\)\$|\\\[(?P<c>.{1,2000}?)\\\]"
    r"|\\\((?P<d>.{1,2000}?)\\\)",
    re.DOTALL,
)
_NUMERAL = r"(?:\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+[.,]\d+|\d+|\.\d+)"
_NUMBER = re.compile(
    rf"(?<![A-Za-z0-9_.])-?\$?(?:\\frac\{{\d+\}}\{{\d+\}}|{_NUMERAL}(?:\s?/\s?{_NUMERAL})?)\s?(?:\\?%)?"
)
_DOLLARS = re.compile(r"\\?\$|(?<!\\)\\[()\[\]]")
_ARITHMETIC = re.compile(r"[\s()+*/x×÷=·-]{1,20}")
_TAIL = re.compile(r"<\|.{0,40}$|I hope it is correct\.?", re.DOTALL)
_CONNECTORS = re.compile(
    r"(?:[\s,;.:]|\band\b|\bor\b|\\quad|\\text\{ ?(?:and|or) ?\})*", re.IGNORECASE
)
_WORD = re.compile(r"[A-Za-z]{2,}")
_NOT_LATIN = re.compile(r"[\u0400-\u1fff\u2e80-\uffef]")
_DRESSED = re.compile(
    r"\\(?:text\w*|mbox|mathrm|operatorname|begin|end)\*?\s*\{[^{}]*\}|\\[a-zA-Z]+"
)
_PLAIN = FUNCTIONS | {"sqrt", "pi", "infinity", "inf", "and", "or", "theta", "percent", "pct"}
_UNIT_BEHIND = re.compile(
    r"(?<=[\d})%])(\s*)([A-Za-z]+(?:[ /][A-Za-z]+){0,3})\.?((?:\^\{?[1-4]\}?|²|³)?)$"
)


def answer_part(completion: Completion) -> str | None:
    """What may be judged: the answer part, or the last boxes behind the thinking; else None."""
    if completion.answer is not None:
        return completion.answer
    whole = completion.prefix + completion.text
    head, closed, tail = whole.rpartition(THINK_CLOSE)
    if not closed:
        if THINK_OPEN in whole:
            return None
        tail = head + tail
    return last_boxes(tail)


def last_boxes(text: str) -> str | None:
    """What is in the last terminated box, or in the boxes that are joined to it, as a list."""
    boxes = _boxes(text)
    if not boxes:
        return None
    place = len(boxes) - 1
    while place > 0 and _joined(text[boxes[place - 1][2] : boxes[place][0]]):
        place -= 1
    inside = list(dict.fromkeys(text[start:end].strip() for _, start, end in _inner(boxes[place:])))
    return inside[0] if len(inside) == 1 else " ; ".join(inside)


def _inner(boxes: list[tuple[int, int, int]]) -> list[tuple[int, int, int]]:
    return [(opened, start, end - 1) for opened, start, end in boxes]


def _boxes(text: str) -> list[tuple[int, int, int]]:
    """(start, start of the inside, end behind the brace) of outermost terminated boxes."""
    found: list[tuple[int, int, int]] = []
    place = 0
    opened = _BOX.search(text)
    if opened is None:
        return found
    closing = _closing_braces(text)
    while (opened := _BOX.search(text, place)) is not None:
        end = closing.get(opened.end() - 1)
        if end is None:
            place = opened.end()
            continue
        found.append((opened.start(), opened.end(), end + 1))
        place = end + 1
    return found


def _closing_braces(text: str) -> dict[int, int]:
    """Where each brace closes; `\\{` and `\\}` are no braces."""
    open_at: list[int] = []
    closes: dict[int, int] = {}
    for found in re.finditer(r"\\.|[{}]", text, re.DOTALL):
        if found[0] == "{":
            open_at.append(found.start())
        elif found[0] == "}" and open_at:
            closes[open_at.pop()] = found.start()
    return closes


def _joined(between: str) -> bool:
    """Whether two boxes are one list: nothing but a few words that end in a comma, and, or."""
    if len(between) > _BETWEEN_BOXES:
        return False
    plain = re.sub(r"\\text\w*\{([^{}]*)\}|\\quad|\\qquad|\\[()\[\],;! ]|[$\s]+", r" \1 ", between)
    plain = _NAMED_BOX.sub("", " ".join(plain.split())).strip()
    return not plain or (_JOINT.search(plain) is not None and not re.search(r"\d|[.?!]\s", plain))


def read_answer(text: str, *, gold: bool = False) -> str:
    """The final answer of an answer part: a box, all of it, or the last value of its prose.

    Only a gold answer's box may lack its closing brace; elsewhere such a box holds no answer.
    """
    text = text[-LONGEST:] if len(text) > LONGEST else text
    boxed = last_boxes(text)
    if boxed is not None:
        text = _without_dollars(boxed)
    elif (opened := _BOX.search(text)) is not None:
        text = text[opened.end() :] if gold else ""
    text = _TAIL.sub("", text).strip().strip("*").strip()
    if not _is_prose(text):
        return _with_unit(_without_dollars(text))
    return _from_prose(text)


def _without_dollars(text: str) -> str:
    return _DOLLARS.sub(" ", text).strip() if "$" in text or "\\" in text else text


def _is_prose(text: str) -> bool:
    outside = _FORMULA.sub(" ", text)
    if outside.count("$") != text.count("$") and not _CONNECTORS.fullmatch(outside):
        outside = outside.strip()
        # A formula and its unit: `$125$ miles`.
        return not (is_unit(outside.strip(" .")) or re.fullmatch(r"\\?%|percent|pct", outside))
    if ("\\(" in text or "\\[" in text) and _CONNECTORS.fullmatch(outside) is None:
        return True
    if _NOT_LATIN.search(text):
        return True
    bare = _DRESSED.sub(" ", outside)
    words = _words_in(bare)
    behind = _UNIT_BEHIND.search(text.strip())
    if behind is not None:
        before = _DRESSED.sub(" ", text[: behind.start()])
        return bool(_words_in(before))
    return len(words) > 1 or (
        bool(words) and len(words[0]) > 3 and re.search(r"\d", text) is not None
    )


def _words_in(text: str) -> list[str]:
    """Words of prose: no functions, and no points and segments such as AB."""
    words = [word for word in _WORD.findall(text) if word.lower() not in _PLAIN]
    return [word for word in words if not (word.isupper() and len(word) < 5)]


def _from_prose(text: str) -> str:
    cues = list(_CUE.finditer(text))
    if cues:
        rest = text[cues[-1].end() :]
        found = _candidates(rest)
        for (_, end, value), (start, _, _) in pairwise(found):
            # Arithmetic written out (35 + 70 = 105) is read to its end.
            if not _ARITHMETIC.fullmatch(rest[end:start]):
                return value
        if found:
            return found[-1][2]
        if rest.strip(" .*:"):
            return _without_dollars(rest).strip(" .*:")
    found = _candidates(text)
    return found[-1][2] if found else text


def _candidates(text: str) -> list[tuple[int, int, str]]:
    """Formulas with a digit in them and numbers outside formulas: (start, end, text), in order."""
    found: list[tuple[int, int, str]] = []
    formulas = []
    for formula in _FORMULA.finditer(text):
        inside = next(group for group in formula.groups() if group is not None)
        if len(_words_in(_DRESSED.sub(" ", inside))) > 1 or _NOT_LATIN.search(inside):
            continue
        formulas.append(formula.span())
        if re.search(r"\d", inside) or "=" in inside:
            tail = re.match(r"\s*(?:\\?%|percent|pct)", text[formula.end() : formula.end() + 12])
            found.append((*formula.span(), inside + (" %" if tail else "")))
    inside_formula = iter(formulas)
    current = next(inside_formula, None)
    for number in _NUMBER.finditer(text):
        while current is not None and current[1] <= number.start():
            current = next(inside_formula, None)
        if current is None or number.end() <= current[0]:
            found.append((*number.span(), number[0].replace("$", "").strip()))
    return sorted(found)


def _with_unit(text: str) -> str:
    """Plain words behind a number become LaTeX text, so that the grammar sees a unit."""
    text = text.rstrip(" ,")
    text = text if text.endswith("...") else text.rstrip(" .,").removesuffix("\\").rstrip()
    found = _UNIT_BEHIND.search(text)
    if found is None:
        return text
    space, words, power = found.groups()
    head = text[: found.start()]
    known = is_unit(words)
    if words.lower() in _PLAIN or (not space and not (known and len(words) > 1)):
        return text
    if len(words) == 1 and not (words in LETTERS and re.fullmatch(r"[-+\d.,/ ]+", head)):
        return text
    if not known and (len(words.split()[0]) < 3 or re.search(r"\b(?:and|or)\b|[A-Za-z]\s*$", head)):
        return text
    return rf"{head}\text{{{words}}}{power}"


# Text answers

_DRESSING = re.compile(
    r"\\(?:text\w*|mbox|mathrm|mathbf|operatorname|left|right|displaystyle)(?![a-zA-Z])"
    r"|[${}]|\\[,;:! ]|~"
)
_ARTICLES = frozenset({"a", "an", "the"})
_CHOICE = re.compile(r"\(?([A-J])\)?[.:]?")
# Not two letters offered at once: `A or B`, `A, B`.
_ALONE = r"(?!\s*(?:,|/|or|and)\s*\(?[A-J](?![A-Za-z]))"
_LETTER = re.compile(rf"(?<![A-Za-z0-9_])\(?([A-J])\)?(?![A-Za-z0-9_*^=+'’]){_ALONE}")
_LEADING = re.compile(rf"\(?([A-J])\)?{_ALONE}(?:[.:)。，]|\s+[A-Za-z]{{2}}|[\u2e80-\uffef])")
_NAMED_CHOICE = re.compile(r"(?:\(([A-J])\)|([A-J])[.:)]|([A-J]))\s+[A-Za-z].*", re.DOTALL)


def undressed(text: str) -> str:
    """The text without LaTeX's dressing and with single spaces."""
    return " ".join(_DRESSING.sub(" ", text).split())


def words_of(text: str) -> list[str] | None:
    """The words of an answer that is words or one name of three letters or more; else None."""
    plain = undressed(text).strip(" .,")
    if not re.fullmatch(r"[^\W\d_][^\d=<>+*/^_\\|\[\]]*", plain):
        return None
    words = [word for word in re.split(r"[^\w']+", plain) if word]
    if not any(len(word) > 2 and word.lower() not in _PLAIN for word in words):
        return None
    if re.search(r"\bsqrt\b|\bpi\b|[(){}]", plain) and not re.search(r"[a-z]{4}", plain):
        return None
    return [word.casefold() for word in words if word.casefold() not in _ARTICLES]


def gold_choice(gold: str) -> str | None:
    """The letter of a gold answer that is one of several choices: `C`, `(C)`, `(C) Cecile`."""
    boxed = last_boxes(gold)
    gold = gold if boxed is None else boxed
    lines = [undressed(line) for line in gold.strip().splitlines()]
    if len(lines) == 1 and (found := _CHOICE.fullmatch(lines[0])):
        return found[1]
    for line in (lines[-1], lines[0]) if lines else ():
        if found := _NAMED_CHOICE.fullmatch(line):
            if found[3] and len(line.split()) > 4:
                continue
            return next(group for group in found.groups() if group)
    return None


def given_choice(text: str) -> str | None:
    """The letter that an answer chooses; None where it chooses none."""
    boxed = last_boxes(text)
    plain = undressed(text if boxed is None else boxed).strip("* ")
    if found := _CHOICE.fullmatch(plain.rstrip(" .")):
        return found[1]
    cues = list(_CUE.finditer(plain))
    if cues and (found := _LETTER.search(plain, cues[-1].start())):
        return found[1]
    found = _LEADING.match(plain)
    return found[1] if found else None
