"""How long responses are: a log-normal distribution cut off at the cap.

A rollout lasts as long as its longest response, and the batch that a replica decodes shrinks as
the others end; both follow from the distribution.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from math import log
from statistics import NormalDist

from r1lab.estimate.constants import LENGTH_SPREAD

_NORMAL = NormalDist()
_POINTS = 256  # of a grid over the lengths


@dataclass(frozen=True, slots=True)
class Lengths:
    """Response lengths with a `mean` after the cut at `cap`, both in tokens."""

    mean: float
    cap: int
    log_median: float
    spread: float

    def surviving(self, length: float) -> float:
        """Share of the responses that are longer."""
        if length >= self.cap:
            return 0.0
        if length <= 0:
            return 1.0
        return 1.0 - _NORMAL.cdf((log(length) - self.log_median) / self.spread)

    @property
    def grid(self) -> list[tuple[float, float]]:
        """(middle, width) of intervals over 0 to the cap, finer at its beginning."""
        edges = [self.cap * (i / _POINTS) ** 2 for i in range(_POINTS + 1)]
        return [((a + b) / 2, b - a) for a, b in pairwise(edges)]

    @property
    def mean_square(self) -> float:
        """Of the lengths, in tokens squared."""
        return sum(2 * at * self.surviving(at) * width for at, width in self.grid)


def lengths_of(mean: float, cap: int, spread: float = LENGTH_SPREAD) -> Lengths:
    """The distribution whose mean, cut at the cap, is this one, or the cap's where that is less."""
    low, high = log(max(mean, 1e-3)) - 3 * spread, log(cap) + 10 * spread
    for _ in range(50):
        middle = (low + high) / 2
        tried = Lengths(mean, cap, middle, spread)
        if sum(tried.surviving(at) * width for at, width in tried.grid) < mean:
            low = middle
        else:
            high = middle
    return Lengths(mean, cap, (low + high) / 2, spread)
