"""Run folders made by the library's own writers, for tests and measurements of the report."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from r1lab.config.reading import dump_resolved
from r1lab.config.recipe import ProblemSettings, SourceSettings, TrainRecipe
from r1lab.evaluate.intervals import Estimate
from r1lab.evaluate.result import EvalResult, ProblemResult, Sample, Scores
from r1lab.prompts import TEMPLATES
from r1lab.run_folder import RunFolder
from r1lab.types import Completion, Outcome, Problem, Rollout, ScoredGroup, ScoringFailure, Verdict

COMPACT = TEMPLATES["compact"]
# What a model might write to take the page over, were it read as markup.
HOSTILE = (
    "<script>document.title = 'taken'</script>"
    "</script><script>document.title = 'taken'</script>"
    "<img src=x onerror=\"document.title = 'taken'\"><!--<script>"
    "<style>body { display: none }</style> </think> <answer> <b>7</b> </answer>"
)


WORDS = ("wait", "so", "carry", "the", "one", "then", "sum", "is", "box", "red", "blue", "check")


@dataclass(frozen=True)
class Draw:
    """What responses are drawn from."""

    random: random.Random
    vocabulary: Sequence[str]
    words: int

    def text(self, answer: str) -> str:
        """A well-formed response that thinks for up to twice the mean number of words."""
        count = self.random.randrange(1, 2 * self.words)
        spoken = " ".join(self.random.choices(self.vocabulary, k=count))
        return f" {spoken} </think> <answer> {answer} </answer>"


def make_run(
    path: Path,
    *,
    name: str = "made",
    steps: int = 6,
    groups: int = 4,
    size: int = 4,
    words: int = 6,
    every: int = 3,
    hostile: bool = False,
    vocabulary: Sequence[str] = WORDS,
    seed: int = 0,
) -> RunFolder:
    """A run of `steps` steps whose answers get better, with evaluations every `every` steps.

    words       of a response in the mean, drawn from `vocabulary`
    hostile     one response of the last step is markup that would take the page over, one faulted,
                and one update was skipped
    """
    draw = Draw(random.Random(seed), vocabulary, words)
    folder = RunFolder.create(path)
    sources = (SourceSettings(source="boxes"),)
    recipe = TrainRecipe(
        name=name, steps=steps, seed=seed, problems=ProblemSettings(sources=sources)
    )
    folder.recipe_path.write_text(dump_resolved(recipe))
    folder.write_eval(0, _evaluation(draw, 0, 0.2).as_dict())
    for step in range(1, steps + 1):
        skill = 0.2 + 0.7 * step / steps
        scored = [_group(draw, step, g, size, skill) for g in range(groups)]
        if hostile and step == steps:
            scored[0] = _taken_over(scored[0])
        outcomes = [outcome for group in scored for outcome in group.outcomes]
        faults = sum(isinstance(outcome, ScoringFailure) for outcome in outcomes)
        folder.log_metrics(step, {
            "reward": skill + 0.2, "accuracy": skill, "format": 0.9, "length": 20.0 + step,
            "length_right": 22.0 + step, "length_wrong": None if step == steps else 18.0,
            "truncated": 0.01, "unanswered": 0.1, "zero_variance": 0.2, "faults": float(faults),
            "responses": float(groups * size), "entropy": 0.5 / step, "clipped_low": 0.0,
            "clipped_high": 0.01, "sync_kl": 3e-5, "sync_kl_bound": 2e-4, "grad_norm": 0.2,
            "skipped": float(hostile and step == 2), "learning_rate": 3e-4,
        })  # fmt: skip
        folder.log_timings(step, {
            "rollout": 1.5, "reward": 0.1, "update": 2.0, "sync": 0.1, "total": 3.7,
            "tokens_per_second": 1000.0 + 10 * step,
        })  # fmt: skip
        folder.write_rollouts(step, scored, [[0.5] * size for _ in scored])
        if step % every == 0 or step == steps:
            folder.write_eval(step, _evaluation(draw, step, skill).as_dict())
    folder.write_summary({"steps": steps, "seconds_training": 3.7 * steps, "seconds_total": 60.0})
    if hostile:
        point = {"name": "ends", "level": "ok", "found": "all ended", "change": ""}
        folder.log_event("prospects", step=0, verdict="this run can learn", points=[point])
        folder.log_event("warning", text="<b>odd</b>", step=2)
    return folder


def _problem(index: int, kind: str) -> Problem:
    source = ("sums", "boxes")[index % 2]
    return Problem(
        id=f"{source}-{kind}-{index}", question=f"what is {index} + 2 ?", answer=str(index + 2),
        verifier="math", source=source,
    )  # fmt: skip


def _completion(text: str, num_tokens: int, ended: str = "stop") -> Completion:
    read = COMPACT.read(text)
    return Completion(
        token_ids=tuple(range(num_tokens)), text=text, finish_reason=ended,  # type: ignore[arg-type]
        weight_version=0, prefix=COMPACT.prefix, thinking=read.thinking, answer=read.answer,
    )  # fmt: skip


def _group(draw: Draw, step: int, number: int, size: int, skill: float) -> ScoredGroup:
    problem = _problem(1000 * step + number, "train")
    completions, outcomes = [], []
    for _ in range(size):
        right = draw.random.random() < skill
        answer = problem.answer if right else str(draw.random.randrange(10))
        text = draw.text(answer)
        completions.append(_completion(text, len(text.split())))
        reason = "accuracy: the same number" if right else "accuracy: another number"
        parts = {"accuracy": float(right), "format": 1.0}
        outcomes.append(Verdict(right + 0.2, reason, parts))
    return ScoredGroup(Rollout(problem, (1,), tuple(completions)), tuple(outcomes))


def _taken_over(group: ScoredGroup) -> ScoredGroup:
    """The group with a hostile first response, a second that faulted, a third that was cut off."""
    rest = group.rollout.completions[3:]
    cut = _completion("and so on and", 128, "length")
    completions = (_completion(HOSTILE, 40), _completion(" x </think>", 3), cut, *rest)
    outcomes: Sequence[Outcome] = (
        Verdict(0.2, "accuracy: <i>another</i> number", {"accuracy": 0.0, "format": 1.0}),
        ScoringFailure("timeout", "math: <u>5 s</u>"), Verdict(0.0, "no answer", {"accuracy": 0.0}),
        *group.outcomes[3:],
    )  # fmt: skip
    problem = Problem(
        id="<hr>-0", question="<script>1</script> + 1 ?", answer="<em>2</em>", verifier="math",
        source="sums",
    )  # fmt: skip
    return ScoredGroup(Rollout(problem, (1,), completions), tuple(outcomes))


def _evaluation(draw: Draw, step: int, skill: float) -> EvalResult:
    problems = []
    for index in range(6):
        problem = _problem(index, "test")
        samples = tuple(
            _sample(draw, problem, draw.random.random() < skill * (0.5 + index / 6))
            for _ in range(4)
        )
        problems.append(
            ProblemResult(problem.id, problem.source, problem.question, problem.answer, samples,
                          samples[0] if step == 0 else None)
        )  # fmt: skip
    scores = _scores(problems)
    return EvalResult(
        step=step, weight_version=step, template="compact", accuracy="accuracy", k=4,
        temperature=1.0, top_p=1.0, max_tokens=128, seed=1, level=0.95, overall=scores,
        greedy=scores if step == 0 else None, by_source={"sums": scores, "boxes": scores},
        problems=tuple(problems),
    )  # fmt: skip


def _sample(draw: Draw, problem: Problem, right: bool) -> Sample:
    answer = problem.answer if right else "99"
    text = draw.text(answer)
    return Sample(
        text=text, answer=answer, correct=right, score=right + 0.2, reason="accuracy: judged",
        parts={"accuracy": float(right), "format": 1.0}, fault=None, length=len(text.split()),
        finish_reason="stop", well_formed=True,
    )  # fmt: skip


def _scores(problems: Sequence[ProblemResult]) -> Scores:
    samples = [sample for problem in problems for sample in problem.samples]
    share = sum(bool(sample.correct) for sample in samples) / len(samples)
    length = sum(sample.length for sample in samples) / len(samples)

    def about(value: float) -> Estimate:
        return Estimate(value, value - 0.05, value + 0.05)

    return Scores(
        num_problems=len(problems), num_samples=len(samples), num_faults=0, pass_at_1=about(share),
        cons_at_k=about(min(1.0, share + 0.1)), pass_at_k={"1": about(share), "4": about(0.9)},
        reward=about(share + 0.2), format=about(0.9), length=about(length),
        length_right=about(length + 1), length_wrong=about(length - 1), truncated=about(0.05),
        unanswered=about(0.1),
    )  # fmt: skip
