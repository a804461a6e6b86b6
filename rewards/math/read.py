"""Finding the final answer in what was written: boxes, the answer part, prose.

The rules are in docs/verifiers.md, "Where the answer is read from". All scans are linear.
"""

from __future__ import annotations

import re
from itertools import pairwise

from r1lab.prompts import THINK_CLOSE, THINK_OPEN
from r1lab.rewards.math.grammar import FUNCTIONS, LONGEST
from r1lab.rewards.math.units import LETTERS, is_unit
from r1lab.types import Completion

_BOX = re.compile(r"\\(?:boxed|fbox)\s*\{")
_MOST_BOXES_IN_BOXES = 2
_BETWEEN_BOXES = 60  # characters
_JOINT = re.compile(r"(?:,|;|\band|\bor)$")
_NAMED_BOX = re.compile(r"(?:[A-Za-z](?:_\{?\w{1,3}\}?)?\s*=)$")
CUE = re.compile(
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
_MONEY = re.compile(
    r"(-?)\\?\$\s?(-?(?:\d|[.,]|\{,\}|\\[,!]){1,100})"
    r"(?:\s?(?:\\text\{)?\s?(hundred|thousand|million|billion|trillion)\}?)?\.?"
)
_DELIMITED = re.compile(r"\$(.*[^\\])\$|\\\((.*)\\\)|\\\[(.*)\\\]", re.DOTALL)
_ARITHMETIC = re.compile(r"[\s()+*/x×÷=·-]{1,20}")
_AND = re.compile(r"\s*,?\s*(and|or)\s*(?:[A-Za-z]\s*=\s*)?", re.IGNORECASE)
_DENIED = re.compile(r"\s*(?:not|n't|never)\b")
_CLAUSE_END = re.compile(r"\.\s|\n")
_TAIL = re.compile(r"<\|.{0,40}$|I hope it is correct\.?", re.DOTALL)
_MARKDOWN = re.compile(r"(`{1,3}|__)([^`]*)\1|#{1,6} (.*)", re.DOTALL)
_CONNECTORS = re.compile(
    r"(?:[\s,;.:]|\band\b|\bor\b|\\quad|\\text\{ ?(?:and|or) ?\})*", re.IGNORECASE
)
_WORD = re.compile(r"[A-Za-z]{2,}")
_NOT_LATIN = re.compile(r"[\u0400-\u1fff\u2e80-\uffef]")
_DRESSED = re.compile(
    r"\\(?:text\w*|mbox|mathrm|operatorname|begin|end)\*?\s*\{[^{}]*\}|\\[a-zA-Z]+"
)
PLAIN_WORDS = FUNCTIONS | {"sqrt", "pi", "infinity", "inf", "and", "or", "theta", "percent", "pct"}
_UNIT_BEHIND = re.compile(
    r"(?<=[\d})%])(\s*)([A-Za-z]+(?:[ /][A-Za-z]+){0,3})\.?((?:\^\{?[1-4]\}?|²|³)?)$"
)
_UNIT_IN_PROSE = re.compile(
    r"\s{0,2}([A-Za-z]{1,12}(?: (?:per [a-z]{1,12}|[a-z]{4,12}))?)((?:\^\{?[1-4]\}?|²|³)?)"
    r"(?![A-Za-z])(\s*(?:[.,;)*]|$))?"
)
# 3 hours 20 minutes, 5 ft and 3 in
_IN_PARTS = re.compile(
    r"\d{1,9} [A-Za-z]{1,12}(?:,? (?:and )?\d{1,9}(?:\.\d{1,9})? [A-Za-z]{1,12}){1,3}\.?"
)
_PART = re.compile(r"(\d+(?:\.\d+)?) ([A-Za-z]+)")
_ALL_TEXT = re.compile(r"\\text\w*\s*\{([^{}]*\d[^{}]*)\}")


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
        for _ in range(_MOST_BOXES_IN_BOXES):
            boxed = last_boxes(boxed) or boxed
        text = _without_dollars(boxed)
    elif (opened := _BOX.search(text)) is not None:
        text = text[opened.end() :] if gold else ""
    text = _TAIL.sub("", text).strip().strip("*").strip()
    if marked := _MARKDOWN.fullmatch(text):
        text = (marked[2] if marked[1] else marked[3]).strip()
    if whole := _ALL_TEXT.fullmatch(text):
        text = whole[1].strip()
    if _IN_PARTS.fullmatch(text):
        parts = _PART.findall(text)
        if all(is_unit(unit) for _, unit in parts):
            return "".join(rf"{number}\text{{{unit}}}" for number, unit in parts)
    if not _is_prose(text):
        return _with_unit(_without_dollars(text))
    return _from_prose(text)


def _without_dollars(text: str) -> str:
    """Without the signs around a formula; a sign of money is the unit of its number."""
    if "$" not in text and "\\" not in text:
        return text
    text = text.strip()
    if (whole := _DELIMITED.fullmatch(text)) is not None:
        inside = next(group for group in whole.groups() if group is not None).strip()
    else:
        inside = text
    if money := _MONEY.fullmatch(inside):
        return rf"{money[1]}{money[2]}\text{{{money[3] or ''} dollars}}"
    return _DOLLARS.sub(" ", text).strip()


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
    words = [word for word in _WORD.findall(text) if word.lower() not in PLAIN_WORDS]
    return [word for word in words if not (word.isupper() and len(word) < 5)]


def _from_prose(text: str) -> str:
    cues = [cue for cue in CUE.finditer(text) if not _DENIED.match(text, cue.end())]
    if cues:
        rest = text[cues[-1].end() :]
        clause = _CLAUSE_END.split(rest.strip(" .*:\n"), maxsplit=1)[0].strip(" .*:")
        if clause and not _is_prose(clause):
            return _with_unit(_without_dollars(clause))
        found = _candidates(rest)
        for place, ((_, end, _), (start, _, _)) in enumerate(pairwise(found)):
            # Arithmetic written out (35 + 70 = 105) is read to its end, and so is a list.
            if not (_ARITHMETIC.fullmatch(rest[end:start]) or _AND.fullmatch(rest[end:start])):
                return _last_of(found[: place + 1], rest)
        if found:
            return _last_of(found, rest)
        if rest.strip(" .*:"):
            return _without_dollars(rest).strip(" .*:")
    found = _candidates(text)
    return _last_of(found, text) if found else text


def _last_of(found: list[tuple[int, int, str]], text: str) -> str:
    """The last candidate, and those that `and` or `or` join to it: guesses are no answer."""
    values, joint = [found[-1][2]], " ; "
    for (_, end, value), (start, _, _) in reversed(list(pairwise(found))):
        if not (joined := _AND.fullmatch(text[end:start])):
            break
        values.append(value)
        joint = " or " if joined[1].lower() == "or" else joint
    return joint.join(dict.fromkeys(reversed(values)))


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
            unit = " %" if tail else _unit_behind(text, formula.end())
            found.append((*formula.span(), inside + unit))
    inside_formula = iter(formulas)
    current = next(inside_formula, None)
    for number in _NUMBER.finditer(text):
        while current is not None and current[1] <= number.start():
            current = next(inside_formula, None)
        if current is None or number.end() <= current[0]:
            value = _without_dollars(number[0].strip())
            found.append((*number.span(), value + _unit_behind(text, number.end())))
    return sorted(found)


def _unit_behind(text: str, place: int) -> str:
    """The unit that follows a number of prose, as LaTeX text; short words only at the end."""
    found = _UNIT_IN_PROSE.match(text, place)
    if found is None or not is_unit(found[1]):
        return ""
    if (len(found[1]) < 3 or found[1] == "min") and found[3] is None:
        return ""
    return rf"\text{{{found[1]}}}{found[2]}"


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
    if words.lower() in PLAIN_WORDS or (not space and not (known and len(words) > 1)):
        return text
    if len(words) == 1 and not (words in LETTERS and re.fullmatch(r"[-+\d.,/ ]+", head)):
        return text
    if not known and (len(words.split()[0]) < 3 or re.search(r"\b(?:and|or)\b|[A-Za-z]\s*$", head)):
        return text
    return rf"{head}\text{{{words}}}{power}"
