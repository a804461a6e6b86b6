"""One step of reinforcement learning, in the order of the paper (arXiv 2501.12948, section 2)."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import fmean

import torch

from r1lab.config.recipe import AlgorithmSettings, TrainRecipe
from r1lab.grpo.advantage import Total, group_advantages
from r1lab.grpo.batch import AllReduceSum, is_in_loss, pack, split, without_zero_advantage
from r1lab.grpo.dynamic_sampling import Collected, refill
from r1lab.grpo.loss import find_loss
from r1lab.grpo.policy import GradientStats, Policy
from r1lab.rollout.source import RolloutSource, SyncAgreement
from r1lab.types import Batch, Completion, RunStopped, ScoredGroup, ScoringFailure, Verdict
from r1lab.verify import Verifiers

_LONGEST_LAG = 32  # steps; recipes allow less


@dataclass(frozen=True, slots=True)
class StepResult:
    """Result of one step: this process's groups, metrics over all processes, seconds by phase.

    scored        the groups sampled in this step, in the order they were requested
    carried_over  the groups sampled in an earlier step and trained on in this one
    advantages    for each group of `scored`, then of `carried_over`: the advantage of each
                  completion; None for a completion, or a whole group, that is not in the loss
    """

    scored: list[ScoredGroup]
    carried_over: list[ScoredGroup]
    advantages: list[list[float | None]]
    metrics: dict[str, float | None]
    seconds: dict[str, float]


def rl_step(
    policy: Policy,
    source: RolloutSource,
    verifiers: Verifiers,
    recipe: TrainRecipe,
    *,
    before_update: Callable[[list[ScoredGroup]], None] = lambda scored: None,
) -> StepResult:
    """Sample, score, update, and send the new weights to the sampler.

    `before_update` gets the scored groups. Until then only the position of `source` has changed.
    """
    clock, algorithm = Clock(), recipe.algorithm
    collected = collect(source, verifiers, policy.version, algorithm, clock)  # o_i ~ pi_old; r_i
    check_faults(collected.judged, recipe.max_fault_share, policy.all_reduce_sum)
    before_update(collected.judged)
    with clock("update"):
        source.waiting = collected.waiting
        advantages = compute_advantages(collected.groups, algorithm, policy)  # A_i
        batch = pack_groups(collected.groups, advantages, recipe, policy)  # one denominator
        batch = policy.with_old_and_ref_logprobs(batch, algorithm)
        updates = update_policy(policy, source, minibatches(policy, batch, recipe), algorithm)
    with clock("sync"):
        source.sync(policy)  # exact weights
    carried_over, trained = trained_advantages(collected, advantages, algorithm.overlong_filter)
    metrics = step_metrics(collected, updates, source, verifiers, policy, algorithm)
    return StepResult(collected.judged, carried_over, trained, metrics, clock.seconds)


@dataclass(frozen=True, slots=True)
class Updates:
    """The updates of a step, in order: gradients, what the optimiser reports, agreement."""

    gradients: list[GradientStats]
    optimizer: list[dict[str, float]]
    agreement: SyncAgreement


def compute_advantages(
    groups: Sequence[ScoredGroup], algorithm: AlgorithmSettings, policy: Policy
) -> list[list[float | None]]:
    """The advantages of this process's groups, with statistics over all processes."""
    total = all_reduce_sum_of(policy.all_reduce_sum)
    return group_advantages(groups, algorithm.advantage, total=total)


def pack_groups(
    groups: Sequence[ScoredGroup],
    advantages: Sequence[Sequence[float | None]],
    recipe: TrainRecipe,
    policy: Policy,
) -> Batch:
    """Tokens, masks and the denominator that all processes and micro-batches share."""
    algorithm = recipe.algorithm
    return pack(
        groups, advantages, loss=algorithm.loss, version=policy.version,
        max_tokens=recipe.sampling.max_tokens_after(policy.version),
        overlong_filter=algorithm.overlong_filter,
        drop_zero_advantage=not keeps_zero_advantage(algorithm),
        all_reduce_sum=policy.all_reduce_sum,
    )  # fmt: skip


def update_policy(
    policy: Policy, source: RolloutSource, parts: Iterable[Batch], algorithm: AlgorithmSettings
) -> Updates:
    """Take one optimiser update for each part of the batch; then the policy has a new version."""
    gradients: list[GradientStats] = []
    reports: list[dict[str, float]] = []
    for part in parts:
        gradient = policy.forward_backward(part, algorithm)  # log-probs, loss, clip
        if not gradients:
            # The first gradient is taken with the weights that the sampler holds, so the two must
            # agree. This is checked here, before any update changes the weights.
            agreement = source.check_agreement(
                gradient.sync_kl, gradient.num_tokens, policy.sampler_mismatch
            )
        gradients.append(gradient)
        reports.append(
            policy.optimizer_step(
                has_gradient=gradient.num_sequences > 0,
                loss=gradient.means["loss"],
                max_skipped=algorithm.max_skipped,
                router_bias_speed=algorithm.router_bias_speed,
            )
        )
    policy.advance_version(algorithm.reference_every)
    return Updates(gradients, reports, agreement)


def step_metrics(
    collected: Collected,
    updates: Updates,
    source: RolloutSource,
    verifiers: Verifiers,
    policy: Policy,
    algorithm: AlgorithmSettings,
) -> dict[str, float | None]:
    """All metrics of a step, over all processes. A new one is added where it is computed."""
    agreement = updates.agreement
    return {
        **summarise(collected, verifiers, policy),
        **update_metrics(updates.gradients, algorithm),
        **optimizer_metrics(updates.gradients, updates.optimizer),
        **observe_levels(collected, source, verifiers, policy),
        "sync_kl": agreement.kl,
        "sync_kl_tokens": float(agreement.num_tokens),
        "sync_kl_bound": source.guard.bound(agreement.num_tokens),
        "sync_kl_rechecked": agreement.rechecked,
    }


def trained_advantages(
    collected: Collected, advantages: Sequence[list[float | None]], overlong_filter: bool
) -> tuple[list[ScoredGroup], list[list[float | None]]]:
    """Return (groups carried over from an earlier step, `StepResult.advantages`).

    `advantages` holds those of `collected.groups`.
    """
    sampled = {id(group) for group in collected.judged}
    carried_over = [group for group in collected.groups if id(group) not in sampled]
    used = {
        id(group): [
            advantage if is_in_loss(completion, overlong_filter=overlong_filter) else None
            for completion, advantage in zip(group.rollout.completions, of_group, strict=True)
        ]
        for group, of_group in zip(collected.groups, advantages, strict=True)
    }
    return carried_over, [
        used.get(id(group), [None] * len(group.outcomes))
        for group in (*collected.judged, *carried_over)
    ]


def collect(
    source: RolloutSource,
    verifiers: Verifiers,
    version: int,
    algorithm: AlgorithmSettings,
    clock: Clock,
) -> Collected:
    """Sample G completions of each prompt of the step and score them, each with a reason."""
    one_way = collect_informative if algorithm.dynamic_sampling else collect_all
    return one_way(source, verifiers, version, algorithm, clock)


def collect_all(
    source: RolloutSource,
    verifiers: Verifiers,
    version: int,
    algorithm: AlgorithmSettings,
    clock: Clock,
) -> Collected:
    """Sample and score the step's prompts once, without resampling."""
    with clock("rollout"):
        rollouts = source.next(version)
    with clock("reward"):
        scored = verifiers.score(rollouts)
    return Collected(scored, (), scored)


def collect_informative(
    source: RolloutSource,
    verifiers: Verifiers,
    version: int,
    algorithm: AlgorithmSettings,
    clock: Clock,
) -> Collected:
    """Dynamic sampling: score groups as they finish and resample uninformative ones meanwhile.

    Each process does this independently; none waits for another.
    """
    with clock("rollout"):
        stream = source.stream(version)

    def ask(count: int) -> None:
        with clock("rollout"):
            stream.ask(count)

    def finished() -> dict[int, ScoredGroup]:
        with clock("rollout"):
            rollouts = stream.finished()
        with clock("reward"):
            return dict(zip(rollouts, verifiers.score([*rollouts.values()]), strict=True))

    return refill(
        source.waiting, ask, finished, wanted=source.share, max_refills=algorithm.max_refills
    )


def keeps_zero_advantage(algorithm: AlgorithmSettings) -> bool:
    """Return whether sequences with zero advantage take part in the step.

    With a KL term they carry gradient; in `bnpo` their tokens count in each mini-batch.
    """
    return algorithm.kl_coefficient > 0 or normalizes_per_minibatch(algorithm)


def normalizes_per_minibatch(algorithm: AlgorithmSettings) -> bool:
    """Return whether each mini-batch has its own denominator, as in `bnpo`."""
    return find_loss(algorithm.loss).aggregation == "minibatch_token_mean"


def minibatches(policy: Policy, batch: Batch, recipe: TrainRecipe) -> Iterator[Batch]:
    """Yield the batch of each update: the whole batch, or random parts of it, in every epoch.

    The split depends only on the recipe's seed, the step and the epoch.
    """
    algorithm = recipe.algorithm
    for epoch in range(algorithm.num_epochs):
        generator = None
        if algorithm.num_minibatches > 1:
            seed = (recipe.seed * 1_000_003 + policy.version) * 1_009 + epoch
            generator = torch.Generator().manual_seed(seed % 2**63)
        for part in split(
            batch, algorithm.num_minibatches, generator,
            own_denominators=normalizes_per_minibatch(algorithm),
            all_reduce_sum=policy.all_reduce_sum,
        ):  # fmt: skip
            yield part if algorithm.kl_coefficient else without_zero_advantage(part)


def all_reduce_sum_of(all_reduce_sum: AllReduceSum) -> Total:
    """Wrap `all_reduce_sum` for plain numbers."""
    return lambda numbers: all_reduce_sum(torch.tensor(numbers, dtype=torch.float64)).tolist()


def check_faults(
    scored: Sequence[ScoredGroup], max_share: float, all_reduce_sum: AllReduceSum
) -> None:
    """Reject a step in which scoring failed for more than `max_share` of its responses.

    The remaining responses would be a biased sample: long answers time out first. Raises RunStopped
    with the message of the first failure.
    """
    outcomes = [outcome for group in scored for outcome in group.outcomes]
    faults = [outcome for outcome in outcomes if isinstance(outcome, ScoringFailure)]
    counts = torch.tensor([len(faults), len(outcomes)], dtype=torch.float64)
    num_faults, num_outcomes = all_reduce_sum(counts).tolist()
    if num_faults > max_share * num_outcomes:
        cause = f"{faults[0].kind}: {faults[0].detail}" if faults else "see the other processes"
        raise RunStopped(
            f"max_fault_share: rewards failed for {num_faults:.0f} of {num_outcomes:.0f} responses "
            f"of a step, more than {max_share}; first failure: {cause}; reproduce it with "
            "`r1lab verify`"
        )


def update_metrics(
    stats: Sequence[GradientStats], algorithm: AlgorithmSettings
) -> dict[str, float | None]:
    """Return the metrics of the step's updates: token-weighted means.

    The agreement with the sampler is that of the first update. A metric is None if it does not
    apply: no reference, no importance correction.
    """
    tokens = sum(s.means["tokens"] for s in stats)

    def mean(name: str) -> float:
        return sum(s.means[name] * s.means["tokens"] for s in stats) / max(tokens, 1.0)

    corrected = algorithm.correction != "none"
    return {
        "loss": sum(s.means["loss"] for s in stats) / len(stats),
        "entropy": mean("entropy"),
        "clipped_low": mean("clipped_low"),
        "clipped_high": mean("clipped_high"),
        "kl_old": mean("kl_old"),
        "kl_ref": mean("kl_ref") if algorithm.kl_coefficient else None,
        "correction": mean("correction") if corrected else None,
        "correction_cut": mean("correction_cut") if corrected else None,
        "gradient_tokens": tokens,
        "sync_kl_uncapped": stats[0].sync_kl_uncapped,
    }


def optimizer_metrics(
    stats: Sequence[GradientStats], updates: Sequence[dict[str, float]]
) -> dict[str, float | None]:
    """Return gradient norm and learning rate, averaged over the updates that changed the weights.

    If none did, they are averaged over all updates. `skipped` counts the updates that were not
    finite.
    """
    moved = [
        update
        for of_update, update in zip(stats, updates, strict=True)
        if of_update.num_sequences and not update["skipped"]
    ]
    return {
        "grad_norm": fmean(update["grad_norm"] for update in moved or updates),
        "learning_rate": fmean(update["learning_rate"] for update in moved or updates),
        "skipped": sum(update["skipped"] for update in updates),
    }


def summarise(
    collected: Collected, verifiers: Verifiers, policy: Policy
) -> dict[str, float | None]:
    """Return rollout metrics over all processes: reward, components, lengths, truncation, variance.

    They cover everything that was sampled, including groups that dynamic sampling drops: the rest
    would misstate the policy's accuracy. Lengths count sampled tokens, including the end of
    sequence; `length_right` and `length_wrong` are None if there is no such response.
    """
    names = [*verifiers.names]
    keys = ("responses", "faults", "scored", "reward", "length", "truncated", "unanswered",
            "right", "length_right", "length_wrong", "groups", "zero_variance", "waiting",
            "thrown_away",
            *(f"part/{name}" for name in names), *(f"count/{name}" for name in names))  # fmt: skip
    sums = dict.fromkeys(keys, 0.0)
    for group in collected.judged:
        _add_group(sums, group, verifiers)
    sums["waiting"] = len(collected.waiting)
    sums["thrown_away"] = collected.thrown_away
    reduced = policy.all_reduce_sum(torch.tensor([sums[key] for key in keys]).double())
    total = dict(zip(keys, reduced.tolist(), strict=True))

    def share(name: str, of: str) -> float | None:
        return total[name] / total[of] if total[of] else None

    total["wrong"] = total["scored"] - total["right"]
    return {
        # advance_version has already run: the step was taken at the version before.
        **lag_metrics(collected.groups, policy.version - 1, policy.all_reduce_sum),
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
        "groups": total["groups"],
        "groups_waiting": total["waiting"],
        "groups_thrown_away": total["thrown_away"],
        "faults": total["faults"],
        "responses": total["responses"],
    }


def observe_levels(
    collected: Collected, source: RolloutSource, verifiers: Verifiers, policy: Policy
) -> dict[str, float | None]:
    """Report the step's results by level to the curriculum, over all processes; return its metrics.

    Like `summarise`, this covers everything sampled in the step. Responses whose scoring failed, or
    to which the reward does not apply, are not counted.
    """
    curriculum = source.curriculum
    if curriculum is None:
        return {}
    results = [
        (
            group.rollout.problem,
            [
                outcome.parts.get(verifiers.accuracy, 0.0) >= 1.0
                for outcome in group.outcomes
                if isinstance(outcome, Verdict) and outcome.score is not None
            ],
        )
        for group in collected.judged
    ]
    counts = torch.tensor(curriculum.count(results), dtype=torch.float64)
    return curriculum.observe(policy.all_reduce_sum(counts).tolist())


def lag_metrics(
    groups: Sequence[ScoredGroup], version: int, all_reduce_sum: AllReduceSum
) -> dict[str, float | None]:
    """Return the age in steps of the weights that sampled the training data, relative to `version`.

    `lag` is the mean over responses, `lag_max` the maximum; None if there is no response.
    """
    counts = torch.zeros(_LONGEST_LAG + 1, dtype=torch.float64)
    for group in groups:
        for completion in group.rollout.completions:
            counts[min(version - completion.weight_version, _LONGEST_LAG)] += 1
    counts = all_reduce_sum(counts)
    if not counts.sum():
        return {"lag": None, "lag_max": None}
    lags = torch.arange(len(counts), dtype=torch.float64, device=counts.device)
    return {
        "lag": float((lags * counts).sum() / counts.sum()),
        "lag_max": float(lags[counts > 0].max()),
    }


def _add_group(sums: dict[str, float], group: ScoredGroup, verifiers: Verifiers) -> None:
    rewards = []
    for completion, outcome in zip(group.rollout.completions, group.outcomes, strict=True):
        sums["responses"] += 1
        sums["length"] += len(completion.token_ids)
        sums["truncated"] += completion.finish_reason == "length"
        sums["unanswered"] += completion.answer is None
        if isinstance(outcome, ScoringFailure):
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
