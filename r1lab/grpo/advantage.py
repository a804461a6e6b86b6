"""Advantages of a group: how much better a completion is than its siblings.

r_i are the scores of the G completions of one problem, m and s their mean and std, S a std over the
whole step:

    group_std     (r_i - m) / s                GRPO: DeepSeekMath, arXiv 2402.03300, section 4.1.2;
                                               DeepSeek-R1, 2501.12948, eq. 3
    mean_only     r_i - m                      Dr. GRPO: 2503.20783, section 3.2
    batch_std     (r_i - m) / S(r)             "PPO Lite", 2508.08221: the std of all scores
    rloo          r_i - mean of the others     RLOO: Ahmadian et al. 2024, 2402.14740, eq. 8
    reinforce_pp  (r_i - m) / S(r - m)         REINFORCE++-baseline: 2501.03262, section 3.2

Choices that the papers leave open follow TRL 1.16's GRPOTrainer:
1. A std is the unbiased one (divided by n - 1), and 1e-4 is added to it before dividing.
2. A completion whose verdict has no score (no reward applied to it) is excluded from the mean and
   the std, and has advantage 0.
Differences:
3. A group without variance has advantages of exactly 0, not rounding errors around it, so that
   `grpo.batch.pack` can leave it out of the forward pass.
4. A scoring failure is not a score: the completion leaves its group, and its advantage is None.
5. REINFORCE++ also subtracts the mean of all r - m; it is 0 up to rounding, and is omitted.

This module does not use torch: a step has a few hundred scores.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

from r1lab.problems.registry import resolve
from r1lab.types import Outcome, RecipeError, ScoredGroup, Verdict

STD_EPSILON = 1e-4

# The scores of each group -> their advantages. `total` sums numbers over all processes.
Total = Callable[[Sequence[float]], Sequence[float]]
Advantage = Callable[[Sequence[Sequence[float]], Total], list[list[float]]]


def group_std(groups: Sequence[Sequence[float]], total: Total) -> list[list[float]]:
    """(r - mean) / (std + 1e-4) of each group, unbiased std."""
    return [_over_std(centred) for centred in mean_only(groups, total)]


def mean_only(groups: Sequence[Sequence[float]], total: Total) -> list[list[float]]:
    """r - mean of each group (Dr. GRPO); exactly 0 if all of its scores are equal."""
    return [_centred(rewards) for rewards in groups]


def rloo(groups: Sequence[Sequence[float]], total: Total) -> list[list[float]]:
    """r - mean of the other members: n / (n - 1) of `mean_only`; 0 for a group of one."""
    return [
        [a * len(centred) / max(len(centred) - 1, 1) for a in centred]
        for centred in mean_only(groups, total)
    ]


def batch_std(groups: Sequence[Sequence[float]], total: Total) -> list[list[float]]:
    """(r - mean of the group) / (std of all scores of the step + 1e-4)."""
    std = _std_over_all([r for rewards in groups for r in rewards], total)
    return [[a / (std + STD_EPSILON) for a in centred] for centred in mean_only(groups, total)]


def reinforce_pp(groups: Sequence[Sequence[float]], total: Total) -> list[list[float]]:
    """(r - mean of the group) / (std of these differences over the whole step + 1e-4)."""
    centred = mean_only(groups, total)
    std = _std_over_all([a for of_group in centred for a in of_group], total)
    return [[a / (std + STD_EPSILON) for a in of_group] for of_group in centred]


ADVANTAGES: Mapping[str, Advantage] = MappingProxyType(
    {
        "group_std": group_std,
        "mean_only": mean_only,
        "batch_std": batch_std,
        "rloo": rloo,
        "reinforce_pp": reinforce_pp,
    }
)


def find_advantage(name: str) -> Advantage:
    """Return the estimator of that name: one of ADVANTAGES, or a function given by its path.

    A custom function takes (groups, total): the scores of each group, and a function that sums
    numbers over all processes, which every process must call equally often. It returns one finite
    number per score. Raises RecipeError if the name is neither.
    """
    if name in ADVANTAGES:
        return ADVANTAGES[name]
    key = "algorithm.advantage"
    if ":" not in name and not name.endswith(".py"):
        raise RecipeError(f"{key}: {name!r} is not one of {', '.join(sorted(ADVANTAGES))}")
    return resolve(name, "advantage", key=key)


def group_advantages(
    scored: Sequence[ScoredGroup], kind: str, *, total: Total | None = None
) -> list[list[float | None]]:
    """Return the advantage of each completion of each group, in order.

    scored  P groups; `kind` is a name that `find_advantage` accepts. `total` sums numbers over the
    processes of a launch (each must then call this, even without groups); None means one process.
    Returns P lists with one entry per completion. None: a ScoringFailure, which removes the
    completion from its group. 0: nothing to learn from it (no variance, a group of one, no score).
    Raises RecipeError for an unknown kind, and for an estimator that does not return one finite
    number per score.
    """
    scores = [_scores(group.outcomes) for group in scored]
    groups = [list(of.values()) for of in scores]
    estimated = find_advantage(kind)(groups, total or (lambda sums: sums))
    _check_estimates(groups, estimated, kind)
    return [
        _in_order(group.outcomes, dict(zip(of, advantages, strict=True)))
        for group, of, advantages in zip(scored, scores, estimated, strict=True)
    ]


def is_informative(group: ScoredGroup) -> bool:
    """Return whether a group's scores differ, so that some advantage is not 0 under every kind."""
    return len(set(_scores(group.outcomes).values())) > 1


def _check_estimates(
    groups: Sequence[Sequence[float]], estimated: Sequence[Sequence[float]], kind: str
) -> None:
    lengths, expected = [len(of) for of in estimated], [len(of) for of in groups]
    if lengths != expected:
        raise RecipeError(
            f"algorithm.advantage: {kind!r} returned groups of {lengths} numbers for {expected} "
            "scores; return one number per score"
        )
    if not all(math.isfinite(value) for of in estimated for value in of):
        raise RecipeError(f"algorithm.advantage: {kind!r} returned a non-finite number")


def _scores(outcomes: Sequence[Outcome]) -> dict[int, float]:
    return {
        index: outcome.score
        for index, outcome in enumerate(outcomes)
        if isinstance(outcome, Verdict) and outcome.score is not None
    }


def _in_order(outcomes: Sequence[Outcome], of_index: Mapping[int, float]) -> list[float | None]:
    return [
        of_index.get(index, 0.0) if isinstance(outcome, Verdict) else None
        for index, outcome in enumerate(outcomes)
    ]


def _centred(rewards: Sequence[float]) -> list[float]:
    if not rewards or min(rewards) == max(rewards):
        return [0.0] * len(rewards)
    mean = math.fsum(rewards) / len(rewards)
    return [reward - mean for reward in rewards]


def _over_std(centred: list[float]) -> list[float]:
    if not any(centred):
        return centred
    std = math.sqrt(math.fsum(a * a for a in centred) / (len(centred) - 1))
    return [a / (std + STD_EPSILON) for a in centred]


def _std_over_all(values: Sequence[float], total: Total) -> float:
    """Return the unbiased std of the values of all processes; 0 for fewer than two."""
    count, summed = total([float(len(values)), math.fsum(values)])
    mean = summed / max(count, 1.0)
    (squares,) = total([math.fsum((value - mean) ** 2 for value in values)])
    return math.sqrt(squares / max(count - 1.0, 1.0))
