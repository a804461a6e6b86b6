"""Advantages of a group: how much better a completion is than its siblings.

Source: GRPO (DeepSeekMath, arXiv 2402.03300, section 4.1.2; DeepSeek-R1, arXiv 2501.12948, eq. 3):
A_i = (r_i - mean(r)) / std(r) over the G completions of one problem. Dr. GRPO (arXiv 2503.20783)
leaves the division out.

Choices that the papers leave open, made as TRL 1.16's GRPOTrainer makes them:
1. std is the unbiased one (divided by n - 1), and 1e-4 is added to it before dividing.
2. A completion whose verdict has no score (no reward applied to it) stays outside the mean and the
   std, and has advantage 0.
Where we differ:
3. A group without variance has advantages of exactly 0, not rounding errors around it, so that
   `grpo.batch.pack` can leave it out of the forward pass.
4. A fault is no score: such a completion leaves its group, and its advantage is None.

No torch: a step has some hundreds of scores.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

from r1lab.types import Outcome, Scored, Verdict

STD_EPSILON = 1e-4

Advantage = Callable[[Sequence[float]], list[float]]


def group_std(rewards: Sequence[float]) -> list[float]:
    """(r - mean) / (std + 1e-4) of one group, unbiased std; zeros where all rewards are equal."""
    centred = mean_only(rewards)
    if not any(centred):
        return centred
    std = math.sqrt(math.fsum(a * a for a in centred) / (len(centred) - 1))
    return [a / (std + STD_EPSILON) for a in centred]


def mean_only(rewards: Sequence[float]) -> list[float]:
    """r - mean of one group (Dr. GRPO); exactly zeros where all rewards are equal."""
    if not rewards or min(rewards) == max(rewards):
        return [0.0] * len(rewards)
    mean = math.fsum(rewards) / len(rewards)
    return [reward - mean for reward in rewards]


ADVANTAGES: Mapping[str, Advantage] = MappingProxyType(
    {"group_std": group_std, "mean_only": mean_only}
)


def group_advantages(scored: Sequence[Scored], kind: str) -> list[list[float | None]]:
    """The advantage of each completion of each group, in order.

    scored  P groups; `kind` is a name of ADVANTAGES.
    Returns P lists of as many numbers as the group has completions. None: the completion left its
    group through a Fault. 0: nothing to learn from it (no variance, a group of one, no score).
    Raises ValueError for an unknown kind.
    """
    if kind not in ADVANTAGES:
        raise ValueError(f"advantage {kind!r} is not one of {', '.join(sorted(ADVANTAGES))}")
    return [_of_one_group(group.outcomes, ADVANTAGES[kind]) for group in scored]


def _of_one_group(outcomes: Sequence[Outcome], advantage: Advantage) -> list[float | None]:
    scores = {
        index: outcome.score
        for index, outcome in enumerate(outcomes)
        if isinstance(outcome, Verdict) and outcome.score is not None
    }
    of_index = dict(zip(scores, advantage(list(scores.values())), strict=True))
    return [
        of_index.get(index, 0.0) if isinstance(outcome, Verdict) else None
        for index, outcome in enumerate(outcomes)
    ]
