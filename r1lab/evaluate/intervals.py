"""Intervals by the bootstrap, clustered by problem.

Samples of one problem depend on one another, so problems are drawn with replacement and their
samples stay together (Efron and Tibshirani, An Introduction to the Bootstrap, ch. 13). The ends are
expanded percentiles (Hesterberg 2015, arXiv 1411.5279, sect. 5.2): plain ones are too narrow for
few problems, by a factor of sqrt((n - 1) / n) and of the normal's quantile over Student's t. Where
every problem has the same share, 0 or 1, no draw differs and a bootstrap would be certain of it:
the exact bound for that many problems is used instead (Clopper and Pearson 1934).
`scripts/check_statistics.py` measures how often the intervals cover. All metrics of an evaluation
share the draws.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

LEVEL = 0.95
NUM_RESAMPLES = 2000
# Weights drawn at once: 2**22 float64 are 32 MiB.
_MAX_WEIGHTS = 2**22


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure and the ends of its interval (at `intervals.LEVEL`, 95%)."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def bootstrap(
    numerators: NDArray[np.float64],
    denominators: NDArray[np.float64],
    *,
    seed: int,
    level: float = LEVEL,
    num_resamples: int = NUM_RESAMPLES,
    shares: Sequence[bool] | None = None,
) -> list[Estimate | None]:
    """Compute S ratios of sums over problems, each with its interval.

    numerators, denominators [P, S]: what each problem adds to either sum. A mean over problems has
    denominators of 1; a mean length of right answers has the problem's tokens in right answers over
    their number. None if a denominator sums to 0. Draws whose denominator is 0 are left
    out of that figure's interval. `shares` [S] says which figures are means of values from 0 to 1.
    The same seed gives the same interval.
    """
    num_problems, num_figures = numerators.shape
    if num_problems == 0:
        return [None] * num_figures
    drawn = np.concatenate(
        [
            _ratio(weights @ numerators, weights @ denominators)
            for weights in resamples(num_problems, num_resamples, seed)
        ]
    )
    values = _ratio(numerators.sum(0), denominators.sum(0))
    counted = (denominators != 0).sum(0)
    bounded = shares if shares is not None else [False] * num_figures
    return [
        _estimate(float(values[s]), drawn[:, s], int(counted[s]), bounded[s], level)
        for s in range(num_figures)
    ]


def resamples(num_problems: int, num_resamples: int, seed: int) -> list[NDArray[np.float64]]:
    """How often each problem is drawn, which is all that sums depend on: blocks of [R, P]."""
    generator = np.random.default_rng(seed)
    share = np.full(num_problems, 1.0 / num_problems)
    step = max(1, _MAX_WEIGHTS // num_problems)
    return [
        generator.multinomial(num_problems, share, size=min(step, num_resamples - done)).astype(
            np.float64
        )
        for done in range(0, num_resamples, step)
    ]


def expanded_ends(
    drawn: NDArray[np.float64], num_problems: int, level: float = LEVEL
) -> tuple[float, float]:
    """The ends of the interval from the drawn values of a figure over `num_problems` problems."""
    tail = (1 - level) / 2
    if num_problems > 1:
        factor = math.sqrt(num_problems / (num_problems - 1))
        tail = NormalDist().cdf(factor * student_quantile(tail, num_problems - 1))
    low, high = np.quantile(drawn, [tail, 1 - tail])
    return float(low), float(high)


def student_interval(values: Sequence[float]) -> Estimate:
    """The mean of two values or more, one a seed or a run, with its interval by Student's t."""
    num = len(values)
    mean = math.fsum(values) / num
    variance = math.fsum((value - mean) ** 2 for value in values) / (num - 1)
    reach = student_quantile((1 + LEVEL) / 2, num - 1) * math.sqrt(variance / num)
    return Estimate(mean, mean - reach, mean + reach)


@lru_cache(maxsize=1024)
def student_quantile(chance: float, freedom: float) -> float:
    """The quantile of Student's t with `freedom` degrees of freedom, exact to 1e-9."""
    if chance > 0.5:
        return -student_quantile(1 - chance, freedom)
    # Bisection between two bounds that hold it: the quantile is monotone in `chance`.
    low, high = -1.0, 0.0
    while student_cdf(low, freedom) > chance:
        low *= 2
    while high - low > 1e-10 * max(1.0, -low):
        middle = (low + high) / 2
        low, high = (middle, high) if student_cdf(middle, freedom) < chance else (low, middle)
    return (low + high) / 2


def student_cdf(t: float, freedom: float) -> float:
    """P(T <= t) of Student's t, by the regularised incomplete beta function."""
    from mpmath import betainc

    tail = float(betainc(freedom / 2, 0.5, 0, freedom / (freedom + t * t), regularized=True) / 2)
    return tail if t < 0 else 1 - tail


def _ratio(numerator: NDArray[np.float64], denominator: NDArray[np.float64]) -> NDArray[np.float64]:
    ratio = np.full(numerator.shape, np.nan)
    np.divide(numerator, denominator, out=ratio, where=denominator != 0)
    return ratio


def _estimate(
    value: float, drawn: NDArray[np.float64], counted: int, is_share: bool, level: float
) -> Estimate | None:
    if math.isnan(value):
        return None
    drawn = drawn[~np.isnan(drawn)]
    low, high = expanded_ends(drawn, counted, level)
    if is_share and value in (0.0, 1.0):
        reach = 1 - ((1 - level) / 2) ** (1 / counted)
        low, high = (0.0, reach) if value == 0 else (1 - reach, 1.0)
    return Estimate(value, min(low, value), max(high, value))
