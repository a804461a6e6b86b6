"""Sum the rewards of a recipe: r_i of each completion, with its reason."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isfinite
from statistics import fmean

from r1lab.config.recipe import RewardSettings
from r1lab.problems.registry import PROBLEM_VERIFIER
from r1lab.prompts import Template
from r1lab.types import Outcome, Rollout, ScoredGroup, ScoringFailure, Verdict
from r1lab.verify.call import InProcessRunner, RewardCall, Runner, TrainerState
from r1lab.verify.load import Reward, RewardLimits, load_reward

# What the score of the verifier that a problem names is called among the parts.
ACCURACY = "accuracy"
# Figures of a step that are no reward's: a reward of such a name is called `NAME_reward` there.
RESERVED_METRICS = frozenset({
    "step", "reward", "length", "length_right", "length_wrong", "truncated", "unanswered",
    "zero_variance", "faults", "responses", "loss", "entropy", "clipped_low", "clipped_high",
    "gradient_tokens", "grad_norm", "learning_rate", "sync_kl", "sync_kl_uncapped",
    "skipped", "sync_kl_tokens", "sync_kl_bound", "sync_kl_rechecked",
    "grader_score", "grader_gap", "grader_responses", "kl_old", "kl_ref", "correction",
    "correction_cut", "groups", "groups_waiting", "groups_thrown_away", "lag", "lag_max",
})  # fmt: skip


class Verifiers:
    """Scores rollouts with the weighted sum of a recipe's rewards.

    `names` are the parts of a verdict, one for each reward: `accuracy` for `problem`, otherwise the
    reward's short name. `figures` are the names of their means among the metrics of a step: the
    same, except names that other metrics have (`RESERVED_METRICS`). `accuracy` is the part that
    tells right (1) from wrong: that of `problem`, or of the first reward if there is no `problem`.
    """

    def __init__(
        self,
        rewards: Sequence[RewardSettings],
        *,
        template: Template,
        runner: Runner | None = None,
        max_steps: int = 0,
        key: str = "rewards.{index}",
    ) -> None:
        """Load every reward that the settings name; RecipeError if one cannot be used.

        The verifiers that problems name are loaded when the first such problem is scored.
        `runner` runs the isolated rewards; None: all in this process. The caller that created
        the runner closes it. `max_steps` is passed to TRL's `trainer_state`.
        `key` is the path of the settings in the recipe, for messages.
        """
        self._settings = tuple(rewards)
        self._template = template
        self._here = InProcessRunner()
        self._walled: Runner = self._here if runner is None else runner
        self._max_steps, self._key = max_steps, key
        self._of_problem: dict[tuple[int, str], Reward] = {}
        self._rewards = [
            None
            if setting.reward == PROBLEM_VERIFIER
            else load_reward(
                setting.reward,
                setting.options,
                key=key.format(index=index),
                limits=_limits(setting),
            )
            for index, setting in enumerate(self._settings)
        ]
        self.names = _unique([reward.short_name if reward else None for reward in self._rewards])
        self.figures = tuple(
            f"{name}_reward" if name in RESERVED_METRICS else name for name in self.names
        )
        self.accuracy = ACCURACY if ACCURACY in self.names else self.names[0]

    def score(self, rollouts: Sequence[Rollout]) -> list[ScoredGroup]:
        """One ScoredGroup for each rollout, in order, with one outcome for each completion.

        The score is the sum of weight * score over the rewards that apply (None is left out; None
        for all: no score). `parts` holds the unweighted scores by name. A fault in any reward makes
        the whole outcome a ScoringFailure: a sum that lacks a part would be a wrong score.
        """
        items = [
            RewardCall(rollout.problem, completion, prompt, self._state(completion.weight_version))
            for rollout in rollouts
            for prompt in (self._template.prompt(rollout.problem.question),)
            for completion in rollout.completions
        ]
        by_reward = [self._run(index, items) for index in range(len(self._settings))]
        outcomes = iter([self._add_up(row) for row in zip(*by_reward, strict=True)])
        return [
            ScoredGroup(rollout, tuple(next(outcomes) for _ in rollout.completions))
            for rollout in rollouts
        ]

    def reported(self, scored: Sequence[ScoredGroup]) -> dict[str, float]:
        """Means of the parts that rewards report themselves, by name: `accuracy.steps`.

        A part of a Verdict, and what a batched reward logs with TRL's `log_metric` and `log_extra`.
        """
        values: dict[str, list[float]] = {}
        for group in scored:
            for outcome in group.outcomes:
                if isinstance(outcome, Verdict):
                    for name in outcome.parts.keys() - set(self.names):
                        values.setdefault(name, []).append(outcome.parts[name])
        return {name: fmean(values[name]) for name in sorted(values)}

    @property
    def can_compare(self) -> bool:
        """Whether `judge_answers` may be asked often: the accuracy reward is isolated, one
        response at a time."""
        index = self.names.index(self.accuracy)
        reward = self._rewards[index]
        return self._settings[index].isolate and (reward is None or reward.style == "single")

    def judge_answers(self, items: Sequence[RewardCall]) -> list[Outcome]:
        """Judge each item with the accuracy reward alone; the score is under `accuracy`."""
        outcomes = self._run(self.names.index(self.accuracy), items)
        return [
            outcome
            if isinstance(outcome, ScoringFailure)
            else Verdict(outcome.score, outcome.reason, _parts(self.accuracy, outcome))
            for outcome in outcomes
        ]

    def _run(self, index: int, items: Sequence[RewardCall]) -> list[Outcome]:
        """Return the outcomes of one reward, in order."""
        reward = self._rewards[index]
        runner = self._walled if self._settings[index].isolate else self._here
        if reward is not None:
            return runner.run(reward, items)
        rows_of: dict[str, list[int]] = {}
        for row, item in enumerate(items):
            rows_of.setdefault(item.problem.verifier, []).append(row)
        outcomes: dict[int, Outcome] = {}
        for verifier, rows in rows_of.items():
            results = runner.run(self._verifier(index, verifier), [items[row] for row in rows])
            outcomes.update(zip(rows, results, strict=True))
        return [outcomes[row] for row in range(len(items))]

    def _verifier(self, index: int, name: str) -> Reward:
        if (index, name) not in self._of_problem:
            key = f"{self._key.format(index=index)} (problems with the verifier {name!r})"
            setting = self._settings[index]
            self._of_problem[index, name] = load_reward(
                name, setting.options, key=key, limits=_limits(setting)
            )
        return self._of_problem[index, name]

    def _state(self, version: int) -> TrainerState:
        return TrainerState(version, self._max_steps)

    def _add_up(self, outcomes: Sequence[Outcome]) -> Outcome:
        score: float | None = None
        parts: dict[str, float] = {}
        reasons: list[str] = []
        for name, setting, outcome in zip(self.names, self._settings, outcomes, strict=True):
            if isinstance(outcome, ScoringFailure):
                return ScoringFailure(outcome.kind, f"{name}: {outcome.detail}")
            if outcome.reason:
                reasons.append(
                    f"{name}: {outcome.reason}" if len(self.names) > 1 else outcome.reason
                )
            parts.update(_parts(name, outcome))
            if outcome.score is not None:
                score = (score or 0.0) + setting.weight * outcome.score
        if score is not None and not isfinite(score):
            return ScoringFailure(
                "exception", "the weighted sum of the rewards is too large for a number"
            )
        return Verdict(score, "; ".join(reasons), parts)


def _limits(setting: RewardSettings) -> RewardLimits:
    return RewardLimits(setting.seconds, setting.memory_mib)


def _parts(name: str, verdict: Verdict) -> Mapping[str, float]:
    """A reward's own score under its name, the parts it reports itself as `name.part`."""
    own = {} if verdict.score is None else {name: verdict.score}
    return {**own, **{f"{name}.{part}": value for part, value in verdict.parts.items()}}


def _unique(names: Sequence[str | None]) -> tuple[str, ...]:
    """The names, a number behind those that occurred before: length, length_2.

    None is `accuracy`, which no other reward is called.
    """
    counts: dict[str, int] = {ACCURACY: int(None in names)}
    unique = []
    for name in names:
        if name is None:
            unique.append(ACCURACY)
            continue
        counts[name] = counts.get(name, 0) + 1
        unique.append(name if counts[name] == 1 else f"{name}_{counts[name]}")
    return tuple(unique)
