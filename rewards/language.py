"""DeepSeek-R1's language consistency: the share of the thinking's words in the target language.

arXiv 2501.12948, section 2.3.2 (the reward that keeps the chain of thought in one language). The
paper does not say how it tells languages apart. Deviations, decided here:
1. A language is told by the script of its words: of "en" any word in Latin letters counts. Give
   `word_list`, a file with a word a line, to count words of that list instead.
2. Numbers, signs, LaTeX commands and code in backticks are no words. Without any word the reward
   does not apply (None), so that it cannot be had by not thinking.
3. Each Chinese or Japanese character is a word of its own.
"""

from __future__ import annotations

import re
from functools import lru_cache
from pathlib import Path

from r1lab.types import Completion, Problem, Verdict

_SCRIPTS = {
    "latin": "A-Za-z\u00c0-\u024f\u1e00-\u1eff",
    "han": "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff",
    "kana": "\u3040-\u30ff",
    "hangul": "\uac00-\ud7af\u1100-\u11ff",
    "cyrillic": "\u0400-\u052f",
    "greek": "\u0370-\u03ff",
    "arabic": "\u0600-\u06ff\u0750-\u077f",
    "hebrew": "\u0590-\u05ff",
    "devanagari": "\u0900-\u097f",
    "thai": "\u0e00-\u0e7f",
}
_LANGUAGES = {
    **dict.fromkeys(("en", "fr", "de", "es", "it", "pt", "nl", "pl", "tr", "vi"), ("latin",)),
    "zh": ("han",), "ja": ("han", "kana"), "ko": ("hangul",), "ru": ("cyrillic",),
    "uk": ("cyrillic",), "el": ("greek",), "ar": ("arabic",), "fa": ("arabic",),
    "he": ("hebrew",), "hi": ("devanagari",), "th": ("thai",),
}  # fmt: skip
_NO_WORDS = re.compile(r"\\[a-zA-Z]+|`[^`\n]{0,2000}`|(?<![^\W\d_])[a-zA-Z](?![^\W\d_])")
# One character of Han or kana, or a run of other letters.
_WORD = re.compile(
    rf"[{_SCRIPTS['han']}{_SCRIPTS['kana']}]|[^\W\d_{_SCRIPTS['han']}{_SCRIPTS['kana']}]+"
)


def reward(
    problem: Problem,
    completion: Completion,
    *,
    language: str = "en",
    word_list: str | None = None,
) -> Verdict:
    """The share, 0 to 1, of the thinking's words in the language; None without thinking words.

    Raises ValueError for a language that is not known and an absent word list.
    """
    if completion.thinking is None:
        return Verdict(0.0, "no thinking part")
    words = _WORD.findall(_NO_WORDS.sub(" ", completion.thinking))
    if not words:
        return Verdict(None, "no words to tell a language by")
    if word_list is not None:
        known = _read_words(word_list)
        inside = sum(word.casefold() in known for word in words)
    else:
        pattern = _script_of(language)
        inside = sum(pattern.fullmatch(word) is not None for word in words)
    return Verdict(inside / len(words), f"{inside} of {len(words)} words")


@lru_cache(maxsize=32)
def _script_of(language: str) -> re.Pattern[str]:
    if language not in _LANGUAGES:
        raise ValueError(f"language: {language!r} is not one of {', '.join(sorted(_LANGUAGES))}")
    return re.compile(f"[{''.join(_SCRIPTS[name] for name in _LANGUAGES[language])}]+")


@lru_cache(maxsize=8)
def _read_words(path: str) -> frozenset[str]:
    file = Path(path).expanduser()
    if not file.is_file():
        raise ValueError(f"word_list: {path}: no such file")
    return frozenset(file.read_text(encoding="utf-8").casefold().split())
