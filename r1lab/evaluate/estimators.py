"""Estimators over k samples of one problem: pass@k and maj@k.

Sources: pass@k, the unbiased estimator of Chen et al. (arXiv 2107.03374, eq. 1); maj@k,
self-consistency (Wang et al., arXiv 2203.11171), which DeepSeek-R1 calls cons@k.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence


def pass_at_k(num_samples: int, num_correct: int, k: int) -> float:
    """Estimate the chance that at least one of k samples is right, from c right of n >= k.

    1 - C(n - c, k) / C(n, k): the share of the subsets of k samples that hold a right one. Raises
    ValueError unless 1 <= k <= n and 0 <= c <= n.
    """
    if not 1 <= k <= num_samples:
        raise ValueError(f"pass@{k} needs at least {max(k, 1)} samples, not {num_samples}")
    if not 0 <= num_correct <= num_samples:
        raise ValueError(f"{num_correct} right of {num_samples} samples")
    all_wrong = 1.0
    for i in range(k):
        all_wrong *= max(num_samples - num_correct - i, 0) / (num_samples - i)
    return 1.0 - all_wrong


def maj_at_k(groups: Sequence[Hashable | None], correct: Sequence[bool]) -> float:
    """Return the probability that the most frequent of k answers is right, over ties.

    groups   k keys, the same for equal answers (see `groups.answer_groups`); None where a sample
             gave no answer: it never wins, however frequent
    correct  k verdicts. Answers of one group share the mean of their verdicts, so a verifier that
             looks at more than the answer is no problem

    A tie is broken by a fair draw among the winners: the result is the expected value of that
    draw, so it depends on no order. 0.0 where no sample has an answer.
    """
    votes: dict[Hashable, list[bool]] = {}
    for group, is_right in zip(groups, correct, strict=True):
        if group is not None:
            votes.setdefault(group, []).append(is_right)
    if not votes:
        return 0.0
    most = max(len(group) for group in votes.values())
    winners = [group for group in votes.values() if len(group) == most]
    return sum(sum(group) / len(group) for group in winners) / len(winners)
