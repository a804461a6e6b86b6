"""Cluster equal answers to a problem for majority voting, using the verifier itself.

Text does not decide: `1/2`, `0.5` and `\\frac12` are three strings and one answer. So an answer is
passed to the problem's verifier in place of the gold answer, and another one is equal to it if
the verifier accepts it. Right answers form one group by their verdicts. A verifier that does not
look at the gold answer (countdown's, which computes) finds wrong answers equal to none: they are
grouped by their text then, as are those that a batched reward or one without isolation would
have to judge.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from r1lab.types import Completion, Outcome, Problem, ScoredGroup, ScoringFailure, Verdict
from r1lab.verify import RewardCall, Verifiers

# A verifier says with the first words of its reason that it found nothing to judge.
UNREADABLE = ("no answer", "empty answer", "not readable", "longer than", "answer longer than")


def is_readable(completion: Completion, outcome: Outcome, accuracy: str) -> bool:
    """Whether the verifier found an answer: its reason says so, or there is an answer part."""
    if isinstance(outcome, ScoringFailure):
        return completion.answer is not None
    if outcome.parts.get(accuracy, 0.0) >= 1.0:
        return True
    reason = _reason_of(outcome.reason, accuracy)
    if reason.startswith(UNREADABLE):
        return False
    return completion.answer is not None


def answer_groups(scored: Sequence[ScoredGroup], verifiers: Verifiers) -> list[list[int | None]]:
    """Return the group of each completion of each rollout; None: no answer or no reward applied.

    Group 0 holds the right ones. The others are compared with the first of each group, in rounds
    over all problems, so that the verifier's processes are kept busy. The answers of failed
    samples vote too, as wrong ones; they are grouped by their text, since the verifier failed
    on them.
    """
    votes = [_Votes.of(group, verifiers.accuracy) for group in scored]
    compare = verifiers.can_compare
    while open_votes := [vote for vote in votes if vote.waiting]:
        pairs = [(vote, first, rest) for vote in open_votes for first, rest in (vote.next(),)]
        if not compare:
            continue
        items = [
            RewardCall(replace(vote.problem, answer=first), vote.completions[text], "")
            for vote, first, rest in pairs
            for text in rest
        ]
        outcomes = iter(verifiers.judge_answers(items))
        for vote, _, rest in pairs:
            vote.join(text for text in rest if _is_right(next(outcomes), verifiers.accuracy))
    return [vote.groups() for vote in votes]


@dataclass(slots=True)
class _Votes:
    """The answers to one problem: `texts` has that of each sample, None for no vote."""

    problem: Problem
    texts: list[str | None]
    right: list[bool]
    completions: dict[str, Completion]
    waiting: list[str]
    group_of: dict[str, int] = field(default_factory=dict)
    num_groups: int = 1

    @classmethod
    def of(cls, scored: ScoredGroup, accuracy: str) -> _Votes:
        pairs = list(zip(scored.rollout.completions, scored.outcomes, strict=True))
        right = [_is_right(outcome, accuracy) for _, outcome in pairs]
        texts: list[str | None] = []
        completions: dict[str, Completion] = {}
        for is_right, (completion, outcome) in zip(right, pairs, strict=True):
            text = None
            if is_right or is_readable(completion, outcome, accuracy):
                answer = completion.answer if completion.answer is not None else completion.text
                text = " ".join(answer.split())
                if not is_right and not isinstance(outcome, ScoringFailure):
                    completions.setdefault(text, completion)
            texts.append(text)
        return cls(scored.rollout.problem, texts, right, completions, list(completions))

    def next(self) -> tuple[str, list[str]]:
        """Open a group with the first ungrouped answer; return the answers that may join it."""
        first, *rest = self.waiting
        self.waiting = rest
        self.group_of[first] = self.num_groups
        self.num_groups += 1
        return first, rest

    def join(self, texts: Iterable[str]) -> None:
        for text in list(texts):
            self.group_of[text] = self.num_groups - 1
            self.waiting.remove(text)

    def groups(self) -> list[int | None]:
        for text, is_right in zip(self.texts, self.right, strict=True):
            if text is not None and not is_right and text not in self.group_of:  # of a fault
                self.group_of[text] = self.num_groups
                self.num_groups += 1
        return [
            0 if is_right else None if text is None else self.group_of[text]
            for text, is_right in zip(self.texts, self.right, strict=True)
        ]


def _is_right(outcome: Outcome, accuracy: str) -> bool:
    return isinstance(outcome, Verdict) and outcome.parts.get(accuracy, 0.0) >= 1.0


def _reason_of(reason: str, accuracy: str) -> str:
    """Extract the accuracy reward's reason from those of several rewards (`name: words; ...`)."""
    for words in reason.split("; "):
        name, colon, rest = words.partition(": ")
        if colon and name == accuracy:
            return rest
    return reason
