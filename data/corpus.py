"""The pre-training corpus: problems with responses of every quality, each share an explicit dial.

What reinforcement learning can amplify is what the base has seen (arXiv 2510.11495, 2503.01307), so
the corpus holds, beside a few complete solutions, mostly guesses, work that breaks off, work with
slips, slips that are noticed, and broken forms. All questions are of the training split.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from types import ModuleType

from r1lab.data import arithmetic, boxes, derivations, division, everyday
from r1lab.data.notation import in_words, mixed
from r1lab.data.streams import SolutionWriter
from r1lab.prompts import ANSWER_CLOSE, ANSWER_OPEN, TEMPLATES, THINK_CLOSE
from r1lab.types import Problem

TASKS: dict[str, ModuleType] = {
    "boxes": boxes,
    "arithmetic": arithmetic,
    "division": division,
    "derivations": derivations,
}


@dataclass(frozen=True)
class Dials:
    """What the corpus is made of. Shares are of documents; rates are per step of work.

    The kinds (`guess`, `partial`, `full`, `selfcheck`) are scaled to add up to one.
    """

    tasks: Mapping[str, float] = field(default_factory=lambda: dict.fromkeys(TASKS, 1.0))
    drills: float = 0.15  # documents that are lists of single steps, as facts
    guess: float = 0.62
    partial: float = 0.13
    full: float = 0.14
    selfcheck: float = 0.11
    empty_guesses: float = 0.9  # guesses whose thinking is empty, the rest muse a little
    right_guesses: float = 0.5  # answers of guesses and broken-off work that are right
    slip_rate: float = 0.08
    selfcheck_slip_rate: float = 0.12
    notice_rate: float = 0.9  # slips of self-checking work that are noticed
    recheck_rate: float = 0.1
    broken: float = 0.30  # documents whose form is broken
    # Of documents with work: all of it in words, or in a notation that changes (data/notation.py).
    words: float = 0.0
    mixed: float = 0.0
    everyday: float = 0.0  # documents that are everyday requests with a reply (data/everyday.py)


@dataclass(frozen=True, slots=True)
class Document:
    """A piece of the corpus; the prompt's part is told apart so that its loss can be weighed."""

    kind: str
    task: str
    prompt: str
    response: str


_AT_MOST_ONE = ("_rate", "drills", "broken", "_guesses", "words", "mixed", "everyday")
_MUSINGS = ("maybe", "let me see", "so", "I think", "wait")


class Corpus:
    """An endless stream of documents, deterministic in (seed, index)."""

    def __init__(self, dials: Dials, seed: int = 0) -> None:
        _check(dials)
        self.dials, self.seed = dials, seed
        self.streams = {name: TASKS[name].load("train", seed=seed + 1) for name in dials.tasks}
        self._everyday = everyday.load("train", seed=seed + 2)

    def __getitem__(self, index: int) -> Document:
        rng = random.Random(f"corpus/{self.seed}/{index}")
        # Of its own, so that dials of notation and everyday requests change no other document.
        side = random.Random(f"corpus/side/{self.seed}/{index}")
        dials = self.dials
        if side.random() < dials.everyday:
            return self._chat(index, side)
        task = rng.choices(list(dials.tasks), list(dials.tasks.values()))[0]
        if rng.random() < dials.drills:
            facts = [TASKS[task].drill(rng) for _ in range(rng.randint(3, 6))]
            return Document("drill", task, "", " ; ".join(self._written(facts, side)))
        kinds = ("guess", "partial", "full", "selfcheck")
        kind = rng.choices(kinds, [getattr(dials, name) for name in kinds])[0]
        problem = self.streams[task][index]
        lines, answer = self._respond(TASKS[task], problem, kind, rng)
        thinking = TASKS[task].SEPARATOR.join(self._written(lines, side))
        if rng.random() < dials.broken:
            response = _broken(thinking, answer, rng)
        else:
            response = f"{thinking} {THINK_CLOSE} {ANSWER_OPEN} {answer} {ANSWER_CLOSE}"
        return Document(kind, task, TEMPLATES["compact"].prompt(problem.question), response.strip())

    def __iter__(self) -> Iterator[Document]:
        index = 0
        while True:
            yield self[index]
            index += 1

    def _chat(self, index: int, rng: random.Random) -> Document:
        """An everyday request, its reply of any level, its form broken as often as elsewhere."""
        problem = self._everyday[index]
        answer = everyday.reply(problem, rng.randrange(everyday.LEVELS), rng)
        if rng.random() < self.dials.broken:
            response = _broken("", answer, rng)
        else:
            response = f"{THINK_CLOSE} {ANSWER_OPEN} {answer} {ANSWER_CLOSE}"
        prompt = TEMPLATES["compact"].prompt(problem.question)
        return Document("chat", "everyday", prompt, response.strip())

    def _written(self, lines: list[str], rng: random.Random) -> list[str]:
        """The lines in symbols, in words, or in a notation that changes, by the dials."""
        chance = rng.random()
        if chance < self.dials.words:
            return [in_words(line) for line in lines]
        if chance < self.dials.words + self.dials.mixed:
            return mixed(lines, rng)
        return lines

    def _guess(self, task: ModuleType, problem: Problem, rng: random.Random) -> str:
        right = rng.random() < self.dials.right_guesses
        return problem.answer if right else task.guess(problem, rng)

    def _respond(
        self, task: ModuleType, problem: Problem, kind: str, rng: random.Random
    ) -> tuple[list[str], str]:
        dials = self.dials
        if kind == "guess":
            empty = rng.random() < dials.empty_guesses
            return [] if empty else [rng.choice(_MUSINGS)], self._guess(task, problem, rng)
        if kind == "selfcheck":
            work = SolutionWriter(
                rng, dials.selfcheck_slip_rate, dials.notice_rate, dials.recheck_rate
            )
        else:
            work = SolutionWriter(rng, dials.slip_rate)
        answer = task.solve(problem, work)
        lines = work.lines
        if kind == "partial":
            lines = lines[: rng.randint(1, max(len(lines) - 1, 1))]
            answer = self._guess(task, problem, rng)
        return lines, answer


def _broken(thinking: str, answer: str, rng: random.Random) -> str:
    """A response whose form is broken in one of the ways that base models break it."""
    forms = (
        f"{thinking} {THINK_CLOSE} {answer}",
        f"{thinking} {ANSWER_OPEN} {answer} {ANSWER_CLOSE}",
        f"{thinking} {THINK_CLOSE} {ANSWER_OPEN} {answer}",
        f"{thinking} {THINK_CLOSE} {ANSWER_OPEN} {answer} {ANSWER_CLOSE} so {answer}",
        f"{thinking} {THINK_CLOSE} {THINK_CLOSE} {ANSWER_OPEN} {answer} {ANSWER_CLOSE}",
    )
    return rng.choice(forms)


def _check(dials: Dials) -> None:
    """Refuse dials that mean nothing; ValueError names the first."""
    if not isinstance(dials.tasks, Mapping) or not dials.tasks:
        raise ValueError(f"tasks: {dials.tasks!r} must map names to shares: {', '.join(TASKS)}")
    unknown = [name for name in dials.tasks if name not in TASKS]
    if unknown:
        raise ValueError(f"tasks: {unknown} must be among {', '.join(TASKS)}")
    shares = {f"tasks.{name}": share for name, share in dials.tasks.items()}
    for name, share in {**vars(dials), **shares}.items():
        if name == "tasks":
            continue
        if isinstance(share, bool) or not isinstance(share, int | float) or not 0 <= share < 1e6:
            raise ValueError(f"{name}: {share!r} must be a number, at least 0")
        if name.endswith(_AT_MOST_ONE) and share > 1:
            raise ValueError(f"{name}: {share!r} is a share, and must be at most 1")
    if dials.words + dials.mixed > 1:
        raise ValueError(f"words, mixed: {dials.words} and {dials.mixed} are more than all")
    if not sum(shares.values()) or not sum(
        (dials.guess, dials.partial, dials.full, dials.selfcheck)
    ):
        raise ValueError("tasks, or the kinds of documents: all shares are 0")


def documents(*, seed: int = 0, **dials: object) -> Corpus:
    """The corpus with the given dials, the others at their defaults; else ValueError."""
    known = [field.name for field in fields(Dials)]
    for name in dials:
        if name not in known:
            close = get_close_matches(name, known, n=1)
            hint = f" (did you mean {close[0]!r}?)" if close else ""
            raise ValueError(f"{name}: unknown dial{hint}; there are {', '.join(known)}")
    return Corpus(Dials(**dials), seed)  # type: ignore[arg-type]
