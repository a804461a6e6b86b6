"""`r1lab new reward NAME`: write a small reward function and its test, ready to run."""

from __future__ import annotations

import keyword
import sys
from pathlib import Path

from r1lab.types import R1labError

_REWARD = '''\
"""Is the answer right? Describe here what counts as right, and why."""

from __future__ import annotations

from r1lab.types import Completion, Problem, Verdict

LONGEST = 200  # characters: a model may write anything, so refuse by size before reading


def reward(problem: Problem, completion: Completion) -> Verdict:
    """Return 1.0 if the answer equals the gold answer, ignoring case and white space, else 0.0.

    `completion` has .text (the whole response), .thinking and .answer (its parts, None if
    missing); `problem` has .question, .answer and .metadata.
    """
    if completion.answer is None:
        return Verdict(0.0, "no answer")
    if len(completion.answer) > LONGEST:
        return Verdict(0.0, f"answer longer than {LONGEST} characters")
    if plain(completion.answer) == plain(problem.answer):
        return Verdict(1.0, "right")
    return Verdict(0.0, "wrong")


def plain(text: str) -> str:
    """Return the text in lower case with single spaces."""
    return " ".join(text.lower().split())
'''

_TEST = '''\
"""What {name} must and must not accept. Run: python -m pytest {test}"""

from __future__ import annotations

import pytest
from {name} import reward

from r1lab.prompts import TEMPLATES
from r1lab.types import Problem
from r1lab.verify.check import respond

PROBLEM = Problem("one", "Which box is on top?", "Red", "{name}")


@pytest.mark.parametrize(
    ("answer", "score"),
    [("Red", 1.0), (" red ", 1.0), ("blue", 0.0), ("", 0.0), (None, 0.0), ("red " * 10_000, 0.0)],
)
def test_reward(answer, score):
    verdict = reward(PROBLEM, respond(TEMPLATES["r1-zero"], answer))
    assert verdict.score == score, verdict.reason


def test_the_answer_is_not_looked_for_in_the_thinking():
    assert reward(PROBLEM, respond(TEMPLATES["r1-zero"], "blue", thinking="Red?")).score == 0.0
'''


def new_reward(name: str) -> tuple[Path, Path]:
    """Write NAME.py and test_NAME.py and return their paths. NAME may include a folder.

    Raises R1labError if one of the files exists, or if the name cannot be imported.
    """
    path = Path(name)
    stem = path.name.removesuffix(".py")
    if not stem.isidentifier() or keyword.iskeyword(stem):
        raise R1labError(f"{stem!r} is not a valid Python module name; use letters, digits and _")
    if stem in sys.stdlib_module_names:
        raise R1labError(f"{stem!r} is a standard library module; choose another name")
    files = {
        path.with_name(f"{stem}.py"): _REWARD,
        path.with_name(f"test_{stem}.py"): _TEST.format(name=stem, test=f"test_{stem}.py"),
    }
    for file in files:
        if file.exists():
            raise R1labError(f"{file} already exists; nothing was written")
    path.parent.mkdir(parents=True, exist_ok=True)
    for file, text in files.items():
        with file.open("x", encoding="utf-8") as opened:
            opened.write(text)
    reward, test = files
    return reward, test
