"""Dynamic sampling: only groups that say something are trained on, others are asked in their place.

DAPO (arXiv 2503.14476, section 3.2): a group whose scores are all equal has no gradient, and the
more a policy learns the more of them there are. They are thrown away, and further questions are
asked until the step is full. So that the last missing groups do not take a round each, more are
asked for than are missing, by the share that was of use so far; what is left over opens the next
step, one version of the weights old (`grpo.batch.pack` marks it stale).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from r1lab.grpo.advantage import is_informative
from r1lab.types import Scored

# A round asks for at most so many times what is missing.
_MOST = 4


@dataclass(frozen=True, slots=True)
class Collected:
    """groups: what the step trains on; waiting: for the next one; judged: all asked in this one."""

    groups: list[Scored]
    waiting: tuple[Scored, ...]
    judged: list[Scored]


def refill(
    first: Sequence[Scored],
    waiting: Sequence[Scored],
    ask: Callable[[int], list[Scored]],
    *,
    wanted: int,
    max_refills: int,
) -> Collected:
    """Collect `wanted` informative groups: those that wait, those of `first`, then those of `ask`.

    `ask(n)` samples and scores n further questions. After `max_refills` rounds of it the step goes
    on with fewer. A round asks for no more than `wanted`, so that less than a step is left over.
    """
    judged, ready = list(first), [*waiting, *filter(is_informative, first)]
    for _ in range(max_refills):
        missing = wanted - len(ready)
        if missing <= 0:
            break
        useful = sum(map(is_informative, judged)) / max(len(judged), 1)
        more = ask(min(wanted, math.ceil(missing / max(useful, 1 / _MOST))))
        judged += more
        ready += filter(is_informative, more)
    return Collected(ready[:wanted], tuple(ready[wanted:]), judged)
