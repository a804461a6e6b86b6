"""Is the stack right? The boxes from bottom to top, in the usual ways to list them.

`red, blue, green`, `red -> blue -> green`, `[red; blue; green]`, `1. red 2. blue 3. green`,
`bottom: red, blue, top: green`, `the red box, then the blue one and the green one`. A list that
says that it goes `from top to bottom` is turned round. A word that is no part of such a list makes
the answer another list: names are not fished out of a story.
"""

from __future__ import annotations

import re

from r1lab.types import Completion, Problem, Verdict

_LONGEST = 500  # characters: a list of boxes is short, and anything longer is refused unread
_BETWEEN = re.compile(r"[\s,;>|.:()\[\]{}<*$\"'→-]+")
_BOXED = re.compile(r"\\boxed\s*\{([^{}]*)\}\.?")
_DRESSING = re.compile(r"\\(?:text|textbf|mathrm|rightarrow|to|quad)(?![a-z])")
_DIRECTION = re.compile(r"(?:from )?(?:the )?(bottom|top) (?:up |down )?to (?:the )?(top|bottom)")
_FILLERS = frozenset({"and", "then", "the", "box", "boxes", "one", "is", "are", "bottom", "top"})


def read_stack(text: str) -> list[str]:
    """The names in a list such as `red, blue and green`, from bottom to top."""
    boxed = _BOXED.fullmatch(text.strip())
    text = _DRESSING.sub(" ", boxed[1] if boxed else text).lower()
    direction = _DIRECTION.search(text)
    if direction is not None:
        text = text[: direction.start()] + " " + text[direction.end() :]
    words = [word for word in _BETWEEN.split(text) if word]
    if _is_numbered(words):
        words = words[1::2]
    turned = direction is not None and direction[1] == "top"
    if "top" in words and "bottom" in words and words.index("top") < words.index("bottom"):
        turned = True
    names = [word for word in words if word not in _FILLERS]
    return names[::-1] if turned else names


def _is_numbered(words: list[str]) -> bool:
    """Whether the words are `1 red 2 blue`, counted from one."""
    return len(words) > 1 and words[::2] == [str(n + 1) for n in range(-(-len(words) // 2))]


def reward(problem: Problem, completion: Completion) -> Verdict:
    """1.0 where the answer names the right boxes in the right order, else 0.0."""
    if completion.answer is None:
        return Verdict(0.0, "no answer")
    if len(completion.answer) > _LONGEST:
        return Verdict(0.0, f"answer longer than {_LONGEST} characters")
    named, right = read_stack(completion.answer), read_stack(problem.answer)
    if named == right:
        return Verdict(1.0, "the right stack")
    if sorted(named) == sorted(right):
        return Verdict(0.0, "the right boxes in the wrong order")
    return Verdict(0.0, "not the right boxes")
