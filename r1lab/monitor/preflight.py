"""Can a run learn? What a few groups of samples say before anything has been trained on.

Pure: judged samples in, a verdict with its points out. The same verdict is asked for by
`r1lab train --preflight` and, of the samples of its first evaluation, at the start of every run.

A point *fails* where nothing can be learnt whatever the number of steps (no reward differs within a
group, no answer, no end), and *warns* where it was seen that a run goes on and learns something
else (docs/experiments.md, "What a sick run looks like").
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean, pstdev
from typing import Any, Literal

from r1lab.evaluate.estimators import pass_at_k
from r1lab.rollout.agreement import HIGHEST_FLOOR, advice
from r1lab.types import ScoredGroup, ScoringFailure, Verdict

CheckLevel = Literal["ok", "warning", "failed"]
MetricValues = Mapping[str, float | None]

# Truncated at the start: with .36 to .53 the quickstart went on for 30 steps and learnt to be short
# (accuracy .2 to .4 where it is .8 with room to think); at .9 hardly a response is rewarded at all.
_MANY_TRUNCATED, _ALL_TRUNCATED = 0.25, 0.9
# Responses without one of a kind before that is more than chance: it is then rarer than one in
# twenty (95%). The small evaluations of a trial run only warn.
_ENOUGH = 64
# The shipped bases answer in 0.7 to 0.8 of their samples; at one in twenty the form alone is learnt
# for a long while.
_FEW_ANSWERS = 0.05
# Shares of groups: above, most of every step's sampling is thrown away.
_MUCH_WITHOUT_VARIANCE = 0.8
_FEW_GROUPS_TEACH = 0.1
# Dividing by a standard deviation this small makes a step of rounding.
_NARROW = 0.01
_SOME_FAULTS = 0.01


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at: what was found, and what to change where it is not ok."""

    name: str
    level: CheckLevel
    found: str
    change: str = ""


@dataclass(frozen=True, slots=True)
class PreflightLimits:
    """The recipe's figures that the points speak of."""

    max_tokens: int
    max_model_len: int | None = None
    max_fault_share: float = 0.5


@dataclass(frozen=True, slots=True)
class BaselineAgreement:
    """k3 estimate of KL(sampler, trainer) over some tokens; None where there were none.

    `bound` is the most that a run accepts, `advice` what to do above it.
    """

    kl: float | None
    num_tokens: int
    bound: float = HIGHEST_FLOOR
    advice: str = advice("vllm", "bfloat16")


@dataclass(frozen=True, slots=True)
class Prospects:
    """Whether a run can learn, point by point, with the figures behind it."""

    figures: MetricValues
    points: tuple[Check, ...]

    @property
    def can_learn(self) -> bool:
        """Whether no point failed."""
        return all(point.level != "failed" for point in self.points)

    @property
    def faulty(self) -> tuple[Check, ...]:
        """The points that failed, then those that warn."""
        return tuple(
            point
            for level in ("failed", "warning")
            for point in self.points
            if point.level == level
        )

    @property
    def verdict(self) -> str:
        """The verdict in a line."""
        if not self.faulty:
            return "this run can learn"
        if self.can_learn:
            names = ", ".join(point.name for point in self.faulty)
            return f"this run can learn, with reservations: {names}"
        failed = ", ".join(point.name for point in self.faulty if point.level == "failed")
        return f"this run cannot learn: {failed}"

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "can_learn": self.can_learn,
            "verdict": self.verdict,
            "points": [asdict(point) for point in self.points],
            "figures": dict(self.figures),
        }


def judge_prospects(
    scored: Sequence[ScoredGroup],
    *,
    accuracy: str,
    limits: PreflightLimits,
    agreement: BaselineAgreement | None = None,
) -> Prospects:
    """The verdict on some groups sampled under the base's weights.

    `accuracy` is the part of a verdict that tells right (1) from wrong. Points of which the samples
    say nothing (variance with one sample a group) are left out. Raises ValueError without samples.
    """
    figures = figures_of(scored, accuracy)
    if agreement is not None:
        figures["sync_kl"] = agreement.kl
    points = [
        _ends(figures, limits),
        _answers(figures),
        _rewards(figures, limits),
        _variance(figures),
        _right_and_wrong(figures),
        _prompts(figures, limits),
        _agreement(agreement),
    ]
    return Prospects(figures, tuple(point for point in points if point is not None))


def figures_of(scored: Sequence[ScoredGroup], accuracy: str) -> dict[str, float | None]:
    """Shares, means and pass@k of judged groups; None where there was nothing to count.

    spread      mean over groups of the standard deviation of their rewards
    split       share of groups in which the accuracy part differs
    answered_on share of the truncated responses that had already answered
    """
    completions = [c for group in scored for c in group.rollout.completions]
    if not completions:
        raise ValueError("no samples: nothing to judge")
    cut = [c for c in completions if c.finish_reason == "length"]
    outcomes = [outcome for group in scored for outcome in group.outcomes]
    groups = [rewards for group in scored if len(rewards := _rewards_of(group)) > 1]
    parts = [found for group in scored if (found := _parts_of(group, accuracy))]
    several = [found for found in parts if len(found) > 1]
    prompts = [len(group.rollout.prompt_token_ids) for group in scored]
    rewards = [reward for group in scored for reward in _rewards_of(group)]
    figures: dict[str, float | None] = {
        "groups": float(len(scored)),
        "responses": float(len(completions)),
        "truncated": len(cut) / len(completions),
        "ended": _share([c.finish_reason == "stop" for c in completions]),
        "answered_on": _share([c.answer is not None for c in cut]),
        "answered": _share([c.answer is not None for c in completions]),
        "length": fmean(len(c.token_ids) for c in completions),
        "faults": _share([isinstance(outcome, ScoringFailure) for outcome in outcomes]),
        "reward": fmean(rewards) if rewards else None,
        "spread": fmean(map(pstdev, groups)) if groups else None,
        "zero_variance": _share([len(set(group)) == 1 for group in groups]),
        "split": _share([len(set(found)) > 1 for found in several]),
        "accuracy": fmean(fmean(found) for found in parts) if parts else None,
        "prompt_shortest": float(min(prompts)),
        "prompt_mean": fmean(prompts),
        "prompt_longest": float(max(prompts)),
    }
    return {**figures, **_pass_at_k(parts)}


def _pass_at_k(parts: Sequence[Sequence[float]]) -> dict[str, float]:
    """pass@k of the base by powers of two, over groups with k judged samples."""
    most = max((len(found) for found in parts), default=0)
    rows = {
        k: [
            pass_at_k(len(found), sum(part >= 1 for part in found), k)
            for found in parts
            if len(found) >= k
        ]
        for k in (2**i for i in range(most.bit_length()))
    }
    return {f"pass_at_{k}": fmean(row) for k, row in rows.items()}


def _rewards_of(group: ScoredGroup) -> list[float]:
    return [
        outcome.score
        for outcome in group.outcomes
        if isinstance(outcome, Verdict) and outcome.score is not None
    ]


def _parts_of(group: ScoredGroup, accuracy: str) -> list[float]:
    return [
        outcome.parts[accuracy]
        for outcome in group.outcomes
        if isinstance(outcome, Verdict) and accuracy in outcome.parts
    ]


def _share(flags: Sequence[bool]) -> float | None:
    return sum(flags) / len(flags) if flags else None


# --- the points ------------------------------------------------------------------------------


def _ends(figures: MetricValues, limits: PreflightLimits) -> Check:
    cut, ended = figures["truncated"] or 0.0, figures["ended"] or 0.0
    found = (
        f"{cut:.0%} of the responses are cut off at {limits.max_tokens} tokens (mean length "
        f"{figures['length']:.1f}), {ended:.0%} end by themselves"
    )
    if ended and cut < _MANY_TRUNCATED:
        return Check("ends", "ok", found)
    if (figures["answered_on"] or 0.0) > 0.5:
        change = (
            "most of those cut off had answered and went on: the base does not know its "
            "end-of-sequence token, or its tokenizer names another one; look at eos_token in "
            "model.path, or take a base that ends"
        )
    else:
        change = f"raise sampling.max_tokens (now {limits.max_tokens})"
    failed = (not ended or cut >= _ALL_TRUNCATED) and _is_enough(figures)
    return Check("ends", "failed" if failed else "warning", found, change)


def _answers(figures: MetricValues) -> Check:
    answered = figures["answered"] or 0.0
    found = f"{answered:.0%} of the responses hold an answer that can be read"
    change = (
        "the base does not write the form that `template` asks for: take a template that it knows, "
        "a base that has seen the form, or more of sampling.max_tokens if responses are cut off"
    )
    if not answered and _is_enough(figures):
        return Check("answers", "failed", found, change)
    if answered < _FEW_ANSWERS:
        return Check("answers", "warning", found, change)
    return Check("answers", "ok", found)


def _rewards(figures: MetricValues, limits: PreflightLimits) -> Check:
    faults = figures["faults"] or 0.0
    found = f"{faults:.1%} of the responses made a reward break down"
    if faults <= _SOME_FAULTS:
        return Check("rewards", "ok", found)
    change = "try the rewards alone with `r1lab verify`; raise rewards.*.seconds or memory_mib"
    failed = faults > limits.max_fault_share  # a run stops there
    return Check("rewards", "failed" if failed else "warning", found, change)


def _variance(figures: MetricValues) -> Check | None:
    flat, spread = figures["zero_variance"], figures["spread"]
    if flat is None or spread is None:
        return None
    found = (
        f"in {flat:.0%} of {figures['groups']:.0f} groups all rewards are equal; rewards spread by "
        f"{spread:.3g} within a group (mean {figures['reward']:.3g})"
    )
    if flat == 1.0 and _is_enough(figures):
        return Check("variance", "failed", found, f"nothing can be learnt: {_easier(figures)}")
    if flat > _MUCH_WITHOUT_VARIANCE:
        return Check("variance", "warning", found, _easier(figures))
    if spread < _NARROW:
        change = (
            "raise the weight of the rewards that differ, or take algorithm.advantage: mean_only"
        )
        return Check("variance", "warning", found, change)
    return Check("variance", "ok", found)


def _right_and_wrong(figures: MetricValues) -> Check | None:
    split = figures["split"]
    if split is None:
        return None
    at_k = ", ".join(
        f"pass@{name.removeprefix('pass_at_')} {value:.2f}"
        for name, value in figures.items()
        if name.startswith("pass_at_") and value is not None
    )
    found = f"right and wrong answers stand beside each other in {split:.0%} of the groups; {at_k}"
    if not split and _is_enough(figures):
        change = f"only the other rewards can be learnt: {_easier(figures)}"
        return Check("accuracy", "failed", found, change)
    if split < _FEW_GROUPS_TEACH:
        return Check("accuracy", "warning", found, f"few groups teach: {_easier(figures)}")
    return Check("accuracy", "ok", found)


def _is_enough(figures: MetricValues) -> bool:
    return (figures["responses"] or 0.0) >= _ENOUGH


def _easier(figures: MetricValues) -> str:
    """What to change where groups do not differ: too hard, or too easy."""
    if (figures["accuracy"] or 0.0) > 0.5:
        return "the base knows the answers: take harder problems.sources"
    return (
        "check the reward (r1lab verify), take easier problems.sources or a stronger model.path, "
        "raise sampling.group_size or sampling.temperature"
    )


def _prompts(figures: MetricValues, limits: PreflightLimits) -> Check:
    longest = int(figures["prompt_longest"] or 0)
    found = (
        f"prompts have {figures['prompt_shortest']:.0f} to {longest} tokens (mean "
        f"{figures['prompt_mean']:.1f})"
    )
    if limits.max_model_len is None:
        return Check("prompts", "ok", found)
    found += f", room for {limits.max_model_len - limits.max_tokens}"
    if longest + limits.max_tokens <= limits.max_model_len:
        return Check("prompts", "ok", found)
    change = f"raise sampling.max_model_len to {longest + limits.max_tokens} at least"
    return Check("prompts", "failed", found, change)


def _agreement(agreement: BaselineAgreement | None) -> Check | None:
    if agreement is None or agreement.kl is None:
        return None
    found = (
        f"KL(sampler, trainer) is {agreement.kl:.2g} nats a token over {agreement.num_tokens} "
        f"tokens; a run accepts {agreement.bound:.2g} at most"
    )
    if agreement.kl <= agreement.bound:  # a NaN fails
        return Check("agreement", "ok", found)
    change = f"the sampler does not compute what would be trained: {agreement.advice}"
    return Check("agreement", "failed", found, change)
