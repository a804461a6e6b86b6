"""One step of reinforcement learning, in the order of the paper (arXiv 2501.12948, section 2)."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import torch

from r1lab.grpo.advantage import group_advantages
from r1lab.grpo.batch import SumOverProcesses, pack, split
from r1lab.grpo.policy import GradientStats, Policy
from r1lab.recipe import TrainRecipe
from r1lab.rollout.source import RolloutSource
from r1lab.types import Batch, Completion, Fault, RunStopped, Scored, Verdict
from r1lab.verify import Verifiers


@dataclass(frozen=True, slots=True)
class StepResult:
    """What a step leaves: this process's scored groups, figures over all processes, seconds."""

    scored: list[Scored]
    metrics: dict[str, float | None]
    seconds: dict[str, float]


def rl_step(
    policy: Policy,
    source: RolloutSource,
    verifiers: Verifiers,
    recipe: TrainRecipe,
    *,
    before_update: Callable[[list[Scored]], None] = lambda scored: None,
) -> StepResult:
    """Sample, score, weigh, update, hand the new weights to the sampler.

    `before_update` hears of the scored groups; up to it nothing has changed but the position of
    `source`.
    """
    clock = Clock()
    algorithm = recipe.algorithm
    with clock("rollout"):
        rollouts = source.next(policy.version)  # G completions of each question, o_i ~ pi_old
    with clock("reward"):
        scored = verifiers.score(rollouts)  # r_i, with a reason each
        check_faults(scored, recipe.max_fault_share, policy.sum_over_processes)
    before_update(scored)
    with clock("update"):
        advantages = group_advantages(scored, algorithm.advantage)  # A_i
        batch = pack(  # tokens, masks, one global denominator
            scored, advantages, loss=algorithm.loss, max_tokens=recipe.sampling.max_tokens,
            sum_over_processes=policy.sum_over_processes,
        )  # fmt: skip
        stats: list[GradientStats] = []
        updates: list[dict[str, float]] = []
        for minibatch in split(remember_old(policy, batch, recipe), algorithm.num_minibatches):
            stats.append(policy.gather_gradient(minibatch, algorithm))  # log-probs, loss, clip
            if len(stats) == 1:
                # The first gradient is taken under the very weights that sampled: agreement of
                # sampler and trainer is judged here, before anything is changed by it.
                rechecked = source.check_agreement(
                    stats[0].sync_kl, stats[0].num_tokens, policy.sampler_gap
                )
            updates.append(
                policy.apply_gradient(
                    has_gradient=stats[-1].num_sequences > 0,
                    loss=stats[-1].means["loss"],
                    max_skipped=algorithm.max_skipped,
                )
            )
        policy.version += 1
    with clock("sync"):
        source.sync(policy)  # exact weights
    metrics = {**summarise(scored, verifiers, policy), **update_metrics(stats), **updates[-1]}
    metrics["skipped"] = sum(update["skipped"] for update in updates)
    metrics["sync_kl_bound"] = source.guard.bound(stats[0].num_tokens)
    metrics["sync_kl_rechecked"] = rechecked
    return StepResult(scored, metrics, clock.seconds)


def check_faults(
    scored: Sequence[Scored], max_share: float, sum_over_processes: SumOverProcesses
) -> None:
    """Refuse a step whose rewards broke down for more than `max_share` of its responses.

    What is left of such a step is no fair sample: long answers time out first. Raises RunStopped,
    with what the first fault said.
    """
    outcomes = [outcome for group in scored for outcome in group.outcomes]
    faults = [outcome for outcome in outcomes if isinstance(outcome, Fault)]
    counts = torch.tensor([len(faults), len(outcomes)], dtype=torch.float64)
    num_faults, num_outcomes = sum_over_processes(counts).tolist()
    if num_faults > max_share * num_outcomes:
        said = f"{faults[0].kind}: {faults[0].detail}" if faults else "see the other processes"
        raise RunStopped(
            f"rewards broke down for {num_faults:.0f} of {num_outcomes:.0f} responses of a step "
            f"(max_fault_share: {max_share}); the first fault: {said}; try it alone with "
            "`r1lab verify`"
        )


def remember_old(policy: Policy, batch: Batch, recipe: TrainRecipe) -> Batch:
    """The batch with the trainer's log-probs before its first update, where there are several.

    With one update a step the ratio is 1 and the update's own forward serves.
    """
    if recipe.algorithm.num_minibatches == 1:
        return batch
    budget = recipe.algorithm.tokens_per_microbatch
    return replace(batch, logp_old=policy.completion_logprobs(batch, budget))


def update_metrics(stats: Sequence[GradientStats]) -> dict[str, float | None]:
    """Figures of the updates of a step: token-weighted means, the first update's agreement."""
    tokens = sum(s.means["tokens"] for s in stats)

    def mean(name: str) -> float:
        return sum(s.means[name] * s.means["tokens"] for s in stats) / max(tokens, 1.0)

    return {
        "loss": sum(s.means["loss"] for s in stats) / len(stats),
        "entropy": mean("entropy"),
        "clipped_low": mean("clipped_low"),
        "clipped_high": mean("clipped_high"),
        "gradient_tokens": tokens,
        "sync_kl": stats[0].sync_kl,
        "sync_kl_uncapped": stats[0].sync_kl_uncapped,
        "sync_kl_tokens": float(stats[0].num_tokens),
    }


def summarise(
    scored: Sequence[Scored], verifiers: Verifiers, policy: Policy
) -> dict[str, float | None]:
    """Figures of the rollouts of all processes: reward, its parts, lengths, truncation, variance.

    Lengths count sampled tokens, the end of sequence included; `length_right` and `length_wrong`
    are None where there is no such response.
    """
    names = [*verifiers.names]
    keys = ("responses", "faults", "scored", "reward", "length", "truncated", "unanswered",
            "right", "length_right", "length_wrong", "groups", "zero_variance",
            *(f"part/{name}" for name in names), *(f"count/{name}" for name in names))  # fmt: skip
    sums = dict.fromkeys(keys, 0.0)
    for group in scored:
        _add_group(sums, group, verifiers)
    reduced = policy.sum_over_processes(torch.tensor([sums[key] for key in keys]).double())
    total = dict(zip(keys, reduced.tolist(), strict=True))

    def share(name: str, of: str) -> float | None:
        return total[name] / total[of] if total[of] else None

    total["wrong"] = total["scored"] - total["right"]
    return {
        "reward": share("reward", "scored"),
        **{
            figure: share(f"part/{name}", f"count/{name}")
            for name, figure in zip(names, verifiers.figures, strict=True)
        },
        "length": share("length", "responses"),
        "length_right": share("length_right", "right"),
        "length_wrong": share("length_wrong", "wrong"),
        "truncated": share("truncated", "responses"),
        "unanswered": share("unanswered", "responses"),
        "zero_variance": share("zero_variance", "groups"),
        "faults": total["faults"],
        "responses": total["responses"],
    }


def _add_group(sums: dict[str, float], group: Scored, verifiers: Verifiers) -> None:
    rewards = []
    for completion, outcome in zip(group.rollout.completions, group.outcomes, strict=True):
        sums["responses"] += 1
        sums["length"] += len(completion.token_ids)
        sums["truncated"] += completion.finish_reason == "length"
        sums["unanswered"] += completion.answer is None
        if isinstance(outcome, Fault):
            sums["faults"] += 1
        elif outcome.score is not None:
            rewards.append(outcome.score)
            _add_verdict(sums, completion, outcome, verifiers)
    sums["groups"] += 1
    sums["zero_variance"] += len(set(rewards)) <= 1


def _add_verdict(
    sums: dict[str, float], completion: Completion, verdict: Verdict, verifiers: Verifiers
) -> None:
    right = verdict.parts.get(verifiers.accuracy, 0.0) >= 1.0
    sums["scored"] += 1
    sums["reward"] += verdict.score or 0.0
    sums["right"] += right
    sums["length_right" if right else "length_wrong"] += len(completion.token_ids)
    for name in verifiers.names:
        if name in verdict.parts:
            sums[f"part/{name}"] += verdict.parts[name]
            sums[f"count/{name}"] += 1


@dataclass
class Clock:
    """Seconds by phase: `with clock("rollout"): ...`."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self.seconds[phase] = self.seconds.get(phase, 0.0) + time.perf_counter() - began
