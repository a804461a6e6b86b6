"""Can a run learn? Worked groups, each with the point that it must fail or warn of."""

from __future__ import annotations

import json
import math

import pytest

from r1lab.monitor.preflight import (
    BaselineAgreement,
    PreflightLimits,
    Prospects,
    figures_of,
    judge_prospects,
)
from r1lab.types import Rollout, ScoredGroup, ScoringFailure, Verdict
from tests.unit.records import completion, problem

ANSWERED, OPEN = " so </think> <answer> 1 </answer>", " so"
LIMITS = PreflightLimits(max_tokens=3, max_model_len=8)


def group(*members: tuple[str, str, object], prompt: int = 4) -> ScoredGroup:
    """A group of (text, finish reason, right or ScoringFailure); the form is worth 0.5."""
    completions = tuple(completion(text, finish_reason=why) for text, why, _ in members)
    outcomes = tuple(
        right
        if isinstance(right, ScoringFailure)
        else Verdict(right + 0.5, parts={"accuracy": right, "format": 1.0})
        for _, _, right in members
    )
    return ScoredGroup(Rollout(problem(), tuple(range(prompt)), completions), outcomes)


RIGHT, WRONG = (ANSWERED, "stop", 1.0), (ANSWERED, "stop", 0.0)
CUT, RAMBLING = (OPEN, "length", 0.0), (ANSWERED, "length", 0.0)
BROKEN = (ANSWERED, "stop", ScoringFailure("timeout"))


def prospects(*groups: ScoredGroup, **changes) -> Prospects:
    return judge_prospects(groups, **{"accuracy": "accuracy", "limits": LIMITS, **changes})


def levels(found: Prospects) -> dict[str, str]:
    assert all(bool(p.change) == (p.level != "ok") for p in found.points), "a fault lacks its fix"
    return {point.name: point.level for point in found.points if point.level != "ok"}


def test_a_healthy_base():
    found = prospects(
        group(RIGHT, WRONG), group(WRONG, WRONG), agreement=BaselineAgreement(4e-5, 6000)
    )
    assert found.can_learn and found.verdict == "this run can learn"
    assert levels(found) == {}
    assert {p.name for p in found.points} == {
        "ends", "answers", "rewards", "variance", "accuracy", "prompts", "agreement"
    }  # fmt: skip


def test_figures_by_hand():
    figures = figures_of([group(RIGHT, WRONG, WRONG, CUT), group(RIGHT, RIGHT, RIGHT)], "accuracy")
    assert figures["groups"] == 2 and figures["responses"] == 7
    assert figures["truncated"] == figures["ended"] * 1 / 6 == pytest.approx(1 / 7)
    assert figures["answered"] == pytest.approx(6 / 7) and figures["answered_on"] == 0
    assert figures["zero_variance"] == figures["split"] == 0.5
    # Rewards 1.5, .5, .5, .5: mean .75, variance 3/16; the other group does not spread.
    assert figures["spread"] == pytest.approx(math.sqrt(3) / 4 / 2)
    assert figures["accuracy"] == figures["pass_at_1"] == pytest.approx((1 / 4 + 1) / 2)
    assert figures["pass_at_2"] == pytest.approx((1 - 3 / 6 + 1) / 2)
    assert figures["pass_at_4"] == 1.0, "of the group of four alone"
    assert (figures["prompt_shortest"], figures["prompt_longest"]) == (4, 4)


@pytest.mark.parametrize(
    ("groups", "expected", "change"),
    [
        ([group(CUT, CUT)], {"ends", "answers", "variance", "accuracy"}, "sampling.max_tokens"),
        ([group(RAMBLING, RAMBLING)], {"ends", "variance", "accuracy"}, "eos_token"),
        ([group(WRONG, WRONG)], {"variance", "accuracy"}, "r1lab verify"),
        ([group(RIGHT, RIGHT)], {"variance", "accuracy"}, "harder problems"),
        ([group((OPEN, "stop", 0.0), (OPEN, "stop", 1.0))], {"answers"}, "template"),
        ([group(BROKEN, BROKEN, BROKEN, RIGHT, WRONG)], {"rewards"}, "r1lab verify"),
        ([group(RIGHT, WRONG, prompt=6)], {"prompts"}, "max_model_len to at least 9"),
    ],
)
def test_what_cannot_learn(groups, expected, change):
    found = prospects(*groups * 32)
    assert {name for name, level in levels(found).items() if level == "failed"} == expected
    assert not found.can_learn and found.verdict.startswith("this run cannot learn: ")
    assert any(change in point.change for point in found.points)


@pytest.mark.parametrize("members", [[CUT, CUT], [WRONG, WRONG], [RIGHT, RIGHT]])
def test_a_few_samples_only_warn(members):
    """Chance alone may leave 62 responses without a right answer, or without an end."""
    assert not prospects(*[group(*members)] * 32).can_learn
    few = prospects(*[group(*members)] * 31)
    assert few.can_learn and "variance" in levels(few)


def test_a_right_form_alone_teaches_no_task():
    """Rewards differ by form, but no answer is right: what would be learnt is the form."""
    ill_formed = Verdict(0.0, parts={"accuracy": 0.0, "format": 0.0})
    base = group(WRONG, WRONG)
    mixed = ScoredGroup(base.rollout, (base.outcomes[0], ill_formed))
    assert levels(prospects(*[mixed] * 32)) == {"accuracy": "failed"}


@pytest.mark.parametrize(
    ("groups", "name"),
    [
        ([group(RIGHT, WRONG, WRONG, CUT)] * 4, "ends"),
        ([group(RIGHT, WRONG)] + [group(WRONG, WRONG)] * 10, "variance"),
        ([group(RIGHT, WRONG)] + [group(WRONG, WRONG)] * 10, "accuracy"),
        ([group(RIGHT, WRONG, BROKEN)] + [group(RIGHT, WRONG)] * 10, "rewards"),
        ([group(*[(OPEN, "stop", 0.0)] * 40, RIGHT)], "answers"),
    ],
)
def test_what_learns_with_reservations(groups, name):
    found = prospects(*groups)
    assert found.can_learn and levels(found)[name] == "warning"
    assert found.verdict.startswith("this run can learn, with reservations: ")


@pytest.mark.parametrize(("kl", "level"), [(1e-3, None), (0.5, "failed"), (math.nan, "failed")])
def test_agreement(kl, level):
    found = prospects(group(RIGHT, WRONG), agreement=BaselineAgreement(kl, 500))
    assert levels(found).get("agreement") == level


def test_rewards_between_0_and_1_have_no_right_answer_and_can_be_learnt():
    halves = [(ANSWERED, "stop", 0.25), (ANSWERED, "stop", 0.5)]
    found = prospects(group(*halves))
    assert found.can_learn and found.figures["pass_at_1"] == 0


def test_a_narrow_reward_is_warned_of():
    near = [(ANSWERED, "stop", 0.5), (ANSWERED, "stop", 0.501)]
    assert levels(prospects(group(*near))) == {"variance": "warning"}


def test_one_sample_a_group_says_nothing_of_variance():
    found = prospects(group(RIGHT), group(WRONG))
    assert found.can_learn and {"variance", "accuracy"}.isdisjoint(p.name for p in found.points)


def test_all_faulted():
    found = prospects(group(BROKEN, BROKEN))
    assert levels(found) == {"rewards": "failed"} and found.figures["reward"] is None


def test_no_samples():
    with pytest.raises(ValueError, match="no samples"):
        prospects()


def test_it_is_json():
    values = prospects(group(RIGHT, WRONG)).as_dict()
    assert json.loads(json.dumps(values)) == values
    assert values["can_learn"] is True and values["figures"]["groups"] == 1
