"""Measure an experiment's runs and compare them with its thresholds.

A figure is one number a run; reported over seeds as mean and 95% interval (Student's t,
seeds being few). A threshold is met where the whole interval lies on its side, met in the mean
where the mean alone does. Nobody reads these off a plot: the verdict is computed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from statistics import fmean
from typing import Any, Literal

from r1lab.evaluate.intervals import student_interval
from r1lab.reproduce.experiment import Criterion, Experiment
from r1lab.reproduce.record import CurvePoint, RunRecord
from r1lab.types import R1labError

REACHED = 0.9  # of a curve's way from its first value to its last
WINDOW = 5  # steps over which a figure of single steps is taken

Met = Literal["yes", "in the mean", "no", "reported"]
ExperimentVerdict = Literal["reproduced", "reproduced in the mean", "not reproduced"]


@dataclass(frozen=True, slots=True)
class ThresholdResult:
    """Result of one criterion: a value a seed, their mean, its interval (None for one seed).

    `threshold` in words; empty for a figure that is only reported.
    """

    says: str
    threshold: str
    values: tuple[float, ...]
    mean: float
    low: float | None
    high: float | None
    met: Met


@dataclass(frozen=True, slots=True)
class ExperimentOutcome:
    """Result of an experiment."""

    name: str
    claim: str
    source: str
    verdict: ExperimentVerdict
    seeds: tuple[int, ...]
    findings: tuple[ThresholdResult, ...]

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


Records = Mapping[str, Sequence[RunRecord]]  # by arm, in the order of their seeds


def outcome_of(experiment: Experiment, records: Records) -> ExperimentOutcome:
    """Every criterion read off the records; R1labError where one of them has no such curve."""
    findings = tuple(_finding(criterion, records) for criterion in experiment.criteria)
    met = {finding.met for finding in findings}
    verdict: ExperimentVerdict = "reproduced"
    if "no" in met:
        verdict = "not reproduced"
    elif "in the mean" in met:
        verdict = "reproduced in the mean"
    seeds = tuple(record.seed for record in records[next(iter(experiment.arms))])
    return ExperimentOutcome(
        experiment.name, experiment.claim, experiment.source, verdict, seeds, findings
    )


def _finding(criterion: Criterion, records: Records) -> ThresholdResult:
    values = [FIGURES[criterion.figure](record, criterion) for record in records[criterion.arm]]
    if criterion.less is not None:
        others = [
            FIGURES[criterion.figure](record, criterion) for record in records[criterion.less]
        ]
        values = [value - other for value, other in zip(values, others, strict=True)]
    mean, low, high = over_seeds(values)
    threshold = ""
    met: Met = "reported"
    if criterion.at_least is not None:
        worst = mean if low is None else low
        threshold, met = (
            f"at least {criterion.at_least:g}",
            _met(worst >= criterion.at_least, mean >= criterion.at_least),
        )
    elif criterion.at_most is not None:
        worst = mean if high is None else high
        threshold, met = (
            f"at most {criterion.at_most:g}",
            _met(worst <= criterion.at_most, mean <= criterion.at_most),
        )
    return ThresholdResult(criterion.says, threshold, tuple(values), mean, low, high, met)


def _met(whole: bool, in_the_mean: bool) -> Met:
    return "yes" if whole else "in the mean" if in_the_mean else "no"


def over_seeds(values: Sequence[float]) -> tuple[float, float | None, float | None]:
    """(mean, low, high) over seeds: Student's t interval, None for a single value."""
    if len(values) < 2:
        return values[0], None, None
    found = student_interval(values)
    return found.value, found.low, found.high


# --- figures: (record, criterion) -> one number ----------------------------------------------


def _curve(record: RunRecord, name: str) -> list[CurvePoint]:
    curve = record.curve(name)
    if not curve:
        raise R1labError(f"the run of {record.arm}, seed {record.seed}, has no figure {name!r}")
    return curve


def _at(record: RunRecord, name: str, share: float) -> float:
    """The value at a share of the run: the nearest evaluation; of steps, the mean of WINDOW."""
    curve = _curve(record, name)
    wanted = share * record.steps
    width = WINDOW if name.startswith("train.") else 1
    nearest = sorted(curve, key=lambda point: (abs(point[0] - wanted), point[0]))[:width]
    return fmean(value for _, value in nearest)


def at(record: RunRecord, criterion: Criterion) -> float:
    """The figure at the share `at` of the run."""
    return _at(record, criterion.of, criterion.at)


def change(record: RunRecord, criterion: Criterion) -> float:
    """The figure at `at`, less that at the start."""
    return _at(record, criterion.of, criterion.at) - _at(record, criterion.of, 0.0)


def apart(record: RunRecord, criterion: Criterion) -> float:
    """`of` less `beside` at the share `at` of the run."""
    return _at(record, criterion.of, criterion.at) - _at(record, _other(criterion), criterion.at)


def early(record: RunRecord, criterion: Criterion) -> float:
    """The mean of the steps after the first, WINDOW of them, over the first: below 1, a dip."""
    values = [value for _, value in _curve(record, criterion.of)]
    return fmean(values[1 : 1 + WINDOW]) / max(values[0], 1e-9)


def growth(record: RunRecord, criterion: Criterion) -> float:
    """The figure at `at`, over that at the start."""
    return _at(record, criterion.of, criterion.at) / max(_at(record, criterion.of, 0.0), 1e-9)


def best(record: RunRecord, criterion: Criterion) -> float:
    """The highest value of the figure over that at the start."""
    width = WINDOW if criterion.of.startswith("train.") else 1
    values = [value for _, value in _curve(record, criterion.of)]
    means = [fmean(values[i : i + width]) for i in range(max(len(values) - width + 1, 1))]
    return max(means) / max(_at(record, criterion.of, 0.0), 1e-9)


def kept(record: RunRecord, criterion: Criterion) -> float:
    """The last value of the figure over its highest: 1 where nothing was lost."""
    values = [value for _, value in _curve(record, criterion.of)]
    return values[-1] / max(max(values), 1e-9)


def gap(record: RunRecord, criterion: Criterion) -> float:
    """The least difference of `of` and `beside` over the run."""
    beside = dict(_curve(record, _other(criterion)))
    return min(value - beside[step] for step, value in _curve(record, criterion.of))


def lead(record: RunRecord, criterion: Criterion) -> float:
    """How much sooner `of` has come REACHED of its way than `beside`, as a share of the run."""
    first, second = _reached(record, criterion.of), _reached(record, _other(criterion))
    return (second - first) / record.steps


def mean(record: RunRecord, criterion: Criterion) -> float:
    """The mean of the figure from the share `at` to the share `to` of the run."""
    first, last = criterion.at * record.steps, criterion.to * record.steps
    inside = [value for step, value in _curve(record, criterion.of) if first <= step <= last]
    if not inside:
        raise R1labError(f"{criterion.says!r}: no step of {record.arm} is in its range")
    return fmean(inside)


def suite(record: RunRecord, criterion: Criterion) -> float:
    """pass@k of the trained model less that of its base; `of` is SUITE@K."""
    name, _, k = criterion.of.partition("@")
    try:
        return record.suites[name][k] - record.base_suites[name][k]
    except KeyError:
        raise R1labError(
            f"{criterion.says!r}: pass@{k} of {name} was not measured for {record.arm}"
        ) from None


def _reached(record: RunRecord, name: str) -> float:
    """The step at which a curve has come REACHED of the way from its first to its last value."""
    curve = _curve(record, name)
    first, last = curve[0][1], curve[-1][1]
    level = first + REACHED * (last - first)
    for (before, low), (after, high) in pairwise(curve):
        if high >= level if last >= first else high <= level:
            return before + (after - before) * ((level - low) / (high - low) if high != low else 1)
    return curve[-1][0]


def _other(criterion: Criterion) -> str:
    assert criterion.beside is not None  # the schema asks for it
    return criterion.beside


FIGURES: dict[str, Callable[[RunRecord, Criterion], float]] = {
    "apart": apart,
    "at": at,
    "best": best,
    "change": change,
    "early": early,
    "gap": gap,
    "growth": growth,
    "kept": kept,
    "lead": lead,
    "mean": mean,
    "suite": suite,
}
