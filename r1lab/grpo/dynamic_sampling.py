"""Dynamic sampling: only groups that say something are trained on, others are asked in their place.

DAPO (arXiv 2503.14476, section 3.2): a group whose scores are all equal has no gradient, and the
more a policy learns the more of them there are. They are thrown away, and further questions are
asked until the step is full. That happens while others are still being sampled: after each group,
the share that was of use so far says how many of those in flight will be, and what will be missing
is asked for at once. So the sampler does not run empty behind its longest answers.

What is in flight when the step is full is waited for, as leaving it would leave out the questions
with the longest answers. It opens the next step, one version of the weights old
(`grpo.batch.pack` marks it stale).

What is asked depends on the scores of the groups and on the order in which they finish, which a
sampler repeats (`rollout.sampler.GroupStream`), never on the clock.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from r1lab.grpo.advantage import is_informative
from r1lab.types import ScoredGroup

# So many questions for each missing group are in flight, at most.
_MOST = 4


@dataclass(frozen=True, slots=True)
class Collected:
    """What a step has sampled.

    groups       what it trains on
    waiting      for the next one
    judged       all that were asked in this one, in that order
    thrown_away  how many groups are neither trained on nor wait
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
    """Collect `wanted` informative groups: those that wait from the last step, then new ones.

    `ask(n)` sends n further questions off, numbered on from 0; `finished()` waits until there are
    groups that finished, and returns them scored, by number. No more than `wanted` groups are in
    flight at once, so that less than a step is left over, and no more than `max_refills * wanted`
    are asked beyond the first; then the step goes on with the groups it has. Where more are
    informative than wanted, those asked first are taken, not those that finished first: these are
    the short ones.
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
    kept = ready[: 2 * wanted]  # what waits is a step at most, also if steps were larger before
    return Collected(
        kept[:wanted], tuple(kept[wanted:]), in_order, len(waiting) + len(in_order) - len(kept)
    )


def further(*, missing: int, in_flight: int, useful: int, judged: int, wanted: int) -> int:
    """How many more questions to ask now.

    `missing` groups of `wanted` are not there yet, `in_flight` are being sampled, and of the
    `judged` ones of this step `useful` were informative. The share that the others will have is
    taken from these and half a step of informative ones before them, so that a few do not decide.
    """
    if missing <= 0:
        return 0
    # missing / share, rounded up, with share = (useful + wanted / 2) / (judged + wanted / 2)
    needed = -(-missing * (2 * judged + wanted) // (2 * useful + wanted))
    return max(0, min(needed, _MOST * missing, wanted) - in_flight)
