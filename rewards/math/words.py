"""Answers that are words, or the letter of a choice."""

from __future__ import annotations

import re

from r1lab.rewards.math.read import CUE, PLAIN_WORDS, last_boxes

_DRESSING = re.compile(
    r"\\(?:text\w*|mbox|mathrm|mathbf|operatorname|left|right|displaystyle)(?![a-zA-Z])"
    r"|[${}]|\\[,;:! ]|~"
)
# A number to a base beyond ten: 1A_{16}. Its digits are no product that could be turned round.
_LETTER_DIGITS = re.compile(r"\(?(\d*[A-Z][A-Z\d]+|\d+[A-Z])\)?_(\d+|[a-z]{3,10})")
_TIME = re.compile(r"(\d{1,2}):(\d\d) ?([AaPp])\.? ?[Mm]")
_ARTICLES = frozenset({"a", "an", "the"})
_CHOICE = re.compile(r"\(?([A-J])\)?[.:]?")
_OPTION = re.compile(r"(?:[Oo]ption|[Cc]hoice|[Aa]nswer)\s*:?\s*\(?([A-J])\)?\.?")
# Not two letters offered at once: `A or B`, `A, B`.
_ALONE = r"(?!\)?\s*(?:,|/|or|and)\s*\(?[A-J](?![A-Za-z]))"
_LETTER = re.compile(rf"(?<![A-Za-z0-9_])\(?([A-J])\)?(?![A-Za-z0-9_*^=+'’]){_ALONE}")
_LEADING = re.compile(rf"\(?([A-J])\)?{_ALONE}(?:[.:)。，]|\s+[A-Za-z]{{2}}|[\u2e80-\uffef])")
_NAMED_CHOICE = re.compile(r"(?:\(([A-J])\)|([A-J])[.:)]|([A-J]))\s+[A-Za-z].*", re.DOTALL)


def undressed(text: str) -> str:
    """The text without LaTeX's dressing and with single spaces."""
    return " ".join(_DRESSING.sub(" ", text).split())


def words_of(text: str) -> list[str] | None:
    """The words of an answer that is words or one name of three letters or more; else None."""
    plain = undressed(text).strip(" .,")
    if found := _LETTER_DIGITS.fullmatch(plain.replace(" ", "")):
        return [found[1].casefold(), found[2].casefold()]
    if found := _TIME.fullmatch(plain):
        return [str(int(found[1])), found[2], found[3].casefold()]
    if not re.fullmatch(r"[^\W\d_][^\d=<>+*/^_\\|\[\]]*", plain):
        return None
    words = [word for word in re.split(r"[^\w']+", plain) if word]
    if not any(len(word) > 2 and word.lower() not in PLAIN_WORDS for word in words):
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
    if found := _OPTION.fullmatch(plain) or _CHOICE.fullmatch(plain.rstrip(" .")):
        return found[1]
    cues = list(CUE.finditer(plain))
    if cues and (found := _LETTER.search(plain, cues[-1].start())):
        return found[1]
    found = _LEADING.match(plain)
    return found[1] if found else None
