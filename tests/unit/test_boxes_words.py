"""Box stacking in words: right by an independent reader, held out whatever the wording."""

from __future__ import annotations

import re

import pytest

from r1lab.data import boxes, boxes_words
from r1lab.data.streams import is_held_out
from r1lab.rewards.boxes import reward
from r1lab.types import Completion, Problem

LEVELS = sorted(boxes_words.LEVELS)


def read(question: str) -> list[str]:
    """The stack that a question's sentences lead to, by patterns of its own."""
    laid, *sentences = question.split(". ")
    stack = re.findall(r"(\w+) (?:at the bottom|on it|above it|next|on top)", laid)
    for told in sentences[:-1]:
        named = [word for word in re.findall(r"\w+", told) if word in boxes.COLOURS]
        rest = [box for box in stack if box not in named]
        if re.search(r"^Add|^Put", told) or re.search(r"(?:put it on|to the) top", told):
            stack = rest + named
        elif re.search(r"at the bottom|to the bottom", told):
            stack = named + rest
        elif re.search(r"away|Remove", told):
            stack = rest
        elif re.search(r"Swap|change places", told):
            i, j = map(stack.index, named)
            stack[i], stack[j] = stack[j], stack[i]
        else:
            assert re.search(r"upside down|Reverse", told), told
            stack.reverse()
    return stack


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("split", ["train", "test"])
def test_the_answer_follows_from_the_words(split: str, level: int) -> None:
    stream = boxes_words.load(split, seed=3, levels=[level])
    wordings = set()
    for i in range(100):
        problem = stream[i]
        assert ", ".join(read(problem.question)) == problem.answer, problem.question
        assert problem.metadata["level"] == level
        assert " a orange" not in problem.question
        wordings.add(problem.question.partition(" boxes")[0].split()[0] + problem.question[-12:])
    assert len(wordings) >= 4


def test_held_out_problems_are_trained_on_in_no_wording() -> None:
    def problem_behind(problem: Problem) -> str:
        moves = [tuple(move) for move in problem.metadata["moves"]]
        return boxes.compact_question(tuple(problem.metadata["start"]), moves)

    for split in ("train", "test"):
        streams = [boxes_words.load(split, seed=seed) for seed in (0, 1)]
        behind = [problem_behind(stream[i]) for stream in streams for i in range(300)]
        assert {is_held_out(question) for question in behind} == {split == "test"}
    # The plain source's own problems in words fall the same way.
    assert is_held_out(boxes.load("test", form="compact")[0].question)


def test_levels_are_chosen_and_come_alike() -> None:
    stream = boxes_words.load("train", levels=(2, 4))
    levels = [stream[i].metadata["level"] for i in range(200)]
    assert set(levels) == {2, 4} and 70 < levels.count(2) < 130
    for bad in ((), (0,), (1, 9)):
        with pytest.raises(ValueError, match=r"levels: .* must be among 1, 2, 3, 4, 5, 6"):
            boxes_words.load("train", levels=bad)


@pytest.mark.parametrize(
    ("said", "score"),
    [
        ("red, blue, green", 1.0),
        ("Red, blue, green.", 1.0),
        ("red, blue, and green", 1.0),
        ("red at the bottom, blue, green on top", 0.0),  # no list of colours only
        ("green, blue, red", 0.0),
        ("red, blue", 0.0),
        ("red, blue, green, red", 0.0),
        ("", 0.0),
        ("The stack is: red, blue, green, yellow, white, pink, brown", 0.0),
    ],
)
def test_the_verifier_reads_lists_of_colours_only(said: str, score: float) -> None:
    problem = Problem("0", "", "red, blue, green", "boxes")
    completion = Completion((), said, "stop", 0, answer=said)
    assert reward(problem, completion).score == score
