"""Advantages against worked values, and groups at the edge."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
from records import scored_group

from r1lab.grpo.advantage import ADVANTAGES, STD_EPSILON, group_advantages, is_informative
from r1lab.types import RecipeError, ScoringFailure, Verdict


def test_worked_values() -> None:
    # r = 1, 0, 0, 1: mean 0.5, unbiased variance 4 * 0.25 / 3
    group = scored_group(scores=[1.0, 0.0, 0.0, 1.0])
    std = math.sqrt(1 / 3)
    a = 0.5 / (std + STD_EPSILON)
    assert group_advantages([group], "group_std") == [pytest.approx([a, -a, -a, a], abs=1e-12)]
    assert group_advantages([group], "mean_only") == [[0.5, -0.5, -0.5, 0.5]]


def test_worked_values_over_the_whole_step() -> None:
    """r = 1, 0 and 1, 1, 0, 1: r - m = 1/2, -1/2 and 1/4, 1/4, -3/4, 1/4."""
    groups = [scored_group([1.0, 0.0]), scored_group([1.0, 1.0, 0.0, 1.0])]
    centred = [[0.5, -0.5], [0.25, 0.25, -0.75, 0.25]]
    assert group_advantages(groups, "rloo") == [
        [1.0, -1.0],
        pytest.approx([1 / 3, 1 / 3, -1.0, 1 / 3]),
    ]
    # all scores: mean 2/3, squares 4/9 + 4/9 + 4 * 1/9 over n - 1 = 5
    of_scores = math.sqrt(4 / 15)
    of_centred = math.sqrt((2 * 0.25 + 3 / 16 + 9 / 16) / 5)
    for kind, std in (("batch_std", of_scores), ("reinforce_pp", of_centred)):
        expected = [[a / (std + STD_EPSILON) for a in of] for of in centred]
        assert group_advantages(groups, kind) == [pytest.approx(of) for of in expected]


@pytest.mark.parametrize("kind", ADVANTAGES)
def test_two_processes_agree_with_one(kind: str) -> None:
    groups = [scored_group([1.0, 0.0, 0.5]), scored_group([2.0, 1.0, ScoringFailure("killed")])]
    both = Barrier(2)
    said: list[list[float]] = [[], []]

    def total(rank: int) -> Callable[[Sequence[float]], list[float]]:
        def summed(numbers: Sequence[float]) -> list[float]:
            said[rank] = list(numbers)
            both.wait(60)
            result = [sum(pair) for pair in zip(*said, strict=True)]
            both.wait(60)
            return result

        return summed

    def process(rank: int) -> list[float | None]:
        return group_advantages([groups[rank]], kind, total=total(rank))[0]

    with ThreadPoolExecutor(2) as threads:
        found = list(threads.map(process, (0, 1)))
    for ours, alone in zip(found, group_advantages(groups, kind), strict=True):
        assert ours == [None if a is None else pytest.approx(a, abs=1e-12) for a in alone]


def test_informative_groups() -> None:
    fault = ScoringFailure("killed")
    assert is_informative(scored_group([1.0, 0.0]))
    for scores in ([1.0, 1.0], [1.0], [], [1.0, fault], [1.0, None], [fault, fault]):
        assert not is_informative(scored_group(scores))


@pytest.mark.parametrize("kind", ADVANTAGES)
class TestEdges:
    @pytest.mark.parametrize("reward", [0.0, 0.1, 1.1, 1 / 3])
    def test_no_variance_is_exactly_zero(self, kind: str, reward: float) -> None:
        assert group_advantages([scored_group(scores=[reward] * 7)], kind) == [[0.0] * 7]

    def test_group_of_one(self, kind: str) -> None:
        assert group_advantages([scored_group(scores=[3.0])], kind) == [[0.0]]

    def test_faulted_leave_their_group(self, kind: str) -> None:
        fault = ScoringFailure("exception", "boom")
        with_fault = group_advantages([scored_group(scores=[1.0, fault, 0.0])], kind)
        without = group_advantages([scored_group(scores=[1.0, 0.0])], kind)
        assert with_fault == [[without[0][0], None, without[0][1]]]
        assert group_advantages([scored_group(scores=[fault, 1.0])], kind) == [[None, 0.0]]
        assert group_advantages([scored_group(scores=[fault, fault])], kind) == [[None, None]]

    def test_no_score_has_no_part_in_the_mean(self, kind: str) -> None:
        result = group_advantages([scored_group(scores=[1.0, None, 0.0])], kind)[0]
        assert result[1] == 0.0
        assert result[0] == -result[2] > 0

    def test_sum_is_zero_and_order_does_not_matter(self, kind: str) -> None:
        scores = [0.1, 0.7, 1.1, 0.0, 0.1]
        forward = group_advantages([scored_group(scores=scores)], kind)[0]
        backward = group_advantages([scored_group(scores=scores[::-1])], kind)[0]
        assert forward == backward[::-1]
        assert sum(a for a in forward if a) == pytest.approx(0, abs=1e-12)

    def test_empty(self, kind: str) -> None:
        assert group_advantages([], kind) == []
        assert group_advantages([scored_group(scores=[])], kind) == [[]]


def test_unknown_kind() -> None:
    with pytest.raises(RecipeError, match="batch_std, group_std, mean_only, reinforce_pp, rloo"):
        group_advantages([], "std")


def test_verdict_refuses_nan() -> None:
    with pytest.raises(ValueError, match="finite"):
        Verdict(float("nan"))
