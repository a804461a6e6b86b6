"""The watcher over worked series of metrics: what it says, when, and that it says it once."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path

import pytest

from r1lab.config.alarms import SecondGrader, WatchSettings
from r1lab.monitor.alarms import AlarmMonitor
from r1lab.monitor.second_grader import FIGURES, Grader
from r1lab.prompts import TEMPLATES
from r1lab.types import (
    Completion,
    Problem,
    RecipeError,
    Rollout,
    ScoredGroup,
    ScoringFailure,
    Verdict,
)
from r1lab.verify import InProcessRunner

HEALTHY = {
    "accuracy": 0.4, "truncated": 0.0, "length": 20.0, "entropy": 0.4, "zero_variance": 0.1,
    "grader_gap": 0.0,
}  # fmt: skip
GRADED = {"grader": {"reward": "problem"}}
# The quickstart of this repository, seed 0: what a healthy run looks like.
QUICKSTART = Path(__file__).parents[1] / "data" / "quickstart_metrics.jsonl"
SICK = QUICKSTART.with_name("sick_metrics.json")


def series(**columns: list[float | None]) -> list[dict[str, float | None]]:
    """Lines of metrics.jsonl with these columns, everything else healthy."""
    (length,) = {len(column) for column in columns.values()}
    return [
        {"step": i + 1, **HEALTHY, **{name: column[i] for name, column in columns.items()}}
        for i in range(length)
    ]


def heard(lines, **settings) -> list[tuple[int, str]]:
    """(step, alarm) of all warnings over the lines."""
    watcher = AlarmMonitor(WatchSettings(**{**GRADED, **settings}))
    return [(warned.step, warned.alarm) for line in lines for warned in watcher.see(line)]


def quickstart() -> list[dict[str, float | None]]:
    return [json.loads(line) for line in QUICKSTART.read_text().splitlines()]


# --- healthy runs ---


def test_a_healthy_run_raises_no_warning():
    lines = quickstart()
    assert len(lines) == 80 and lines[0]["accuracy"] < 0.3 and lines[-1]["accuracy"] > 0.9
    assert heard(lines) == []


def test_nor_does_it_with_other_steps_left_out():
    """The thresholds have room: half the windows, and figures moved by a quarter."""
    windows = {name: {"steps": 3} for name in ("truncation", "length", "entropy", "reward_dead")}
    assert heard(quickstart(), **windows) == []
    moved = [{**line, "entropy": 0.75 * line["entropy"] if line["step"] > 5 else line["entropy"]}
             for line in quickstart()]  # fmt: skip
    assert heard(moved) == []


def test_a_base_that_learns_to_end_is_no_collapse():
    """From 100 tokens, mostly cut off, to 20: shorter, and right far more often."""
    steps = 30
    lengths = [100.0 - 80 * min(i / 10, 1) for i in range(steps)]
    right = [0.1 + 0.5 * min(i / 10, 1) for i in range(steps)]
    assert heard(series(length=lengths, accuracy=right)) == []


# --- runs that were made sick (docs/experiments.md, "What a sick run looks like") ---


@pytest.mark.parametrize(
    ("run", "expected"),
    [
        ("gamed", [(10, "grader")]),  # a reward that counts the answer's words, and is gamed
        ("loose", []),  # a reward that is looser than the grader, and honest
        ("short", [(22, "length")]),  # a reward that pays for short responses above all
        ("cut_off", [(5, "truncation")]),  # six tokens to answer with
        ("fast", []),  # five times the learning rate: it reels, and learns
    ],
)
def test_sick_runs(run, expected):
    columns = json.loads(SICK.read_text())[run]
    lines = [
        {"step": step, **dict(zip(columns, row, strict=True))}
        for step, row in enumerate(zip(*columns.values(), strict=True), start=1)
    ]
    assert heard(lines) == expected


# --- one alarm after the other ---


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        # Ten steps of nothing; not with a flicker of hope among them.
        ({"accuracy": [0.0] * 12}, [(10, "reward_dead")]),
        ({"accuracy": [-1.0] * 12}, [(10, "reward_dead")]),
        ({"accuracy": [0.0] * 9 + [0.05] + [0.0] * 2}, []),
        ({"accuracy": [-0.9 + 0.02 * i for i in range(20)]}, []),
        # Half of its best: .4 for ten steps, then .1; the mean of ten is below .2 after seven.
        ({"accuracy": [0.4] * 10 + [0.1] * 10}, [(17, "reward_dead")]),
        ({"truncated": [0.0] * 5 + [0.9] * 5}, [(8, "truncation")]),
        ({"truncated": [0.49] * 20}, []),
        ({"length": [20.0] * 5 + [5.0] * 5}, [(9, "length")]),
        ({"length": [20.0] * 5 + [11.0] * 15}, []),
        ({"entropy": [0.4] * 5 + [0.0] * 5}, [(10, "entropy")]),
        # A window of ten, of which one step may have a little variance.
        ({"zero_variance": [1.0] * 9 + [0.6]}, [(10, "no_variance")]),
        ({"zero_variance": [1.0] * 9 + [0.4]}, []),
        # The gap of the grader from .05 to .29: .15 above its lowest in the fourth step.
        ({"grader_gap": [0.05] * 5 + [0.29] * 5}, [(9, "grader")]),
        ({"grader_gap": [0.3] * 20}, []),
        ({"grader_gap": [-0.3 + 0.01 * i for i in range(14)]}, []),
    ],
)
def test_worked_series(columns, expected):
    assert heard(series(**columns)) == expected


def test_low_entropy_is_no_fault_once_it_is_solved():
    lines = series(entropy=[0.4] * 5 + [0.01] * 10, accuracy=[0.4] * 5 + [0.97] * 10)
    assert [alarm for _, alarm in heard(lines)] == []


def test_what_it_says_of_groups_without_variance_depends_on_the_cause():
    def said(accuracy: float) -> str:
        watcher = AlarmMonitor(WatchSettings())
        lines = series(zero_variance=[1.0] * 10, accuracy=[accuracy] * 10)
        (warned,) = [w for line in lines for w in watcher.see(line)]
        return warned.text

    assert "harder" in said(1.0) and "easier" in said(0.2)


# --- episodes ---


def test_a_warning_comes_once_an_episode():
    bad, good = [0.9] * 20, [0.0] * 20
    assert heard(series(truncated=bad + good + bad)) == [(5, "truncation"), (43, "truncation")]


def test_flicker_around_the_threshold_is_one_episode():
    flicker = [0.9 if i % 2 else 0.2 for i in range(40)]
    assert len(heard(series(truncated=[0.9] * 5 + flicker))) == 1


def test_lines_that_lack_a_figure_are_passed_over():
    for missing in (None, math.nan):
        lines = series(truncated=[0.9, 0.9, missing, missing, 0.9, 0.9, 0.9])
        assert heard(lines) == [(7, "truncation")]
    without = [{"step": i + 1, "truncated": 0.9} for i in range(5)]
    assert heard(without) == [(5, "truncation")], "no entropy, no grader, no accuracy"


@pytest.mark.parametrize("seed", range(3))
def test_a_resumed_watcher_says_what_the_uninterrupted_one_says(seed):
    """At whatever line it is cut, and with the lines written to a file and read back."""
    draw = random.Random(seed)
    walks = {}
    for name, start in HEALTHY.items():
        value, walks[name] = start, []
        for _ in range(60):
            value = min(max(value + draw.choice((-0.3, 0.3)) * max(start, 0.3), 0.0), 30.0)
            walks[name].append(value)
    lines = series(**walks)
    whole = heard(lines)
    assert len(whole) > 2, "nothing to compare"
    for cut in range(0, 60, 7):
        resumed = AlarmMonitor(WatchSettings(**GRADED))
        resumed.replay(json.loads(json.dumps(lines[:cut])))
        after = [(w.step, w.alarm) for line in lines[cut:] for w in resumed.see(line)]
        assert after == [event for event in whole if event[0] > cut]


# --- settings ---


def test_alarms_can_be_set_and_switched_off():
    lines = series(truncated=[0.3] * 5)
    assert heard(lines, truncation={"steps": 2, "above": 0.2}) == [(2, "truncation")]
    assert heard(series(truncated=[1.0] * 20), truncation=None) == []


def test_only_an_alarm_that_is_to_stop_the_run_stops_it():
    for stop in (False, True):
        settings = WatchSettings(truncation={"stop": stop, "steps": 1})
        (warned,) = AlarmMonitor(settings).see(series(truncated=[1.0])[0])
        assert warned.stop is stop is settings.may_stop
    assert WatchSettings(grader={"reward": "problem", "stop": True}).may_stop


def test_the_figure_that_tells_right_from_wrong_has_the_recipes_name():
    lines = [{"step": i + 1, "boxes": 0.0} for i in range(10)]
    watcher = AlarmMonitor(WatchSettings(), accuracy="boxes")
    warnings = [w for line in lines for w in watcher.see(line)]
    assert [(w.step, w.alarm) for w in warnings] == [(10, "reward_dead")]
    assert "boxes is 0" in warnings[0].text


# --- the second grader ---


def scored(index: int, answer: str, training: float | None) -> ScoredGroup:
    """A problem whose answer is `index`, one response, and what the training reward made of it."""
    problem = Problem(str(index), "q", str(index), "boxes")
    completion = Completion((1,), "", "stop", 0, answer=answer)
    outcome = (
        ScoringFailure("timeout")
        if training is None
        else Verdict(training, parts={"accuracy": training, "format": 1.0})
    )
    return ScoredGroup(Rollout(problem, (1,), (completion,)), (outcome,))


@pytest.fixture
def exact(tmp_path) -> str:
    """A strict grader: the answer's text; it does not judge problem 3, and breaks at 4."""
    path = tmp_path / "exact.py"
    path.write_text(
        "def reward(problem, completion):\n"
        "    if problem.answer == '4':\n        raise RuntimeError\n"
        "    return None if problem.answer == '3' else float(completion.answer == problem.answer)\n"
    )
    return str(path)


def grader(reference: str, **settings) -> Grader:
    return Grader(
        SecondGrader(reward=reference, **settings),
        template=TEMPLATES["compact"], runner=InProcessRunner(), accuracy="accuracy",
    )  # fmt: skip


def test_the_gap_between_reward_and_grader(exact):
    step = [
        scored(0, "0", 1.0),  # both: right
        scored(1, "9", 1.0),  # the reward was fooled
        scored(2, "2", 0.0),  # the reward was too strict
        scored(3, "3", 1.0),  # not judged by the grader
        scored(4, "4", 1.0),  # the grader broke
        scored(5, "9", 1.0),  # fooled again
        scored(6, "6", None),  # the reward broke
    ]
    assert grader(exact).figures(step) == {
        "grader_score": 0.5, "grader_gap": 0.25, "grader_responses": 4.0
    }  # fmt: skip


def test_a_sample_of_a_step_is_spread_over_it(exact):
    step = [scored(10 + i, str(10 + i) if i < 50 else "wrong", 1.0) for i in range(100)]
    figures = grader(exact, responses=10).figures(step)
    assert figures == {"grader_score": 0.5, "grader_gap": 0.5, "grader_responses": 10.0}
    assert grader(exact, responses=10).figures(step) == figures, "no random draw"


def test_nothing_to_grade(exact):
    empty = grader(exact).figures([scored(0, "0", None)])
    assert tuple(empty) == FIGURES
    assert empty == {"grader_score": None, "grader_gap": None, "grader_responses": 0.0}


def test_a_grader_with_a_wrong_option_is_refused_under_its_own_key():
    with pytest.raises(RecipeError, match=r"^watch\.grader\.options\.no_such: unknown option"):
        grader("format", options={"no_such": 1})
