"""Dynamic sampling: what is kept, thrown away, asked again and left over."""

from __future__ import annotations

import io
from collections.abc import Callable

import pytest
import torch
from records import scored_group

from r1lab.grpo.refill import Collected, refill
from r1lab.rollout.plain import as_plain, from_plain
from r1lab.types import Fault, Scored


def group(informative: bool, seed: int = 0) -> Scored:
    return scored_group([1.0, float(not informative)], seed=seed, logprobs=True)


def asking(*rounds: str) -> tuple[list[int], Callable[[int], list[Scored]]]:
    """How many each round asked for, and a source whose rounds are "+-+": informative or not.

    A round repeats its pattern up to the number asked for.
    """
    asked: list[int] = []
    left = list(rounds)

    def ask(count: int) -> list[Scored]:
        asked.append(count)
        pattern = left.pop(0)
        return [group(pattern[i % len(pattern)] == "+", seed=i) for i in range(count)]

    return asked, ask


def collect(first: str, *rounds: str, wanted: int = 8, waiting: int = 0) -> Collected:
    _, ask = asking(*rounds)
    return refill(
        [group(sign == "+") for sign in first], [group(True)] * waiting, ask,
        wanted=wanted, max_refills=3,
    )  # fmt: skip


def test_a_full_step_asks_for_nothing() -> None:
    result = collect("+" * 8)
    assert len(result.groups) == len(result.judged) == 8
    assert result.waiting == ()


def test_more_are_asked_for_than_are_missing_and_the_rest_waits() -> None:
    asked, ask = asking("+")
    first = [group(sign == "+") for sign in "++++----"]
    result = refill(first, [], ask, wanted=8, max_refills=3)
    assert asked == [8]  # four missing, half of them useful
    assert len(result.groups) == 8 and len(result.waiting) == 4
    assert len(result.judged) == 16  # all of them count in the figures


def test_those_that_wait_come_first() -> None:
    old = group(True, seed=7)
    _, ask = asking()
    result = refill([group(True)] * 7, [old], ask, wanted=8, max_refills=3)
    assert result.groups[0] is old
    assert old not in result.judged


def test_a_step_goes_on_with_what_it_has() -> None:
    asked, ask = asking("-", "-", "+-------")
    result = refill([group(False)] * 8, [], ask, wanted=8, max_refills=3)
    assert asked == [8, 8, 8]
    assert len(result.groups) == 1
    nothing = collect("--------", "-", "-", "-")
    assert nothing.groups == [] and len(nothing.judged) == 32


def test_less_than_a_step_is_left_over() -> None:
    for useful in range(1, 8):
        result = collect("+" * useful + "-" * (8 - useful), "+", "+", "+")
        assert len(result.groups) == 8 and len(result.waiting) < 8


@pytest.mark.parametrize("scores", [[1.0, 0.0], [0.5, None], [Fault("killed", "why"), 1.0]])
def test_waiting_groups_survive_a_checkpoint(scores: list[float | Fault | None]) -> None:
    saved = scored_group(scores, lengths=[4, 2], logprobs=True)
    file = io.BytesIO()
    torch.save([as_plain(saved)], file)
    file.seek(0)
    (read,) = torch.load(file, weights_only=True)
    assert from_plain(read) == saved
