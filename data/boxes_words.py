"""Box stacking in plain English, by level: for models that were trained on words.

`Three boxes: red at the bottom, blue on it, yellow on top. Take the blue one out and put it on
top. Add a green one. Describe the stack: colours only, from bottom to top, with commas.`, answer
`red, yellow, blue, green`. The wording varies; the problem behind it, in the compact form of
`boxes`, decides the split, so that no held-out problem is trained on in other words.

`level` in the metadata goes from 1 (nothing is moved) to 6; `LEVELS` says what each has.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from r1lab.data.boxes import MOVES, Move, Stack, apply_move, compact_question, draw
from r1lab.data.streams import Draft, GeneratedProblems

# level -> (boxes at first, moves, kinds of move); ranges include their ends.
LEVELS: dict[int, tuple[tuple[int, int], tuple[int, int], Sequence[str]]] = {
    1: ((2, 4), (0, 0), MOVES),
    2: ((2, 3), (1, 1), ("add", "take_out")),
    3: ((3, 3), (1, 1), MOVES),
    4: ((3, 3), (2, 2), MOVES),
    5: ((3, 4), (2, 3), MOVES),
    6: ((4, 5), (3, 4), MOVES),
}
_NUMBERS = {2: "two", 3: "three", 4: "four", 5: "five"}
_BEGIN = (
    "{number} boxes: {laid}.",
    "There is a stack of {number} boxes: {laid}.",
    "{number} coloured boxes are stacked: {laid}.",
)
_TOLD: dict[str, tuple[str, ...]] = {
    "put_top": (
        "Take the {} one out and put it on top.",
        "Move the {} box to the top.",
    ),
    "put_bottom": (
        "Take the {} one out and put it at the bottom.",
        "Move the {} box to the bottom.",
    ),
    "take_out": ("Take the {} one away.", "Remove the {} box."),
    "add": ("Add a {} one.", "Put a {} box on top."),
    "swap": ("Swap the {} one and the {} one.", "The {} and the {} box change places."),
    "turn_over": ("Turn the whole stack upside down.", "Reverse the order of the boxes."),
}
_ASK = (
    "Describe the stack: colours only, from bottom to top, with commas.",
    "Name the colours from bottom to top, separated by commas, and nothing else.",
)


def _laid(start: Stack, rng: random.Random) -> str:
    """`red at the bottom, blue on it, yellow on top`."""
    first, *between, last = start
    on = rng.choice(("on it", "above it", "next"))
    return ", ".join([f"{first} at the bottom", *(f"{b} {on}" for b in between), f"{last} on top"])


def words(start: Stack, moves: Sequence[Move], rng: random.Random) -> str:
    """The question in one of its wordings."""
    begin = rng.choice(_BEGIN).format(number=_NUMBERS[len(start)], laid=_laid(start, rng))
    told = [rng.choice(_TOLD[kind]).format(*names) for kind, *names in moves]
    text = " ".join([begin[0].upper() + begin[1:], *told, rng.choice(_ASK)])
    return text.replace(" a orange", " an orange")


def load(
    split: str, *, seed: int = 0, levels: Sequence[int] = (1, 2, 3, 4, 5, 6)
) -> GeneratedProblems:
    """Problems of these levels, each as often as the others."""
    unknown = [level for level in levels if level not in LEVELS]
    if unknown or not levels:
        known = ", ".join(map(str, LEVELS))
        raise ValueError(f"levels: {list(levels)} must be among {known}")

    def make(rng: random.Random) -> Draft:
        level = rng.choice(list(levels))
        start, moves = draw(rng, *LEVELS[level])
        stack = start
        for move in moves:
            stack = apply_move(stack, move)
        return Draft(
            question=compact_question(start, moves),
            answer=", ".join(stack),
            verifier="boxes",
            metadata={"start": list(start), "moves": [list(m) for m in moves], "level": level},
            words=words(start, moves, rng),
        )

    return GeneratedProblems("boxes_words", make, split=split, seed=seed, form="words")
