"""Judge from a few groups of samples, before any training, whether a run can learn.

Pure functions from judged samples to a verdict with its checks. `r1lab train --preflight` uses
them, and so does every run at its start, on the samples of its first evaluation.

A check *fails* if nothing can be learnt in any number of steps (no reward differs within a group,
no answer, no end). It *warns* about conditions under which runs were seen to continue but learn
something else (docs/experiments.md, "What a sick run looks like").
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

# Truncated share at the start: with .36 to .53 the quickstart ran for 30 steps and learnt to be
# short (accuracy .2 to .4, against .8 with room to think); at .9 hardly a response is rewarded.
_MANY_TRUNCATED, _ALL_TRUNCATED = 0.25, 0.9
# Number of responses without any of a kind that shows it is rarer than one in twenty (at 95%).
# The smaller evaluations of a trial run only warn.
_ENOUGH = 64
# The shipped bases answer in 0.7 to 0.8 of their samples; at one in twenty a run learns only the
# format for a long time.
_FEW_ANSWERS = 0.05
# Share of groups; above it most of every step's samples are wasted.
_MUCH_WITHOUT_VARIANCE = 0.8
_FEW_GROUPS_TEACH = 0.1
# Dividing by a standard deviation this small amplifies rounding errors.
_NARROW = 0.01
_SOME_FAULTS = 0.01


@dataclass(frozen=True, slots=True)
class Check:
    """One check: its result, and what to change if it is not ok."""

    name: str
    level: CheckLevel
    found: str
    change: str = ""


@dataclass(frozen=True, slots=True)
class PreflightLimits:
    """The recipe's limits that the checks refer to."""

    max_tokens: int
    max_model_len: int | None = None
    max_fault_share: float = 0.5


@dataclass(frozen=True, slots=True)
class BaselineAgreement:
    """k3 estimate of KL(sampler, trainer) over some tokens; None without tokens.

    `bound` is the largest value that a run accepts, `advice` what to do above it.
    """

    kl: float | None
    num_tokens: int
    bound: float = HIGHEST_FLOOR
    advice: str = advice("vllm", "bfloat16")


@dataclass(frozen=True, slots=True)
class Prospects:
    """Whether a run can learn: the checks and the metrics they are based on."""

    figures: MetricValues
    points: tuple[Check, ...]

    @property
    def can_learn(self) -> bool:
        """Whether no check failed."""
        return all(point.level != "failed" for point in self.points)

    @property
    def faulty(self) -> tuple[Check, ...]:
        """The checks that failed, then those that warn."""
        return tuple(
            point
            for level in ("failed", "warning")
            for point in self.points
            if point.level == level
        )

    @property
    def verdict(self) -> str:
        """The verdict in one line."""
        if not self.faulty:
            return "this run can learn"
        if self.can_learn:
            names = ", ".join(point.name for point in self.faulty)
            return f"this run can learn, with reservations: {names}"
        failed = ", ".join(point.name for point in self.faulty if point.level == "failed")
        return f"this run cannot learn: {failed}"

    def as_dict(self) -> dict[str, Any]:
        """Return plain values, for JSON."""
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
    """Judge a run by some groups sampled under the base's weights.

    `accuracy` is the component of a verdict that separates right (1) from wrong. Checks that the
    samples cannot decide (variance with one sample per group) are left out. Raises ValueError
    without samples.
    """
    metrics = figures_of(scored, accuracy)
    if agreement is not None:
        metrics["sync_kl"] = agreement.kl
    points = [
        _ends(metrics, limits),
        _answers(metrics),
        _rewards(metrics, limits),
        _variance(metrics),
        _right_and_wrong(metrics),
        _prompts(metrics, limits),
        _agreement(agreement),
    ]
    return Prospects(metrics, tuple(point for point in points if point is not None))


def figures_of(scored: Sequence[ScoredGroup], accuracy: str) -> dict[str, float | None]:
    """Return shares, means and pass@k of judged groups; None if there was nothing to count.

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
    parts = [of_group for group in scored if (of_group := _parts_of(group, accuracy))]
    several = [of_group for of_group in parts if len(of_group) > 1]
    prompts = [len(group.rollout.prompt_token_ids) for group in scored]
    rewards = [reward for group in scored for reward in _rewards_of(group)]
    metrics: dict[str, float | None] = {
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
        "split": _share([len(set(of_group)) > 1 for of_group in several]),
        "accuracy": fmean(fmean(of_group) for of_group in parts) if parts else None,
        "prompt_shortest": float(min(prompts)),
        "prompt_mean": fmean(prompts),
        "prompt_longest": float(max(prompts)),
    }
    return {**metrics, **_pass_at_k(parts)}


def _pass_at_k(parts: Sequence[Sequence[float]]) -> dict[str, float]:
    """pass@k of the base by powers of two, over groups with k judged samples."""
    most = max((len(of_group) for of_group in parts), default=0)
    rows = {
        k: [
            pass_at_k(len(of_group), sum(part >= 1 for part in of_group), k)
            for of_group in parts
            if len(of_group) >= k
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


# --- the checks ------------------------------------------------------------------------------


def _ends(metrics: MetricValues, limits: PreflightLimits) -> Check:
    cut, ended = metrics["truncated"] or 0.0, metrics["ended"] or 0.0
    message = (
        f"{cut:.0%} of the responses are cut off at {limits.max_tokens} tokens (mean length "
        f"{metrics['length']:.1f}), {ended:.0%} end by themselves"
    )
    if ended and cut < _MANY_TRUNCATED:
        return Check("ends", "ok", message)
    if (metrics["answered_on"] or 0.0) > 0.5:
        change = (
            "most of those cut off had answered but did not stop: the base does not know its "
            "end-of-sequence token, or its tokenizer names another one; check eos_token in "
            "model.path, or use a base that ends its responses"
        )
    else:
        change = f"raise sampling.max_tokens (now {limits.max_tokens})"
    failed = (not ended or cut >= _ALL_TRUNCATED) and _is_enough(metrics)
    return Check("ends", "failed" if failed else "warning", message, change)


def _answers(metrics: MetricValues) -> Check:
    answered = metrics["answered"] or 0.0
    message = f"{answered:.0%} of the responses contain a readable answer"
    change = (
        "the base does not write the format of `template`: use a template that it knows or a base "
        "that has seen the format, or raise sampling.max_tokens if responses are cut off"
    )
    if not answered and _is_enough(metrics):
        return Check("answers", "failed", message, change)
    if answered < _FEW_ANSWERS:
        return Check("answers", "warning", message, change)
    return Check("answers", "ok", message)


def _rewards(metrics: MetricValues, limits: PreflightLimits) -> Check:
    faults = metrics["faults"] or 0.0
    message = f"{faults:.1%} of the responses made a reward fail"
    if faults <= _SOME_FAULTS:
        return Check("rewards", "ok", message)
    change = "test the rewards with `r1lab verify`; raise rewards.*.seconds or memory_mib"
    failed = faults > limits.max_fault_share  # a run stops above this share
    return Check("rewards", "failed" if failed else "warning", message, change)


def _variance(metrics: MetricValues) -> Check | None:
    flat, spread = metrics["zero_variance"], metrics["spread"]
    if flat is None or spread is None:
        return None
    message = (
        f"in {flat:.0%} of {metrics['groups']:.0f} groups all rewards are equal; rewards vary by "
        f"{spread:.3g} within a group (mean {metrics['reward']:.3g})"
    )
    if flat == 1.0 and _is_enough(metrics):
        return Check("variance", "failed", message, f"nothing can be learnt: {_easier(metrics)}")
    if flat > _MUCH_WITHOUT_VARIANCE:
        return Check("variance", "warning", message, _easier(metrics))
    if spread < _NARROW:
        change = (
            "raise the weight of the rewards that differ, or set algorithm.advantage: mean_only"
        )
        return Check("variance", "warning", message, change)
    return Check("variance", "ok", message)


def _right_and_wrong(metrics: MetricValues) -> Check | None:
    split = metrics["split"]
    if split is None:
        return None
    at_k = ", ".join(
        f"pass@{name.removeprefix('pass_at_')} {value:.2f}"
        for name, value in metrics.items()
        if name.startswith("pass_at_") and value is not None
    )
    message = f"{split:.0%} of the groups have both right and wrong answers; {at_k}"
    if not split and _is_enough(metrics):
        change = f"only the other rewards can be learnt: {_easier(metrics)}"
        return Check("accuracy", "failed", message, change)
    if split < _FEW_GROUPS_TEACH:
        return Check(
            "accuracy", "warning", message, f"few groups give a signal: {_easier(metrics)}"
        )
    return Check("accuracy", "ok", message)


def _is_enough(metrics: MetricValues) -> bool:
    return (metrics["responses"] or 0.0) >= _ENOUGH


def _easier(metrics: MetricValues) -> str:
    """Return what to change if rewards do not differ: too hard, or too easy."""
    if (metrics["accuracy"] or 0.0) > 0.5:
        return "the base knows the answers: use harder problems.sources"
    return (
        "check the reward (r1lab verify), use easier problems.sources or a stronger model.path, "
        "raise sampling.group_size or sampling.temperature"
    )


def _prompts(metrics: MetricValues, limits: PreflightLimits) -> Check:
    longest = int(metrics["prompt_longest"] or 0)
    message = (
        f"prompts have {metrics['prompt_shortest']:.0f} to {longest} tokens (mean "
        f"{metrics['prompt_mean']:.1f})"
    )
    if limits.max_model_len is None:
        return Check("prompts", "ok", message)
    message += f", room for {limits.max_model_len - limits.max_tokens}"
    if longest + limits.max_tokens <= limits.max_model_len:
        return Check("prompts", "ok", message)
    change = f"raise sampling.max_model_len to at least {longest + limits.max_tokens}"
    return Check("prompts", "failed", message, change)


def _agreement(agreement: BaselineAgreement | None) -> Check | None:
    if agreement is None or agreement.kl is None:
        return None
    message = (
        f"KL(sampler, trainer) is {agreement.kl:.2g} nats per token over {agreement.num_tokens} "
        f"tokens; a run accepts at most {agreement.bound:.2g}"
    )
    if agreement.kl <= agreement.bound:  # a NaN fails
        return Check("agreement", "ok", message)
    change = f"the sampler computes another model than the trainer: {agreement.advice}"
    return Check("agreement", "failed", message, change)
