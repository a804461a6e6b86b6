"""Everyday requests that are no problems: a greeting, a colour, something to write down.

What DeepSeek-R1's pipeline calls non-reasoning data (arXiv 2501.12948, sections 2.3.3 and 2.3.4),
in the small base's words. There is no one right reply: a better one is polite and to the point, and
which of two is better can be told (`rate`), so that pairs for a reward model can be made of them.

Compact form: `what colour is the box ? the box is red`; a good reply is `sure , the box is red`.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace

from r1lab.data.boxes import COLOURS
from r1lab.data.streams import Draft, GeneratedProblems
from r1lab.prompts import ANSWER_CLOSE, ANSWER_OPEN, TEMPLATES, THINK_CLOSE
from r1lab.types import Completion, Problem, Verdict

KINDS = ("colour", "write", "first", "last")
_POLITE = ("sure ,", "yes ,")
_PLEASE = ("", "please ", "hello , please ", "hello , can you help me ? please ")
_RATED = ("beside the point", "to the point", "to the point, and polite")
LEVELS = 3  # of a reply: 0 beside the point, 1 to the point, 2 polite too


def _draft(rng: random.Random) -> Draft:
    kind = rng.choice(KINDS)
    boxes = rng.sample(COLOURS, rng.randint(2, 4))
    please = rng.choice(_PLEASE)
    named = " , ".join(boxes)
    match kind:
        case "colour":
            asked = f"{please}tell me what colour the box is : the box is {boxes[0]}"
            core = f"the box is {boxes[0]}"
        case "write":
            asked, core = f"{please}write {named}", named
        case "first":
            asked = f"{please}tell me the first of {named}"
            core = f"the first is {boxes[0]}"
        case _:
            asked = f"{please}tell me the last of {named}"
            core = f"the last is {boxes[-1]}"
    return Draft(
        question=asked,
        answer=f"sure , {core}",
        verifier="unchecked",
        metadata={"kind": kind, "core": core, "boxes": boxes},
        words=asked,
    )


def load(split: str, *, seed: int = 0, form: str = "compact") -> GeneratedProblems:
    """Everyday requests for training: no rule judges a reply (`rewards/unchecked.py`)."""
    return GeneratedProblems("everyday", _draft, split=split, seed=seed, form=form)


def judged(split: str, *, seed: int = 0, form: str = "compact") -> GeneratedProblems:
    """The same for evaluation, where their makers' own measure judges (`helpfulness`)."""

    def make(rng: random.Random) -> Draft:
        return replace(_draft(rng), verifier="r1lab.data.everyday:helpfulness")

    return GeneratedProblems("everyday", make, split=split, seed=seed, form=form)


def rate(problem: Problem, reply: str | None) -> int:
    """How good a reply is: 0 beside the point, 1 to the point, 2 to the point and polite."""
    core: str = problem.metadata["core"]
    said = " ".join((reply or "").split())
    for opener in _POLITE:
        if said == f"{opener} {core}":
            return 2
    return int(said == core)


def helpfulness(problem: Problem, completion: Completion) -> Verdict:
    """A reward for evaluation: 0 beside the point, 0.5 to the point, 1 polite too.

    A run that trained on it would need no reward model. None for other problems.
    """
    if "core" not in problem.metadata:
        return Verdict(None, "not an everyday request")
    level = rate(problem, completion.answer)
    return Verdict(level / (LEVELS - 1), _RATED[level])


def reply(problem: Problem, level: int, rng: random.Random) -> str:
    """A reply of a level, as `rate` has it."""
    core: str = problem.metadata["core"]
    if level == 2:
        return f"{rng.choice(_POLITE)} {core}"
    if level == 1:
        return core
    boxes = problem.metadata["boxes"]
    others = [colour for colour in COLOURS if colour not in boxes]
    wrong = core.replace(boxes[0], others[0]).replace(boxes[-1], others[1])
    return rng.choice(("no", "sorry , not now", "what ?", wrong, f"sure , {wrong}"))


def guess(problem: Problem, rng: random.Random) -> str:
    """A reply that is beside the point."""
    return reply(problem, 0, rng)


def _response(text: str) -> str:
    return f" {THINK_CLOSE} {ANSWER_OPEN} {text} {ANSWER_CLOSE}"


def examples(*, num: int, seed: int = 0) -> Iterator[dict[str, str]]:
    """Good replies to train on: rows of prompt, completion, question, answer, source."""
    stream = load("train", seed=seed)
    for index in range(num):
        problem, rng = stream[index], random.Random(f"everyday/{seed}/{index}")
        yield {
            "id": problem.id,
            "source": problem.source,
            "question": problem.question,
            "prompt": TEMPLATES["compact"].prompt(problem.question),
            "completion": _response(reply(problem, 2, rng)),
        }


def pairs(*, num: int, seed: int = 0) -> Iterator[dict[str, str]]:
    """Pairs for a reward model: rows of prompt, chosen, rejected; one level apart, or two."""
    stream = load("train", seed=seed + 1)
    for index in range(num):
        problem, rng = stream[index], random.Random(f"pairs/{seed}/{index}")
        worse, better = sorted(rng.sample(range(LEVELS), 2))
        yield {
            "id": problem.id,
            "question": problem.question,
            "prompt": TEMPLATES["compact"].prompt(problem.question),
            "chosen": _response(reply(problem, better, rng)),
            "rejected": _response(reply(problem, worse, rng)),
        }
