"""Two ways of writing the same work: in symbols (`8 / 6 = 1 r 2`), or in words.

For the small base these are what two languages are for a large one: a base that has seen both mixes
them within one chain of thought, as DeepSeek-R1-Zero mixes Chinese and English (arXiv 2501.12948,
section 2.3.2), and which of them a chain is written in can be counted. Symbols and words go one to
one, token for token, so that a chain is equally long in both and length rewards neither. Names of
boxes, moves, unknowns, brackets and what stands between steps belong to neither.
"""

from __future__ import annotations

import random
import re
from typing import Literal

from r1lab.prompts import ANSWER_CLOSE, ANSWER_OPEN, THINK_CLOSE
from r1lab.types import Completion, Problem, Verdict

Notation = Literal["symbols", "words"]
NOTATIONS = ("symbols", "words")

WORD_OF = {
    "0": "zero", "1": "one", "2": "two", "3": "three", "4": "four", "5": "five", "6": "six",
    "7": "seven", "8": "eight", "9": "nine", "+": "plus", "-": "minus", "*": "times", "/": "by",
    "=": "is", "r": "rest", ":": "now",
}  # fmt: skip
SYMBOL_OF = {word: symbol for symbol, word in WORD_OF.items()}
_TOKEN = re.compile(r"[a-zA-Z]+|\d|\S")
_BETWEEN_DIGITS = re.compile(r"(?<=\d) (?=\d)")


def in_words(text: str) -> str:
    """The text with every symbol as its word: `847 / 6` becomes `eight four seven by six`."""
    return " ".join(WORD_OF.get(token, token) for token in _TOKEN.findall(text))


def in_symbols(text: str) -> str:
    """The text with every such word as its symbol; digits side by side make one number."""
    tokens = (SYMBOL_OF.get(token, token) for token in _TOKEN.findall(text))
    return _BETWEEN_DIGITS.sub("", " ".join(tokens))


def counts(text: str) -> dict[Notation, int]:
    """How many tokens of the text belong to each notation."""
    tokens = _TOKEN.findall(text)
    return {
        "symbols": sum(token in WORD_OF for token in tokens),
        "words": sum(token in SYMBOL_OF for token in tokens),
    }


def consistency(problem: Problem, completion: Completion, *, notation: str = "words") -> Verdict:
    """A reward: the share, 0 to 1, of the thinking's marks in the notation.

    DeepSeek-R1's language consistency (arXiv 2501.12948, section 2.3.2: the share of words in the
    target language) for two ways of writing. None where there is nothing to tell one by,
    and not 1, so that it cannot be had by not thinking. Raises ValueError for a notation that
    is not known.
    """
    if notation not in NOTATIONS:
        raise ValueError(f"notation: {notation!r} is not one of {', '.join(NOTATIONS)}")
    if completion.thinking is None:
        return Verdict(0.0, "no thinking part")
    found = counts(completion.thinking)
    total = sum(found.values())
    if not total:
        return Verdict(None, "nothing to tell a notation by")
    inside = found[notation]  # type: ignore[index]
    return Verdict(inside / total, f"{inside} of {total} marks in {notation}")


def mixed(lines: list[str], rng: random.Random, change: float = 0.5) -> list[str]:
    """The lines of some work in a notation that changes from line to line with that chance."""
    written, is_words = [], rng.random() < 0.5
    for line in lines:
        written.append(in_words(line) if is_words else line)
        if rng.random() < change:
            is_words = not is_words
    return written


def tidied(problem: Problem, completion: Completion) -> str | None:
    """A response to be learnt: its work in words throughout, slips and second looks taken out.

    What DeepSeek-R1's makers did by hand to R1-Zero's chains (arXiv 2501.12948, section 2.3.1), by
    rule: of `x wait y` the mended y stays, of `x check x` one. None where there is no work to learn
    from, or where a slip was noticed without being mended.
    """
    if not completion.thinking or completion.answer is None:
        return None
    separator = " , " if " , " in completion.thinking else " ; "
    lines = []
    for line in completion.thinking.split(separator):
        mended = line.split(" wait ")[-1]
        first, *again = mended.split(" check ")
        if any(in_words(look) != in_words(first) for look in again) or not first.strip():
            return None
        lines.append(in_words(first))
    work = separator.join(lines)
    return f" {work} {THINK_CLOSE} {ANSWER_OPEN} {completion.answer} {ANSWER_CLOSE}"
