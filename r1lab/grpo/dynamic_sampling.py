"""Dynamic sampling: train on informative groups only and resample the others.

DAPO (arXiv 2503.14476, section 3.2): a group whose scores are all equal has no gradient, and such
groups become more frequent as a policy learns. They are dropped, and further prompts are sampled
until the step is full. This happens while others are still being sampled: after each group, the
share of informative groups so far predicts how many of those in flight will be informative, and
the expected shortfall is requested at once. The sampler therefore does not idle behind its longest
answers.

Groups in flight when the step is full are awaited, because dropping them would drop the prompts
with the longest answers. They are the first groups of the next step, one version of the weights
old (`grpo.batch.pack` marks them stale).

The requests depend on the scores of the groups and on the order in which they finish, which a
sampler reproduces (`rollout.sampler.GroupStream`), never on wall time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from r1lab.grpo.advantage import is_informative
from r1lab.types import ScoredGroup

# Prompts in flight per missing group, at most.
_MOST = 4


@dataclass(frozen=True, slots=True)
class Collected:
    """Groups sampled by a step.

    groups       trained on in this step
    waiting      carried over to the next step
    judged       all groups requested in this step, in that order
    thrown_away  number of groups that are neither trained on nor carried over
    """

    groups: list[ScoredGroup]
    waiting: tuple[ScoredGroup, ...]
    judged: list[ScoredGroup]
    thrown_away: int = 0


def refill(
    waiting: tuple[ScoredGroup, ...],
    ask: Callable[[int], None],
    finished: Callable[[], dict[int, ScoredGroup]],
    *,
    wanted: int,
    max_refills: int,
) -> Collected:
    """Collect `wanted` informative groups: those carried over from the last step, then new ones.

    `ask(n)` requests n further prompts, numbered from 0; `finished()` waits for finished groups and
    returns them scored, by number. At most `wanted` groups are in flight at once, so that less
    than a step is left over, and at most `max_refills * wanted` are requested after the first
    round; then the step uses the groups it has. If more groups are informative than wanted, those
    requested first are used. Taking those that finished first would favour short answers.
    """
    judged: dict[int, ScoredGroup] = {}
    in_flight = max(0, wanted - len(waiting))
    left = max_refills * wanted
    ask(in_flight)
    while in_flight:
        done = finished()
        judged |= done
        in_flight -= len(done)
        useful = sum(map(is_informative, judged.values()))
        more = further(
            missing=wanted - len(waiting) - useful, in_flight=in_flight, useful=useful,
            judged=len(judged), wanted=wanted,
        )  # fmt: skip
        if more := min(more, left):
            ask(more)
            in_flight += more
            left -= more
    in_order = [judged[number] for number in sorted(judged)]
    ready = [*waiting, *filter(is_informative, in_order)]
    kept = ready[: 2 * wanted]  # carry over one step at most, even if steps were larger before
    return Collected(
        kept[:wanted], tuple(kept[wanted:]), in_order, len(waiting) + len(in_order) - len(kept)
    )


def further(*, missing: int, in_flight: int, useful: int, judged: int, wanted: int) -> int:
    """Return how many more prompts to request now.

    `missing` groups of `wanted` have yet to arrive, `in_flight` are being sampled, and `useful` of
    the `judged` groups of this step were informative. The expected share of informative groups is
    estimated from these plus half a step of informative ones as a prior, so that a few groups do
    not dominate.
    """
    if missing <= 0:
        return 0
    # missing / share, rounded up, with share = (useful + wanted / 2) / (judged + wanted / 2)
    needed = -(-missing * (2 * judged + wanted) // (2 * useful + wanted))
    return max(0, min(needed, _MOST * missing, wanted) - in_flight)
