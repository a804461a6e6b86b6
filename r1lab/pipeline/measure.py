"""Evaluate every stage on the same suites and tabulate the metrics."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from r1lab.config.recipe import RewardSettings
from r1lab.config.stages import PipelineRecipe
from r1lab.evaluate.result import MAX_FAULT_SHARE
from r1lab.evaluate.result_store import read_result
from r1lab.pipeline.plan import Stage, read_json
from r1lab.prompts import TEMPLATES
from r1lab.types import Completion, Problem, Rollout, ScoringFailure
from r1lab.verify import Verifiers

StageScores = dict[str, Any]
TEMPLATE = "compact"


def evaluation_command(stage: Stage, recipe: PipelineRecipe) -> list[str]:
    """`r1lab eval` of a stage's model on all suites."""
    command = ["eval", str(stage.artefact), "--template", TEMPLATE, "--seed", str(recipe.seed),
               "--max-tokens", str(recipe.max_tokens), "--dtype", recipe.dtype,
               "--engine", recipe.engine,
               "--num", str(recipe.num_problems), "--k", str(recipe.num_samples),
               "--out", str(stage.figures / "suites"),
               "--summary", str(summary_file(stage))]  # fmt: skip
    for suite in recipe.suites:
        command += ["--suite", suite.name]
    return command


def summary_file(stage: Stage) -> Path:
    """What the evaluation of a stage that is done leaves when all its suites are: of its bytes."""
    return stage.figures / f"suites-{stage.record['sha256'][:12]}.json"


def figures_of(stage: Stage, recipe: PipelineRecipe) -> StageScores:
    """A stage's figures over all suites and by suite, from the files that its evaluation left.

    pass_at_1 and the rest are means over problems; `overall` is over the problems of all suites
    that count there. A measure is the mean over their problems of a reward over their samples.
    """
    summary = json.loads(summary_file(stage).read_text(encoding="utf-8"))
    results = [read_result(row["file"]) for row in summary["suites"]]
    by_suite = {result["suite"]: _figures(result) for result in results}
    counted = [suite.name for suite in recipe.suites if suite.overall]
    figures: StageScores = {"sha256": stage.record["sha256"], "suites": by_suite}
    for name in ("pass_at_1", "cons_at_k", "format", "length"):
        values = [by_suite[suite][name] for suite in counted if by_suite[suite][name] is not None]
        figures[name] = sum(values) / len(values) if values else None
    problems = [p for result in results if result["suite"] in counted for p in result["problems"]]
    for name, reward in recipe.measures.items():
        figures[name] = _measure(reward, problems)
    return figures


def _figures(result: Mapping[str, Any]) -> StageScores:
    overall = result["overall"]

    def value(name: str) -> float | None:
        found = overall.get(name)
        return None if found is None else found["value"]

    interval = overall["pass_at_1"]
    return {
        "pass_at_1": value("pass_at_1"),
        "pass_at_1_interval": interval and [interval["low"], interval["high"]],
        "cons_at_k": value("cons_at_k"),
        "reward": value("reward"),
        "format": value("format"),
        "length": value("length"),
    }


def _measure(reward: RewardSettings, problems: Sequence[Mapping[str, Any]]) -> float | None:
    """The mean over problems of a reward's mean over their samples, where it applies.

    Faulted samples count as `evaluate.result.Scores` has it.
    """
    template = TEMPLATES[TEMPLATE]
    verifiers = Verifiers([reward], template=template)
    rollouts = []
    for row in problems:
        problem = Problem(row["id"], row["question"], row["answer"], "", row["source"])
        completions = []
        for sample in row["samples"]:
            read = template.read(sample["text"])
            completions.append(
                Completion(
                    token_ids=(), text=sample["text"], finish_reason=sample["finish_reason"],
                    weight_version=0, prefix=template.prefix, thinking=read.thinking,
                    answer=read.answer,
                )
            )  # fmt: skip
        rollouts.append(Rollout(problem, (), tuple(completions)))
    means = []
    scored_rollouts = verifiers.score(rollouts)
    outcomes = [outcome for scored in scored_rollouts for outcome in scored.outcomes]
    faults = sum(isinstance(outcome, ScoringFailure) for outcome in outcomes)
    if faults > MAX_FAULT_SHARE * len(outcomes):
        return None
    known = [o.score for o in outcomes if not isinstance(o, ScoringFailure) and o.score is not None]
    lowest = min([0.0, *known])
    for scored in scored_rollouts:
        scores = [lowest if isinstance(o, ScoringFailure) else o.score for o in scored.outcomes]
        given = [score for score in scores if score is not None]
        if given:
            means.append(sum(given) / len(given))
    return sum(means) / len(means) if means else None


def write_figures(stage: Stage, figures: StageScores) -> None:
    """evaluation.json, in the stage's folder of this pipeline."""
    path = stage.figures / "evaluation.json"
    path.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


def read_figures(stage: Stage) -> StageScores | None:
    """A stage's figures, None where it was not evaluated, or as another model."""
    found, sha256 = read_json(stage.figures / "evaluation.json"), stage.record.get("sha256")
    return found if sha256 is not None and found.get("sha256") == sha256 else None


def table_of(stages: Sequence[Stage], recipe: PipelineRecipe) -> list[str]:
    """The stages with their figures, as lines of Markdown."""
    names = ["pass_at_1", "cons_at_k", *recipe.measures, "format", "length"]
    suites = [suite.name for suite in recipe.suites]
    lines = [
        f"| stage | {' | '.join(names)} | {' | '.join(suites)} |",
        f"|{'---|' * (1 + len(names) + len(suites))}",
    ]
    for stage in stages:
        figures = read_figures(stage)
        if figures is None:
            continue
        cells = [_said(figures.get(name)) for name in names]
        cells += [_of_suite(figures["suites"].get(suite)) for suite in suites]
        lines.append(f"| {stage.name} | {' | '.join(cells)} |")
    return lines


def _of_suite(figures: StageScores | None) -> str:
    if figures is None:
        return "-"
    return _said(figures["pass_at_1"])


def _said(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}"
