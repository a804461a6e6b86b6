"""Advantages against worked values, and groups at the edge."""

from __future__ import annotations

import math

import pytest
from records import scored_group

from r1lab.grpo.advantage import STD_EPSILON, group_advantages
from r1lab.types import Fault, Verdict


def test_worked_values() -> None:
    # r = 1, 0, 0, 1: mean 0.5, unbiased variance 4 * 0.25 / 3
    group = scored_group(scores=[1.0, 0.0, 0.0, 1.0])
    std = math.sqrt(1 / 3)
    a = 0.5 / (std + STD_EPSILON)
    assert group_advantages([group], "group_std") == [pytest.approx([a, -a, -a, a], abs=1e-12)]
    assert group_advantages([group], "mean_only") == [[0.5, -0.5, -0.5, 0.5]]


@pytest.mark.parametrize("kind", ["group_std", "mean_only"])
class TestEdges:
    @pytest.mark.parametrize("reward", [0.0, 0.1, 1.1, 1 / 3])
    def test_no_variance_is_exactly_zero(self, kind: str, reward: float) -> None:
        assert group_advantages([scored_group(scores=[reward] * 7)], kind) == [[0.0] * 7]

    def test_group_of_one(self, kind: str) -> None:
        assert group_advantages([scored_group(scores=[3.0])], kind) == [[0.0]]

    def test_faulted_leave_their_group(self, kind: str) -> None:
        fault = Fault("exception", "boom")
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
    with pytest.raises(ValueError, match="group_std, mean_only"):
        group_advantages([], "std")


def test_verdict_refuses_nan() -> None:
    with pytest.raises(ValueError, match="finite"):
        Verdict(float("nan"))
