"""Intervals by the bootstrap, clustered by problem.

Samples of one problem depend on one another, so problems are drawn with replacement and their
samples stay together (Efron and Tibshirani, An Introduction to the Bootstrap, ch. 13: percentile
intervals). All figures of an evaluation share the draws.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

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


def bootstrap(
    numerators: NDArray[np.float64],
    denominators: NDArray[np.float64],
    *,
    seed: int,
    level: float = LEVEL,
    num_resamples: int = NUM_RESAMPLES,
) -> list[Estimate | None]:
    """S ratios of sums over problems, each with its percentile interval.

    numerators, denominators [P, S]: what each problem adds to either sum. A mean over problems has
    denominators of 1; a mean length of right answers has the problem's tokens in right answers over
    their number. None stands where a denominator sums to 0. Draws whose denominator is 0 are left
    out of that figure's interval. The same seed gives the same interval.
    """
    num_problems, num_figures = numerators.shape
    if num_problems == 0:
        return [None] * num_figures
    generator = np.random.default_rng(seed)
    share = np.full(num_problems, 1.0 / num_problems)
    ratios = []
    step = max(1, _MAX_WEIGHTS // num_problems)
    for done in range(0, num_resamples, step):
        # How often each problem is drawn is all that sums depend on.
        weights = generator.multinomial(
            num_problems, share, size=min(step, num_resamples - done)
        ).astype(np.float64)
        ratios.append(_ratio(weights @ numerators, weights @ denominators))
    drawn = np.concatenate(ratios)
    values = _ratio(numerators.sum(0), denominators.sum(0))
    return [_estimate(values[s], drawn[:, s], level) for s in range(num_figures)]


def mean_interval(values: Sequence[float], *, seed: int = 0) -> Estimate:
    """The mean of one value a problem, with its interval; ValueError where there is none."""
    column = np.asarray(values, dtype=np.float64)[:, None]
    (estimate,) = bootstrap(column, np.ones_like(column), seed=seed)
    if estimate is None:
        raise ValueError("no problems: no mean")
    return estimate


def _ratio(numerator: NDArray[np.float64], denominator: NDArray[np.float64]) -> NDArray[np.float64]:
    ratio = np.full(numerator.shape, np.nan)
    np.divide(numerator, denominator, out=ratio, where=denominator != 0)
    return ratio


def _estimate(value: np.float64, drawn: NDArray[np.float64], level: float) -> Estimate | None:
    if np.isnan(value):
        return None
    drawn = drawn[~np.isnan(drawn)]
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return Estimate(float(value), float(low), float(high))
