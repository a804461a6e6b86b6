"""Score a base before reinforcement learning: held-out scores by kind of problem."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from r1lab.config.recipe import (
    EvaluationSettings,
    ModelSettings,
    PretrainRecipe,
    ProblemSettings,
    SamplingRecipe,
    SourceSettings,
    TrainRecipe,
)
from r1lab.evaluate.standalone import evaluate_recipe


def score_base(folder: Path, recipe: PretrainRecipe) -> dict[str, Any]:
    """pass@1, cons@k, greedy accuracy, form and length of each kind of problem, for the card."""
    sources = tuple(SourceSettings(source=name) for name in recipe.card_sources)
    result = evaluate_recipe(
        TrainRecipe(
            name="card",
            model=ModelSettings(path=str(folder), dtype=recipe.dtype),
            problems=ProblemSettings(sources=sources),
            sampling=SamplingRecipe(engine=recipe.card_engine),
            evaluation=EvaluationSettings(num_problems=recipe.card_problems * len(sources)),
        )
    )
    kinds = {}
    for name, scores in result.by_source.items():
        greedy = [
            sample.correct
            for problem in result.problems
            if problem.source == name and (sample := problem.greedy) is not None
        ]
        figures = {
            "pass_at_1": scores.pass_at_1, "cons_at_k": scores.cons_at_k, "format": scores.format,
            "length": scores.length,
        }  # fmt: skip
        kinds[name] = {
            **{figure: estimate.value for figure, estimate in figures.items() if estimate},
            # The greedy answers are judged by the same rewards: no figure where samples have none.
            "greedy": sum(map(bool, greedy)) / len(greedy) if scores.pass_at_1 else None,
        }
    return {"num_problems": recipe.card_problems, "num_samples": result.k, "kinds": kinds}
