"""Test whether a reward separates right from wrong, without a model (`r1lab verify`).

Responses are made from the problems themselves:
    gold      the gold answer, well-formed: must score full
    empty     nothing, no answer part, an empty one: must not
    wrong     the answer of another problem, also with the gold one in the thinking part: must not
    format    well-formed, with words that fit any question in place of an answer: must not
    hostile   answers that hang, blow up or try to run code (`r1lab.verify.hostile`): must not, and
              nothing of them may be executed
A `ScoringFailure` fails all but the hostile responses, where it is counted and shown: a reward that
cannot judge an ordinary wrong answer would otherwise leave it out of every figure.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from r1lab.prompts import THINK_CLOSE, THINK_OPEN, Template
from r1lab.types import Completion, Outcome, Problem, ScoringFailure
from r1lab.verify.call import RewardCall, Runner
from r1lab.verify.hostile import hostile_items
from r1lab.verify.load import Reward

CHECKS = ("gold", "empty", "wrong", "format", "hostile")

_BATCH_SECONDS = 10.0
_NO_ANSWERS = ("", "?", "the answer", "...", r"\boxed{}", "answer here", "0 1 2 3 4 5 6 7 8 9")


@dataclass(frozen=True, slots=True)
class RewardProbe:
    """One response to try a reward with; `what` says how it was made."""

    check: str
    what: str
    item: RewardCall


@dataclass(frozen=True, slots=True)
class Tried:
    """Result of one probe and its duration in seconds, including the transfer to a worker."""

    probe: RewardProbe
    outcome: Outcome
    passed: bool
    seconds: float


@dataclass(frozen=True, slots=True)
class CheckReport:
    """Results of all probes. `executed`: hostile text was executed (the canary was written).

    `per_second` are the gold, wrong and other harmless responses judged a second, in one batch.
    """

    tried: tuple[Tried, ...]
    per_second: float
    executed: bool

    @property
    def passed(self) -> bool:
        return not self.executed and all(tried.passed for tried in self.tried)

    def of(self, check: str) -> list[Tried]:
        """Those of one kind, in order."""
        return [tried for tried in self.tried if tried.probe.check == check]


def respond(template: Template, answer: str | None, thinking: str = "I work it out.") -> Completion:
    """Return a plausible response, without an answer part if `answer` is None."""
    if template.answer_in == "box":
        boxed = "" if answer is None else f"\\boxed{{{answer}}}"
        return as_written(template, f"{thinking} {boxed}")
    if template.answer_in == "whole":  # everything after the thinking is the answer
        opened = f"{'' if THINK_OPEN in template.prefix else THINK_OPEN} {thinking}"
        closed = opened if answer is None else f"{opened} {THINK_CLOSE} {answer}"
        return as_written(template, closed)
    text = f" {thinking} {THINK_CLOSE}"
    if answer is not None:
        text += f" <answer> {answer} </answer>"
    if not template.prefix:
        text = THINK_OPEN + text
    return as_written(template, text)


def as_written(template: Template, text: str) -> Completion:
    """The record of a response that consists of this text."""
    read = template.read(text)
    return Completion(
        token_ids=tuple(range(len(text.split()))),
        text=text,
        finish_reason="stop",
        weight_version=0,
        prefix=template.prefix,
        thinking=read.thinking,
        answer=read.answer,
    )


def make_probes(problems: Sequence[Problem], template: Template, canary: Path) -> list[RewardProbe]:
    """Return all probes for these problems, ordered by kind, then by problem."""
    probes: list[RewardProbe] = []

    def add(check: str, what: str, problem: Problem, completion: Completion) -> None:
        item = RewardCall(problem, completion, template.prompt(problem.question))
        probes.append(RewardProbe(check, what, item))

    for problem in problems:
        add("gold", "the gold answer", problem, respond(template, problem.answer))
    for problem in problems:
        add("empty", "no text at all", problem, as_written(template, ""))
        add("empty", "no answer part", problem, respond(template, None))
        add("empty", "an empty answer part", problem, respond(template, " "))
    for problem, other in _with_another_answer(problems):
        add("wrong", f"the answer of {other.id}", problem, respond(template, other.answer))
        seen = f"It is <answer> {problem.answer} </answer> or \\boxed{{{problem.answer}}}."
        wrong = respond(template, other.answer, seen)
        add("wrong", f"the answer of {other.id}, the gold one in the thinking", problem, wrong)
    for index, problem in enumerate(problems):
        nothing = _NO_ANSWERS[index % len(_NO_ANSWERS)]
        add("format", f"{nothing!r} for an answer", problem, respond(template, nothing))
    for index, hostile in enumerate(hostile_items(canary)):
        problem = problems[index % len(problems)]
        answer = rf"\boxed{{{hostile.answer}}}" if index % 2 else hostile.answer
        add("hostile", f"{hostile.family}: {hostile.name}", problem, respond(template, answer))
    return probes


def check_reward(
    reward_of: Callable[[Problem], Reward],
    problems: Sequence[Problem],
    template: Template,
    runner: Runner,
    *,
    full: float = 1.0,
    say: Callable[[int, int], None] = lambda done, total: None,
) -> CheckReport:
    """Run a reward on every probe, one at a time, then on the harmless ones in one batch.

    `reward_of` gives the reward of a problem (always the same one, or the verifier it names).
    `full` is the score of a right answer. `say` receives progress: probes done, probes in total.
    Raises RewardError if the reward breaks its contract.
    """
    tried: list[Tried] = []
    with tempfile.TemporaryDirectory() as folder:
        canary = Path(folder) / "canary"
        probes = make_probes(problems, template, canary)
        say(0, len(probes))
        for reward, items in _by_reward([p.item for p in probes], reward_of):
            runner.run(reward, items[:1])  # exclude imports from the timing
        for probe in probes:
            tried.append(_try(probe, reward_of(probe.item.problem), runner, full))
            say(len(tried), len(probes))
        executed = canary.exists()
    # A slow reward is not asked everything twice: what took _BATCH_SECONDS tells enough.
    harmless: list[RewardCall] = []
    seconds = 0.0
    for one in tried:
        if one.probe.check != "hostile" and (seconds < _BATCH_SECONDS or not harmless):
            harmless.append(one.probe.item)
            seconds += one.seconds
    began = time.perf_counter()
    for reward, items in _by_reward(harmless, reward_of):
        runner.run(reward, items)
    return CheckReport(tuple(tried), len(harmless) / (time.perf_counter() - began), executed)


def _try(probe: RewardProbe, reward: Reward, runner: Runner, full: float) -> Tried:
    began = time.perf_counter()
    (outcome,) = runner.run(reward, [probe.item])
    seconds = time.perf_counter() - began
    if isinstance(outcome, ScoringFailure):
        return Tried(probe, outcome, probe.check == "hostile", seconds)
    is_full = outcome.score is not None and outcome.score >= full - 1e-9
    return Tried(probe, outcome, is_full == (probe.check == "gold"), seconds)


def _by_reward(
    items: Iterable[RewardCall], reward_of: Callable[[Problem], Reward]
) -> list[tuple[Reward, list[RewardCall]]]:
    groups: dict[str, tuple[Reward, list[RewardCall]]] = {}
    for item in items:
        reward = reward_of(item.problem)
        groups.setdefault(reward.reference.text, (reward, []))[1].append(item)
    return list(groups.values())


def _with_another_answer(problems: Sequence[Problem]) -> list[tuple[Problem, Problem]]:
    """Each problem with the next one that has another answer; those without such are left out."""
    pairs = []
    for index, problem in enumerate(problems):
        for other in (*problems[index + 1 :], *problems[:index]):
            if _plain(other.answer) != _plain(problem.answer):
                pairs.append((problem, other))
                break
    return pairs


def _plain(answer: str) -> str | Fraction:
    """So that 0.5 and 1/2 are not taken for two answers."""
    text = "".join(answer.lower().split())
    try:
        return Fraction(text) if len(text) < 40 and "e" not in text else text
    except (ValueError, ZeroDivisionError):
        return text
