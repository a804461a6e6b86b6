"""Box stacking in words: follow the moves and name the boxes from bottom to top.

Compact form: `red at bottom , blue on it , green on it ; put red on top ; add pink`, answer
`blue green red pink`. The form in words is plain English, for models that were trained on it.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from r1lab.data.streams import Draft, GeneratedProblems, SolutionWriter, check_range
from r1lab.types import Problem

COLOURS = (
    "red", "blue", "green", "yellow", "white", "black", "pink", "brown", "grey", "orange",
)  # fmt: skip
MOVES = ("put_top", "put_bottom", "take_out", "add", "swap", "turn_over")
Stack = tuple[str, ...]
Move = tuple[str, ...]
SEPARATOR = " ; "


def apply_move(stack: Stack, move: Move) -> Stack:
    """The stack (bottom first) after one move."""
    kind, *names = move
    rest = tuple(box for box in stack if box not in names)
    match kind:
        case "put_top":
            return (*rest, *names)
        case "put_bottom":
            return (*names, *rest)
        case "take_out":
            return rest
        case "add":
            return (*stack, *names)
        case "swap":
            other = {names[0]: names[1], names[1]: names[0]}
            return tuple(other.get(box, box) for box in stack)
        case "turn_over":
            return stack[::-1]
    raise ValueError(f"unknown move {kind!r}")


_COMPACT = {
    "put_top": "put {} on top",
    "put_bottom": "put {} at bottom",
    "take_out": "take {} out",
    "add": "add {}",
    "swap": "swap {} {}",
    "turn_over": "turn over",
}
_WORDS = {
    "put_top": "take the {} one out and put it on top",
    "put_bottom": "take the {} one out and put it at the bottom",
    "take_out": "take the {} one away",
    "add": "put a {} one on top",
    "swap": "swap the {} one and the {} one",
    "turn_over": "turn the whole stack upside down",
}
_NUMBERS = {2: "Two", 3: "Three", 4: "Four", 5: "Five", 6: "Six", 7: "Seven", 8: "Eight"}


def draw(
    rng: random.Random,
    boxes: tuple[int, int],
    moves: tuple[int, int],
    kinds: Sequence[str] = MOVES,
) -> tuple[Stack, list[Move]]:
    """A stack and moves that it allows, of those kinds; both ranges include their ends."""
    start = tuple(rng.sample(COLOURS, rng.randint(*boxes)))
    stack, chosen = start, []
    for _ in range(rng.randint(*moves)):
        options = [kind for kind in kinds if _possible(kind, stack, boxes[1])]
        kind = rng.choice(options)
        match kind:
            case "add":
                names = (rng.choice([c for c in COLOURS if c not in stack]),)
            case "swap":
                names = tuple(rng.sample(stack, 2))
            case "turn_over":
                names = ()
            case "put_top":
                names = (rng.choice(stack[:-1]),)
            case "put_bottom":
                names = (rng.choice(stack[1:]),)
            case _:
                names = (rng.choice(stack),)
        chosen.append((kind, *names))
        stack = apply_move(stack, chosen[-1])
    return start, chosen


def _possible(kind: str, stack: Stack, most: int) -> bool:
    if kind == "take_out":
        return len(stack) > 2
    return kind != "add" or len(stack) <= most


def compact_question(start: Stack, moves: list[Move]) -> str:
    """The question in the compact form, which decides its split in every form."""
    laid = f"{start[0]} at bottom" + "".join(f" , {box} on it" for box in start[1:])
    return SEPARATOR.join([laid, *(_COMPACT[kind].format(*names) for kind, *names in moves)])


def _draft(start: Stack, moves: list[Move]) -> Draft:
    stack = start
    for move in moves:
        stack = apply_move(stack, move)
    laid = f"{start[0]} at the bottom, " + ", ".join(f"{box} on it" for box in start[1:])
    told = "; ".join(_WORDS[kind].format(*names) for kind, *names in moves)
    return Draft(
        question=compact_question(start, moves),
        answer=" ".join(stack),
        verifier="boxes",
        metadata={"start": list(start), "moves": [list(move) for move in moves]},
        words=f"{_NUMBERS[len(start)]} boxes are stacked: {laid}. Then: {told}. "
        "Name the boxes from bottom to top.",
    )


def load(
    split: str,
    *,
    seed: int = 0,
    form: str = "compact",
    min_boxes: int = 3,
    max_boxes: int = 5,
    min_moves: int = 2,
    max_moves: int = 4,
) -> GeneratedProblems:
    """Box-stacking problems: `min_boxes` to `max_boxes` at first, that many moves."""
    check_range("boxes", min_boxes, max_boxes, least=2, most=8)
    check_range("moves", min_moves, max_moves, least=1, most=20)

    def make(rng: random.Random) -> Draft:
        return _draft(*draw(rng, (min_boxes, max_boxes), (min_moves, max_moves)))

    return GeneratedProblems("boxes", make, split=split, seed=seed, form=form)


def slipped_stack(stack: Stack, rng: random.Random) -> Stack:
    """A wrong stack as it is easily miswritten: two boxes exchanged, or one forgotten."""
    if len(stack) < 2 or (len(stack) > 2 and rng.random() < 0.25):
        gone = rng.randrange(len(stack))
        return stack[:gone] + stack[gone + 1 :]
    left, right = rng.sample(range(len(stack)), 2)
    boxes = list(stack)
    boxes[left], boxes[right] = boxes[right], boxes[left]
    return tuple(boxes)


def solve(problem: Problem, work: SolutionWriter) -> str:
    """Write the stack after each move; return the answer that the work arrives at."""
    stack: Stack = tuple(problem.metadata["start"])
    for kind, *names in problem.metadata["moves"]:
        told = _COMPACT[kind].format(*names)
        stack = work.step(
            apply_move(stack, (kind, *names)),
            lambda boxes, told=told: f"{told} : {' '.join(boxes)}",
            _slip_of(apply_move(stack, (kind, *names))),
        )
    return " ".join(stack)


def _slip_of(right: Stack) -> Callable[[random.Random], Stack]:
    return lambda rng: slipped_stack(right, rng)


def guess(problem: Problem, rng: random.Random) -> str:
    """A plausible wrong answer: the final stack with one slip."""
    return " ".join(slipped_stack(tuple(problem.answer.split()), rng))


def drill(rng: random.Random) -> str:
    """One move on its own, as a fact."""
    start, moves = draw(rng, (3, 5), (1, 1))
    told = _COMPACT[moves[0][0]].format(*moves[0][1:])
    return f"{' '.join(start)} ; {told} : {' '.join(apply_move(start, moves[0]))}"
