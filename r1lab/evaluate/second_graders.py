"""Judge the same samples with a second reward and list the disagreements.

The second grader is any reward by its name; `math_verify` is Hugging Face's Math-Verify. It is
isolated like every reward.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from r1lab.evaluate.compare import paired_ends
from r1lab.evaluate.intervals import bootstrap
from r1lab.evaluate.result import MAX_FAULT_SHARE, ProblemResult, Sample
from r1lab.prompts import Template
from r1lab.types import Completion, Problem, R1labError, ScoringFailure
from r1lab.verify import RewardCall, RewardLimits, Runner, load_reward

_SECONDS, _MEMORY_MIB = 20.0, 2048  # for one response: other checkers may be slow
_SHOWN = 400  # characters of a response, its end


def second_grader(
    name: str,
    problems: Sequence[Problem],
    results: Sequence[ProblemResult],
    template: Template,
    runner: Runner,
    *,
    seed: int = 0,
) -> dict[str, Any]:
    """Judge all samples with the reward `name`; both accuracies, their difference, disagreements.

    first, second   pass@1 by either, with intervals;  difference  the second minus the first, with
                    interval and p-value, paired by problem
    agreement       share of samples on which both agree
    disagreements   every sample on which they do not: gold, answer, what each says and why
    A sample on which a grader faulted counts as wrong by it, as in every figure; `num_faults`
    counts the second's. R1labError where those are more than MAX_FAULT_SHARE of all.
    """
    reward = load_reward(name, {}, key="--grader", limits=RewardLimits(_SECONDS, _MEMORY_MIB))
    rows = [
        (problem, place, sample)
        for problem, result in zip(problems, results, strict=True)
        for place, sample in enumerate(result.samples)
        if sample.correct is not None
    ]
    outcomes = runner.run(reward, [RewardCall(p, _completion(s, template), "") for p, _, s in rows])
    verdicts: dict[str, list[tuple[bool, bool]]] = {}
    disagreements: list[Mapping[str, Any]] = []
    num_faults = 0
    for (problem, place, sample), outcome in zip(rows, outcomes, strict=True):
        if isinstance(outcome, ScoringFailure):
            num_faults += 1
            right, reason = False, f"{outcome.kind}: {outcome.detail}"
        else:
            right, reason = outcome.score is not None and outcome.score >= 1.0, outcome.reason
        verdicts.setdefault(problem.id, []).append((bool(sample.correct), right))
        if right != sample.correct:
            disagreements.append(
                {
                    "problem": problem.id, "sample": place, "gold": problem.answer,
                    "answer": (sample.answer or "")[-_SHOWN:], "first": sample.correct,
                    "first_reason": sample.reason, "second": right, "second_reason": reason,
                }
            )  # fmt: skip
    if num_faults > MAX_FAULT_SHARE * len(rows):
        fault = next(outcome for outcome in outcomes if isinstance(outcome, ScoringFailure))
        raise R1labError(
            f"--grader: {name!r} failed on {num_faults} of {len(rows)} samples, more than "
            f"{MAX_FAULT_SHARE:.0%} ({fault.kind}: {fault.detail})"
        )
    if len(verdicts) < 2:
        raise R1labError("--grader: a difference with an interval needs at least two problems")
    shares = np.array([np.mean(pairs, axis=0) for pairs in verdicts.values()])
    estimates = bootstrap(shares, np.ones_like(shares), seed=seed, shares=[True, True])
    low, high, p_value = paired_ends(shares[:, 0], shares[:, 1], seed)
    first, second = (asdict(estimate) for estimate in estimates if estimate is not None)
    return {
        "grader": name,
        "first": first,
        "second": second,
        "difference": {
            "value": second["value"] - first["value"], "low": low, "high": high,
            "p_value": p_value,
        },
        "agreement": 1 - len(disagreements) / len(rows),
        "num_samples": len(rows),
        "num_faults": num_faults,
        "disagreements": disagreements,
    }  # fmt: skip


def _completion(sample: Sample, template: Template) -> Completion:
    read = template.read(sample.text)
    return Completion(
        (), sample.text, "stop", 0, prefix=template.prefix, thinking=read.thinking,
        answer=sample.answer,
    )  # fmt: skip
