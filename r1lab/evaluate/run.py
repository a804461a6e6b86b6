"""Sample held-out problems and judge the samples.

One `generate` call asks everything that shares sampling settings (a second one for greedy answers),
one `score` call judges it.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from r1lab.config.recipe import EvaluationSettings
from r1lab.evaluate.answer_clusters import answer_groups, is_readable
from r1lab.evaluate.estimators import maj_at_k, pass_at_k
from r1lab.evaluate.intervals import LEVEL, Estimate, bootstrap
from r1lab.evaluate.result import MAX_FAULT_SHARE, EvalResult, ProblemResult, Sample, Scores
from r1lab.prompts import Encode, Template, read_response
from r1lab.rollout.sampler import Sampler
from r1lab.types import (
    Completion,
    Outcome,
    Problem,
    R1labError,
    Rollout,
    SamplingSettings,
    ScoredGroup,
    ScoringFailure,
)
from r1lab.verify import Verifiers


@dataclass(frozen=True, slots=True)
class Asked:
    """Judged samples of some problems: `sampled` with k completions each, `greedy` with one."""

    sampled: tuple[ScoredGroup, ...]
    greedy: tuple[ScoredGroup, ...] | None = None


def evaluate(
    sampler: Sampler,
    problems: Sequence[Problem],
    verifiers: Verifiers,
    *,
    encode: Encode,
    template: Template,
    settings: EvaluationSettings,
    max_tokens: int,
    greedy: bool = False,
    step: int | None = None,
) -> EvalResult:
    """Ask every problem `settings.num_samples` times and judge the answers: `ask`, then `judge`."""
    asked = ask(
        sampler, problems, verifiers, encode=encode, template=template, settings=settings,
        max_tokens=max_tokens, greedy=greedy,
    )  # fmt: skip
    return judge(
        asked, verifiers, template=template, settings=settings, max_tokens=max_tokens, step=step
    )


def ask(
    sampler: Sampler,
    problems: Sequence[Problem],
    verifiers: Verifiers,
    *,
    encode: Encode,
    template: Template,
    settings: EvaluationSettings,
    max_tokens: int,
    greedy: bool = False,
) -> Asked:
    """Sample and score; a problem that comes twice is asked once.

    Two different problems with one id are refused: their metrics would be mixed. `encode`
    makes token ids of a prompt, as in training. With several processes, each asks its share of the
    problems, and the shares are joined before `judge`. Samples of the same seed are the same.
    """
    unique = distinct(problems)
    prompts = [tuple(encode(template.prompt(problem.question))) for problem in unique]
    # Processes ask shares of their own: with one seed their random streams would be the same.
    seed = settings.seed + 1_000_003 * int(os.environ.get("RANK", "0"))

    def scored(sampling: SamplingSettings) -> tuple[ScoredGroup, ...]:
        groups = sampler.generate(prompts, sampling, template=template)
        return tuple(
            verifiers.score(
                [
                    Rollout(problem, prompt, tuple(group))
                    for problem, prompt, group in zip(unique, prompts, groups, strict=True)
                ]
            )
        )

    return Asked(
        sampled=scored(
            SamplingSettings(
                num_samples=settings.num_samples,
                temperature=settings.temperature,
                top_p=settings.top_p,
                max_tokens=max_tokens,
                seed=seed,
            )
        ),
        greedy=(
            scored(SamplingSettings(temperature=0.0, max_tokens=max_tokens, seed=seed))
            if greedy
            else None
        ),
    )


def distinct(problems: Sequence[Problem]) -> list[Problem]:
    """Return the distinct problems; raises R1labError if different ones share an id."""
    by_id: dict[str, Problem] = {}
    for problem in problems:
        known = by_id.setdefault(problem.id, problem)
        if (known.question, known.answer) != (problem.question, problem.answer):
            raise R1labError(
                f"two problems have the id {problem.id!r} ({known.question!r:.60} and "
                f"{problem.question!r:.60}); give each an id of its own"
            )
    return list(by_id.values())


def judge(
    asked: Asked,
    verifiers: Verifiers,
    *,
    template: Template,
    settings: EvaluationSettings,
    max_tokens: int,
    step: int | None = None,
) -> EvalResult:
    """The figures of judged samples. A sample is right where its accuracy part reaches 1.

    Raises R1labError if no sample could be judged.
    """
    problems = problem_results(asked, verifiers)
    completions = [c for scored in asked.sampled for c in scored.rollout.completions]
    sampling = SamplingSettings(
        settings.num_samples, settings.temperature, settings.top_p, max_tokens, seed=settings.seed
    )
    result = result_of(
        problems, accuracy=verifiers.accuracy, template=template.name, sampling=sampling
    )
    version = completions[0].weight_version if completions else None
    return replace(result, step=step, weight_version=version)


def problem_results(
    asked: Asked, verifiers: Verifiers, *, keep_tokens: bool = False
) -> tuple[ProblemResult, ...]:
    """The judged samples problem by problem, equal answers grouped as the verifier sees them."""
    accuracy = verifiers.accuracy
    groups = answer_groups(asked.sampled, verifiers)
    problems = tuple(
        _problem(scored, of_problem, accuracy, keep_tokens)
        for scored, of_problem in zip(asked.sampled, groups, strict=True)
    )
    if asked.greedy is None:
        return problems
    return tuple(
        replace(problem, greedy=_greedy(problem, scored, accuracy))
        for problem, scored in zip(problems, asked.greedy, strict=True)
    )


def result_of(
    problems: Sequence[ProblemResult],
    *,
    accuracy: str,
    template: str,
    sampling: SamplingSettings,
) -> EvalResult:
    """Compute the metrics of judged problems; raises R1labError if none is judged."""
    _refuse_if_nothing_was_judged(problems, accuracy)
    sets = {name: [p for p in problems if p.source == name] for name in _sources(problems)}
    greedy = [ProblemResult(p.id, p.source, p.question, p.answer, (p.greedy,))
              for p in problems if p.greedy is not None]  # fmt: skip
    k, seed = sampling.num_samples, sampling.seed or 0
    return EvalResult(
        step=None,
        weight_version=None,
        template=template,
        accuracy=accuracy,
        k=k,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        max_tokens=sampling.max_tokens,
        seed=seed,
        level=LEVEL,
        overall=summarise(problems, k, seed),
        greedy=summarise(greedy, 1, seed) if greedy else None,
        by_source={name: summarise(of_source, k, seed) for name, of_source in sets.items()},
        problems=tuple(problems),
    )


def summarise(problems: Sequence[ProblemResult], k: int, seed: int) -> Scores:
    """Compute the metrics of a set of problems sampled k times each.

    Samples to which no reward applies are left out of accuracy, and a problem without a judged one
    of all its figures. pass@k leaves out problems with fewer than k judged samples. For faulted
    samples see `Scores`.
    """
    samples = [sample for problem in problems for sample in problem.samples]
    num_faults = sum(sample.fault is not None for sample in samples)
    fault_share = num_faults / len(samples) if samples else 0.0
    lowest = min([0.0, *(sample.score for sample in samples if sample.score is not None)])
    judged = [p for p in problems if any(s.correct is not None for s in p.samples)]
    ks = [2**i for i in range(k.bit_length())]
    rows = [_figures(problem, ks, lowest) for problem in judged]
    names = list(rows[0]) if rows else []
    table = np.array([[row[name] for name in names] for row in rows], dtype=np.float64)
    estimates: dict[str, Estimate | None] = {}
    if rows:
        shares = [name.startswith("pass_at_") or name in SHARES for name in names]
        found = bootstrap(table[:, :, 0], table[:, :, 1], seed=seed, shares=shares)
        estimates = dict(zip(names, found, strict=True))
    if fault_share > MAX_FAULT_SHARE:
        estimates = {name: found for name, found in estimates.items() if name in UNJUDGED}
    at_k = {str(size): estimates.get(f"pass_at_{size}") for size in ks}
    return Scores(
        num_problems=len(judged),
        num_samples=len(samples),
        num_faults=num_faults,
        fault_share=fault_share,
        pass_at_k={size: found for size, found in at_k.items() if found is not None},
        **{name: estimates.get(name) for name in FIGURES},
    )


FIGURES = (
    "pass_at_1", "cons_at_k", "reward", "format", "length", "length_right", "length_wrong",
    "truncated", "unanswered", "unparsable",
)  # fmt: skip
UNJUDGED = ("format", "length", "truncated", "unanswered")  # these need no verdict
SHARES = ("cons_at_k", "format", "truncated", "unanswered", "unparsable")


def _figures(
    problem: ProblemResult, ks: Sequence[int], lowest: float
) -> dict[str, tuple[float, float]]:
    """Return one problem's contribution to the numerator and denominator of each metric.

    `lowest` is the score that a faulted sample counts with.
    """
    samples = problem.samples
    judged = [sample for sample in samples if sample.correct is not None]
    right = [sample for sample in judged if sample.correct]
    wrong = [sample for sample in judged if not sample.correct]
    given = [lowest if sample.fault else sample.score for sample in samples]
    scores = [score for score in given if score is not None]
    n, c = len(judged), len(right)

    def share(count: int) -> tuple[float, float]:
        return count / len(samples), 1.0

    majority = maj_at_k([s.group for s in judged], [bool(s.correct) for s in judged])
    return {
        **{f"pass_at_{k}": (pass_at_k(n, c, k), 1.0) if k <= n else (0.0, 0.0) for k in ks},
        "cons_at_k": (majority, 1.0),
        "reward": (sum(scores) / len(scores), 1.0) if scores else (0.0, 0.0),
        "format": share(sum(s.well_formed for s in samples)),
        "length": share(sum(s.length for s in samples)),
        "length_right": (sum(s.length for s in right), len(right)),
        "length_wrong": (sum(s.length for s in wrong), len(wrong)),
        "truncated": share(sum(s.finish_reason == "length" for s in samples)),
        "unanswered": share(sum(s.answer is None for s in samples)),
        "unparsable": share(sum(not s.readable for s in samples)),
    }


def _problem(
    scored: ScoredGroup, groups: Sequence[int | None], accuracy: str, keep_tokens: bool
) -> ProblemResult:
    problem = scored.rollout.problem
    rows = zip(scored.rollout.completions, scored.outcomes, groups, strict=True)
    samples = tuple(
        replace(
            _sample(completion, outcome, accuracy),
            group=group,
            token_ids=completion.token_ids if keep_tokens else None,
        )
        for completion, outcome, group in rows
    )
    judged = [sample for sample in samples if sample.correct is not None]
    majority = maj_at_k([s.group for s in judged], [bool(s.correct) for s in judged])
    return ProblemResult(
        problem.id, problem.source, problem.question, problem.answer, samples,
        majority=majority if judged else None,
    )  # fmt: skip


def _greedy(problem: ProblemResult, scored: ScoredGroup, accuracy: str) -> Sample:
    assert scored.rollout.problem.id == problem.id
    (pair,) = zip(scored.rollout.completions, scored.outcomes, strict=True)
    sample = _sample(*pair, accuracy)
    return replace(sample, group=_alone(sample))


def _alone(sample: Sample) -> int | None:
    """Return the group of a single answer: right, wrong, or none."""
    if sample.correct is None or not sample.readable:
        return None
    return 0 if sample.correct else 1


def _sample(completion: Completion, outcome: Outcome, accuracy: str) -> Sample:
    fault = f"{outcome.kind}: {outcome.detail}" if isinstance(outcome, ScoringFailure) else None
    verdict = None if isinstance(outcome, ScoringFailure) else outcome
    part = verdict.parts.get(accuracy) if verdict else None
    whole = read_response(completion.prefix + completion.text)
    return Sample(
        text=completion.text,
        answer=completion.answer,
        correct=False if fault else None if part is None else part >= 1.0,
        score=verdict.score if verdict else None,
        reason=verdict.reason if verdict else "",
        parts=dict(verdict.parts) if verdict else {},
        fault=fault,
        length=len(completion.token_ids),
        finish_reason=completion.finish_reason,
        # As the format reward has it: what was cut off is not known to end there.
        well_formed=whole.well_formed and completion.finish_reason != "length",
        readable=is_readable(completion, outcome, accuracy),
    )


def _sources(problems: Sequence[ProblemResult]) -> list[str]:
    return sorted({problem.source for problem in problems})


def _refuse_if_nothing_was_judged(problems: Sequence[ProblemResult], accuracy: str) -> None:
    samples = [sample for problem in problems for sample in problem.samples]
    if any(sample.correct is not None and not sample.fault for sample in samples):
        return
    faults = [sample.fault for sample in samples if sample.fault]
    cause = faults[0] if faults else f"no verdict has the part {accuracy!r}"
    raise R1labError(f"none of {len(samples)} samples could be judged: {cause}")
