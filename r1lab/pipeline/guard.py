"""No held-out question in any training set of any stage: checked, not assumed.

The questions of the suites are gathered once; every row that a stage is about to train on, and the
first problems of every stream that it samples or learns from, are looked up among them. Questions
are compared without regard to spaces and case.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from r1lab.config.recipe import PretrainRecipe, TrainRecipe
from r1lab.config.stages import PipelineRecipe, SampleRecipe, SupervisedRecipe
from r1lab.evaluate.suites import find_suites, suite_problems
from r1lab.pipeline.plan import Stage
from r1lab.problems.registry import load_mixture, resolve
from r1lab.types import RunStopped

_STREAMED = 2000  # problems of an endless stream, documents of a corpus


def held_out_questions(recipe: PipelineRecipe) -> set[str]:
    """The questions of all suites, as they are compared."""
    return {
        _plain(problem.question)
        for settings in recipe.suites
        for suite in find_suites(settings.name)
        for problem in suite_problems(
            suite, num=recipe.num_problems, seed=recipe.seed, form="compact"
        )
    }


def check_stage(stage: Stage, held_out: set[str]) -> int:
    """Look up all that a stage trains on; the number of questions. Raises RunStopped on a find."""
    looked_at = 0
    for place, question in _questions(stage):
        looked_at += 1
        if _plain(question) in held_out:
            raise RunStopped(
                f"stage {stage.name}: {place} holds the held-out question {question[:80]!r}; "
                "nothing was trained on it: take it out, or evaluate on other problems"
            )
    return looked_at


def _questions(stage: Stage) -> Iterator[tuple[str, str]]:
    recipe = stage.recipe
    if isinstance(recipe, SupervisedRecipe):
        yield from _of_rows(recipe)
    elif isinstance(recipe, TrainRecipe | SampleRecipe):
        mixture = load_mixture(recipe.problems, "train")
        yield from (("its problems", mixture[i].question) for i in range(_STREAMED))
    elif isinstance(recipe, PretrainRecipe):
        corpus: Any = resolve(recipe.corpus.source, "source", key="corpus.source")(
            seed=recipe.seed, **recipe.corpus.options
        )
        for index in range(_STREAMED):
            if prompt := corpus[index].prompt:
                yield "its corpus", _asked(prompt)


def _of_rows(recipe: SupervisedRecipe) -> Iterable[tuple[str, str]]:
    from r1lab.stages.rows import read_rows

    # All sets in one call, as the stage reads them: which rows are drawn depends on their places.
    for row in read_rows(recipe.rows, ("prompt",), recipe.seed):
        yield "one of its rows", str(row.get("question") or _asked(row["prompt"]))


def _asked(prompt: str) -> str:
    """The question inside a prompt of the compact template; else the whole prompt."""
    from r1lab.prompts import TEMPLATES

    before, _, behind = TEMPLATES["compact"].prompt("{question}").partition("{question}")
    if prompt.startswith(before) and prompt.endswith(behind):
        return prompt[len(before) : len(prompt) - len(behind)]
    return prompt


def _plain(question: str) -> str:
    return " ".join(question.lower().split())
