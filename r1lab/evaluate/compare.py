"""Is one model better than another? Differences, each with its interval and a p-value.

Two models asked the same problems are compared problem by problem: what makes a problem hard for
both then cancels, and the interval of the difference is narrower than two intervals side by side
suggest. A difference never comes without an interval: `Difference` holds both, and R1labError is
raised if no interval can be computed.

One result against one: problems are drawn with replacement (`intervals`), the p-value is that of a
permutation test, which exchanges the two models on each problem at random (Fisher 1935).
Several results a side (seeds of a run): seeds differ as problems do, so the variance is the sum of
that over runs of each side and that over problems, and Student's t with the degrees of freedom of
Welch and Satterthwaite gives interval and p-value. Noise of sampling is in both parts, which errs
on the wide side.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from r1lab.evaluate.intervals import (
    LEVEL,
    NUM_RESAMPLES,
    Estimate,
    expanded_ends,
    resamples,
    student_cdf,
    student_quantile,
)
from r1lab.evaluate.result import MAX_FAULT_SHARE
from r1lab.types import R1labError

NUM_PERMUTATIONS = 20_000
FIGURES = ("pass_at_1", "cons_at_k", "length")
ComparedResult = Mapping[str, Any]  # `EvalResult.as_dict`, perhaps read back from JSON
Table = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Difference:
    """`figure` of the second side minus that of the first, with its interval (95%) and p-value.

    `first` and `second` are the two figures on the problems that both sides have; `num_runs` how
    many results are on each side.
    """

    figure: str
    first: float
    second: float
    low: float
    high: float
    p_value: float
    num_problems: int
    num_runs: tuple[int, int]

    @property
    def value(self) -> float:
        return self.second - self.first

    def __str__(self) -> str:
        return (
            f"{self.value:+.4f} [{self.low:+.4f}, {self.high:+.4f}], p = {_p(self.p_value)} "
            f"({self.num_problems} problems)"
        )


def compare(
    first: Sequence[ComparedResult], second: Sequence[ComparedResult], *, seed: int = 0
) -> list[Difference]:
    """Compare pass@1, cons@k and length between two sides, paired by problem.

    Each side holds one result, or several of runs that differ by their seed. Raises R1labError
    if no interval can be computed: fewer than two problems in common.
    """
    if not first or not second:
        raise R1labError("a comparison needs at least one result on each side")
    return [
        difference
        for figure in FIGURES
        if (difference := compare_figure(first, second, figure, seed=seed)) is not None
    ]


def compare_figure(
    first: Sequence[ComparedResult], second: Sequence[ComparedResult], figure: str, *, seed: int = 0
) -> Difference | None:
    """Compare one metric; None if a side has no value for it."""
    sides = [[_by_problem(result, figure) for result in side] for side in (first, second)]
    if any(not values for side in sides for values in side):
        return None
    common = sorted(set.intersection(*(set(values) for side in sides for values in side)))
    if len(common) < 2:
        raise R1labError(
            f"{len(common)} problems are in all the results that are compared: a difference needs "
            "an interval, and that at least two; compare results of one suite"
        )
    one, two = (
        np.array([[values[problem] for problem in common] for values in side]) for side in sides
    )
    ends = paired_ends(one[0], two[0], seed) if len(one) == len(two) == 1 else _across(one, two)
    return Difference(
        figure, float(one.mean()), float(two.mean()), *ends, len(common), (len(one), len(two))
    )


def across_seeds(results: Sequence[ComparedResult], figure: str = "pass_at_1") -> Estimate:
    """Return the mean of a metric over runs, with an interval over seeds and problems.

    Raises R1labError for fewer than two results, or fewer than two problems in common.
    """
    if len(results) < 2:
        raise R1labError("an interval across seeds needs at least two results")
    tables = [_by_problem(result, figure) for result in results]
    common = sorted(set.intersection(*(set(table) for table in tables)))
    if len(common) < 2:
        raise R1labError(f"{len(common)} problems are in all results; take results of one suite")
    values = np.array([[table[problem] for problem in common] for table in tables])
    return across_runs(values)


def across_runs(values: Table) -> Estimate:
    """Return the mean of values [R runs, P problems], with its interval over runs and problems."""
    mean = float(values.mean())
    reach, _ = _reach([_variance(values.mean(1)), _variance(values.mean(0))])
    return Estimate(mean, mean - reach, mean + reach)


def fault_share(result: ComparedResult) -> float:
    """Return the share of a result's samples that could not be judged."""
    faults = [bool(s.get("fault")) for problem in result["problems"] for s in problem["samples"]]
    return sum(faults) / len(faults) if faults else 0.0


def settings_that_differ(first: ComparedResult, second: ComparedResult) -> list[str]:
    """List the settings that differ between two evaluations: 'temperature 1.0 / 0.6'."""
    names = ("suite", "template", "k", "temperature", "top_p", "max_tokens", "accuracy", "shots")
    return [
        f"{name} {first.get(name)} / {second.get(name)}"
        for name in names
        if first.get(name) != second.get(name)
    ]


def paired_ends(
    one: Table, two: Table, seed: int, *, permutations: int = NUM_PERMUTATIONS
) -> tuple[float, float, float]:
    """Return (low, high, p-value) of the mean of two - one, values [P] of the same problems."""
    gaps = two - one
    num = len(gaps)
    drawn = np.concatenate([w @ gaps / num for w in resamples(num, NUM_RESAMPLES, seed)])
    low, high = expanded_ends(drawn, num)
    if np.all(gaps == gaps[0]) and abs(gaps[0]) <= 1:
        # No draw differs: the exact bound on how often the models could yet differ.
        reach = 1 - ((1 - LEVEL) / 2) ** (1 / num)
        low, high = min(low, gaps[0] - reach), max(high, gaps[0] + reach)
    observed = abs(gaps.sum())
    generator = np.random.default_rng(seed + 1)
    extreme = done = 0
    while done < permutations:
        size = min(permutations - done, max(1, 2**22 // num))
        signs = generator.integers(0, 2, size=(size, num), dtype=np.int8) * 2 - 1
        extreme += int((np.abs(signs @ gaps) >= observed - 1e-12).sum())
        done += size
    return float(low), float(high), (extreme + 1) / (permutations + 1)


def _across(one: Table, two: Table) -> tuple[float, float, float]:
    """(low, high, p-value) for values [R runs, P problems] of either side."""
    gap = float(two.mean() - one.mean())
    parts = [_variance(two.mean(0) - one.mean(0))]
    parts += [_variance(side.mean(1)) for side in (one, two) if len(side) > 1]
    reach, freedom = _reach(parts)
    if reach == 0:
        return gap, gap, 1.0 if gap == 0 else 0.0
    t = abs(gap) / (reach / student_quantile((1 + LEVEL) / 2, freedom))
    return gap - reach, gap + reach, 2 * (1 - student_cdf(t, freedom))


def _variance(values: Table) -> tuple[float, int]:
    """(variance of the mean of the values, its degrees of freedom)."""
    return float(values.var(ddof=1)) / len(values), len(values) - 1


def _reach(parts: Sequence[tuple[float, int]]) -> tuple[float, float]:
    """Half an interval from independent parts of a variance, and the degrees of freedom."""
    total = sum(variance for variance, _ in parts)
    if total == 0:
        return 0.0, 1.0
    freedom = total**2 / sum(variance**2 / count for variance, count in parts)
    return student_quantile((1 + LEVEL) / 2, freedom) * math.sqrt(total), freedom


def _by_problem(result: ComparedResult, figure: str) -> dict[str, float]:
    """Return the metric of each problem with a judged sample, by id and question.

    A failed sample counts as wrong; above MAX_FAULT_SHARE only the length is available.
    """
    found: dict[str, float] = {}
    if figure != "length" and fault_share(result) > MAX_FAULT_SHARE:
        return found
    for problem in result["problems"]:
        samples = problem["samples"]
        judged = [s for s in samples if s["correct"] is not None or s.get("fault")]
        if not judged:
            continue
        if figure == "pass_at_1":
            value = sum(bool(sample["correct"]) for sample in judged) / len(judged)
        elif figure == "length":
            value = sum(sample["length"] for sample in samples) / len(samples)
        elif problem.get("majority") is not None:
            value = problem["majority"]
        else:
            continue
        found[f"{problem['id']}\n{problem['question']}"] = float(value)
    return found


def _p(value: float) -> str:
    return f"{value:.1g}" if value >= 1e-4 else "< 1e-4"
