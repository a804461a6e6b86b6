"""The second, independent grader: it scores a sample of each step's responses, without training.

If the training reward rises and the grader's score does not, the policy has found a way around the
reward. The grader runs with the same isolation as the rewards.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from r1lab.config.alarms import SecondGrader
from r1lab.config.recipe import RewardSettings
from r1lab.prompts import Template
from r1lab.types import Rollout, ScoredGroup, Verdict
from r1lab.verify import Runner, Verifiers

# Its metrics in metrics.jsonl.
FIGURES = ("grader_score", "grader_gap", "grader_responses")


class Grader:
    """The grader of a recipe. `accuracy` is the component that it is compared with."""

    def __init__(
        self, settings: SecondGrader, *, template: Template, runner: Runner, accuracy: str
    ) -> None:
        reward = RewardSettings(
            reward=settings.reward, options=settings.options, isolate=settings.isolate,
            seconds=settings.seconds, memory_mib=settings.memory_mib,
        )  # fmt: skip
        self._verifiers = Verifiers([reward], template=template, runner=runner, key="watch.grader")
        self._num_responses, self._accuracy = settings.responses, accuracy

    def figures(self, scored: Sequence[ScoredGroup]) -> dict[str, float | None]:
        """Return the grader's mean score, mean (training score - grader's), number of responses.

        The means cover responses that both could judge, spread evenly over the step; the selection
        is not random, so that grading changes nothing else. None if there is no such response.
        """
        sample = _spread(_judged(scored, self._accuracy), self._num_responses)
        graded = self._verifiers.score([rollout for rollout, _ in sample])
        pairs = [
            (training, outcome.score)
            for (_, training), scored_again in zip(sample, graded, strict=True)
            for outcome in scored_again.outcomes
            if isinstance(outcome, Verdict) and outcome.score is not None
        ]
        score = fmean(own for _, own in pairs) if pairs else None
        gap = fmean(training - own for training, own in pairs) if pairs else None
        return dict(zip(FIGURES, (score, gap, float(len(pairs))), strict=True))


def _judged(scored: Sequence[ScoredGroup], accuracy: str) -> list[tuple[Rollout, float]]:
    """Return each response that the training reward judged, on its own, with its score."""
    return [
        (
            Rollout(group.rollout.problem, group.rollout.prompt_token_ids, (completion,)),
            outcome.parts[accuracy],
        )
        for group in scored
        for completion, outcome in zip(group.rollout.completions, group.outcomes, strict=True)
        if isinstance(outcome, Verdict) and accuracy in outcome.parts
    ]


def _spread(items: Sequence[tuple[Rollout, float]], count: int) -> list[tuple[Rollout, float]]:
    """Return `count` of the items at even distances, or all if there are fewer."""
    if len(items) <= count:
        return list(items)
    return [items[index * len(items) // count] for index in range(count)]
