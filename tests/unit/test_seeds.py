"""Runs that differ by their seed only: found among others, and averaged with intervals."""

from __future__ import annotations

import random
from math import exp, log, sqrt
from pathlib import Path

import pytest
from runs import make_run

from r1lab.evaluate.intervals import student_interval
from r1lab.report.facts import facts_of
from r1lab.report.panels import OVER_PROBLEMS, Panel, Series, panels_of
from r1lab.report.seeds import mean_panels, same_but_for_the_seed, seed_groups
from r1lab.run_folder import RunFolder

# Student's t at 97.5%, from its table.
T_1, T_2 = 12.7062047362, 4.3026527297


def test_the_interval_is_students_student_interval() -> None:
    three, two = student_interval([1.0, 2.0, 3.0]), student_interval([0.0, 1.0])
    assert three.value == 2 and three.high - 2 == pytest.approx(T_2 / sqrt(3))
    assert 2 - three.low == pytest.approx(T_2 / sqrt(3))
    assert two.high - two.value == pytest.approx(T_1 * sqrt(0.5) / sqrt(2))
    same = student_interval([0.25, 0.25, 0.25])
    assert (same.low, same.value, same.high) == (0.25, 0.25, 0.25)


def test_the_interval_covers_the_mean_of_all_seeds_as_often_as_it_says() -> None:
    """2,000 experiments of four normal seeds: 95%, to three standard errors."""
    draw, hits = random.Random(0), 0
    for _ in range(2000):
        found = student_interval([draw.gauss(0.5, 0.1) for _ in range(4)])
        hits += found.low <= 0.5 <= found.high
    assert abs(hits / 2000 - 0.95) < 3 * sqrt(0.95 * 0.05 / 2000)


def flat(seed: int, **more: str) -> dict[str, str]:
    return {"name": f'"run-{seed}"', "seed": str(seed), "steps": "6", **more}


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ([flat(0), flat(1), flat(2)], [[0, 1, 2]]),
        ([flat(0), flat(1, steps="7"), flat(2)], [[0, 2]]),
        ([flat(0), flat(1, steps="7"), flat(2), flat(3, steps="7")], [[0, 2], [1, 3]]),
        ([flat(0, output='"a"'), flat(1, output='"b"')], [[0, 1]]),
        ([flat(0), {**flat(0), "problems.seed": "1"}], [[0, 1]]),
        ([flat(0), flat(0)], []),  # one seed twice
        ([flat(0), flat(0), flat(1)], []),
        ([flat(0)], []),
        ([{}, {}], []),  # no recipe was kept
    ],
)
def test_which_runs_differ_by_their_seed_only(settings, expected) -> None:
    assert same_but_for_the_seed(settings) == expected


def panel(*lines: Series, **more: object) -> Panel:
    return Panel("p", "P", lines, **more)  # type: ignore[arg-type]


def test_a_mean_stands_where_every_run_has_a_value() -> None:
    runs = [
        [panel(Series("a", "blue", [1, 2, 3], [0.1, 0.2, None]), Series("b", "red", [1], [1.0]))],
        [panel(Series("a", "blue", [2, 3, 4], [0.4, 0.5, 0.6])), Panel("other", "O", [])],
    ]
    (found,) = mean_panels(runs)
    (line,) = found.series  # `b` is not in both
    assert list(line.x) == [2] and line.y == [pytest.approx(0.3)]
    assert line.high[0] - 0.3 == pytest.approx(T_1 * 0.1)
    assert found.note == "mean of 2 seeds, 95% intervals over them"


def test_ends_stay_on_the_axis_and_a_logarithmic_one_has_them_of_logarithms() -> None:
    shares = [[panel(Series("a", "blue", [1], [y]), low=0.0, high=1.0)] for y in (0.2, 0.9)]
    (line,) = mean_panels(shares)[0].series
    assert (line.low, line.high) == ([0.0], [1.0])
    small = [[panel(Series("a", "blue", [1, 2], [y, 0.0]), log=True)] for y in (1e-5, 1e-3)]
    (line,) = mean_panels(small)[0].series
    assert list(line.x) == [1] and line.y == [pytest.approx(1e-4)]  # 0 has no logarithm
    reach = T_1 * log(10) * sqrt(2) / sqrt(2)
    assert line.low == [pytest.approx(1e-4 * exp(-reach))]


def test_a_group_of_made_runs(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / f"s{seed}", name=f"made-{seed}", seed=seed) for seed in range(3)]
    other = RunFolder.create(tmp_path / "young")
    other.log_metrics(1, {"reward": 0.5})
    folders = [*runs, other]
    facts = [facts_of(folder, price=None, watts=None) for folder in folders]
    panels = [panels_of(f.metrics(), f.timings(), f.evals(), accuracy="accuracy") for f in folders]
    (group,) = seed_groups(facts, panels)
    assert (group.label, list(group.runs)) == ("made, mean of 3 seeds", [0, 1, 2])
    assert [p.id for p in group.panels] == [p.id for p in panels[0]]
    accuracy = group.panels[0]
    assert OVER_PROBLEMS in panels[0][0].note and OVER_PROBLEMS not in accuracy.note
    ends = [run.evals()[-1]["overall"]["pass_at_1"]["value"] for run in runs]
    assert accuracy.series[0].y[-1] == pytest.approx(sum(ends) / 3)
    last = group.last["pass_at_1"]
    assert last is not None and last.value == student_interval(ends).value
    assert last.low == max(0, student_interval(ends).low) and last.high <= 1
    assert last.low <= group.as_dict()["last"]["pass_at_1"]["value"] <= last.high
