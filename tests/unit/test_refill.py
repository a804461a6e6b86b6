"""Dynamic sampling: what is kept, thrown away, asked again and left over."""

from __future__ import annotations

import io
from dataclasses import dataclass, field

import pytest
import torch
from records import scored_group

from r1lab.grpo.advantage import is_informative
from r1lab.grpo.dynamic_sampling import Collected, further, refill
from r1lab.rollout.serialization import as_plain, from_plain
from r1lab.types import ScoredGroup, ScoringFailure

WANTED = 8


def group(informative: bool, seed: int = 0) -> ScoredGroup:
    return scored_group([1.0, float(not informative)], seed=seed, logprobs=True)


@dataclass
class Engine:
    """Group i is informative where `pattern[i]` is "+"; `finish` says which of those in flight end.

    asked      how many each call of `ask` sent off
    meanwhile  how many were in flight when it did
    """

    pattern: str
    at_once: int = 1
    last_first: bool = False
    asked: list[int] = field(default_factory=list)
    meanwhile: list[int] = field(default_factory=list)
    in_flight: list[int] = field(default_factory=list)
    groups: list[ScoredGroup] = field(default_factory=list)

    def ask(self, count: int) -> None:
        self.asked.append(count)
        self.meanwhile.append(len(self.in_flight))
        for _ in range(count):
            number = len(self.groups)
            self.groups.append(group(self.pattern[number % len(self.pattern)] == "+", seed=number))
            self.in_flight.append(number)
        assert len(self.in_flight) <= WANTED

    def finished(self) -> dict[int, ScoredGroup]:
        assert self.in_flight, "waiting for nothing would never end"
        self.in_flight.sort(reverse=self.last_first)
        done, self.in_flight = self.in_flight[: self.at_once], self.in_flight[self.at_once :]
        return {number: self.groups[number] for number in sorted(done)}


def collect(engine: Engine, waiting: int = 0, max_refills: int = 3) -> Collected:
    result = refill(
        (group(True, seed=99),) * waiting, engine.ask, engine.finished,
        wanted=WANTED, max_refills=max_refills,
    )  # fmt: skip
    assert not engine.in_flight, "all that was begun is waited for"
    assert result.judged == engine.groups
    kept = len(result.groups) + len(result.waiting)
    assert kept + result.thrown_away == waiting + len(result.judged)
    assert len(result.waiting) < WANTED
    return result


def test_a_full_step_asks_for_nothing_more() -> None:
    engine = Engine("+")
    result = collect(engine)
    assert engine.asked == [WANTED] and result.groups == result.judged
    assert (result.waiting, result.thrown_away) == ((), 0)


def test_missing_groups_are_asked_for_while_others_are_in_flight() -> None:
    engine = Engine("-+")
    result = collect(engine)
    assert len(result.groups) == WANTED
    # Most were sent off beside others: the sampler never ran empty before the end.
    calls = zip(engine.asked, engine.meanwhile, strict=True)
    assert sum(count for count, others in calls if others) >= 8
    assert engine.meanwhile[1] == WANTED - 1
    assert result.thrown_away == len(engine.groups[::2])


def test_in_rounds_where_groups_finish_together() -> None:
    engine = Engine("----++++", at_once=WANTED)
    result = collect(engine)
    assert engine.meanwhile == [0] * len(engine.asked)  # each round after the one before
    assert len(result.groups) == WANTED and result.thrown_away >= 8


def test_those_that_wait_come_first_and_less_is_asked() -> None:
    engine = Engine("+")
    result = collect(engine, waiting=3)
    assert engine.asked == [WANTED - 3]
    assert result.groups == [group(True, seed=99)] * 3 + engine.groups
    engine = Engine("+")
    assert len(collect(engine, waiting=WANTED).groups) == WANTED and engine.groups == []


@pytest.mark.parametrize("last_first", [False, True])
def test_those_asked_first_are_taken_not_those_that_finish_first(last_first: bool) -> None:
    engine = Engine("+---++++", last_first=last_first)
    result = collect(engine)
    useful = [g for g in engine.groups if is_informative(g)]
    assert len(useful) > WANTED, "nothing is left over here; take another pattern"
    assert result.groups == useful[:WANTED] and result.waiting == tuple(useful[WANTED:])


@pytest.mark.parametrize("at_once", [1, 3, WANTED])
def test_a_step_goes_on_with_what_it_has(at_once: int) -> None:
    engine = Engine("-", at_once=at_once)
    result = collect(engine, max_refills=2)
    assert sum(engine.asked) == 3 * WANTED == result.thrown_away
    assert result.groups == []
    one = collect(Engine("+" + "-" * 99, at_once=at_once), max_refills=2)
    assert len(one.groups) == 1 and len(one.judged) == 3 * WANTED


@pytest.mark.parametrize("at_once", [1, 2, 5, WANTED])
@pytest.mark.parametrize("pattern", ["+-", "-+++", "--+", "++++++-", "-------+"])
def test_less_than_a_step_is_left_over(pattern: str, at_once: int) -> None:
    result = collect(Engine(pattern, at_once=at_once), waiting=2, max_refills=20)
    assert len(result.groups) == WANTED


def test_how_many_more_are_asked() -> None:
    def more(missing: int, in_flight: int, useful: int, judged: int) -> int:
        return further(
            missing=missing, in_flight=in_flight, useful=useful, judged=judged, wanted=WANTED
        )

    assert more(missing=8, in_flight=8, useful=0, judged=0) == 0
    # One of eight said nothing: a share of (0 + 4) / (1 + 4), so ten are needed for eight; but no
    # more than eight are in flight.
    assert more(missing=8, in_flight=7, useful=0, judged=1) == 1
    assert more(missing=4, in_flight=2, useful=4, judged=8) == 4  # share 2/3: six for four
    assert more(missing=1, in_flight=2, useful=4, judged=8) == 0
    assert more(missing=1, in_flight=0, useful=0, judged=400) == 4  # at most four for one
    assert more(missing=0, in_flight=0, useful=8, judged=8) == 0


@pytest.mark.parametrize(
    "scores", [[1.0, 0.0], [0.5, None], [ScoringFailure("killed", "why"), 1.0]]
)
def test_waiting_groups_survive_a_checkpoint(scores: list[float | ScoringFailure | None]) -> None:
    saved = scored_group(scores, lengths=[4, 2], logprobs=True)
    file = io.BytesIO()
    torch.save([as_plain(saved)], file)
    file.seek(0)
    (read,) = torch.load(file, weights_only=True)
    assert from_plain(read) == saved
