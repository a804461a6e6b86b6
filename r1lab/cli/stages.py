"""The commands of the supervised stages and of the pipeline that connects them."""

from __future__ import annotations

import argparse
import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from r1lab.cli.arguments import whole
from r1lab.types import R1labError, RecipeError

if TYPE_CHECKING:
    from collections.abc import Callable

    from r1lab.config.reading import Override
    from r1lab.config.section import Section
    from r1lab.config.stages import PipelineRecipe
    from r1lab.pipeline.plan import Stage
    from r1lab.pipeline.run import PipelineRun

COMMANDS = {
    "sft": "fine-tune on prompts and completions (SFT)",
    "sample": "sample a model and keep accepted responses as training rows (rejection sampling)",
    "reward-model": "train a reward model from pairs of responses",
    "distil": "distil a teacher into a student on the student's own samples",
}


def schema_of(command: str) -> type[Section]:
    """Return the recipe schema of a command."""
    from r1lab.config import stages as schemas

    schema_by_command: dict[str, type[Section]] = {
        "sft": schemas.SftRecipe,
        "sample": schemas.SampleRecipe,
        "reward-model": schemas.RewardModelRecipe,
        "distil": schemas.DistilRecipe,
        "pipeline": schemas.PipelineRecipe,
    }
    return schema_by_command[command]


def run_stage(options: argparse.Namespace, overrides: list[Override]) -> int:
    """`r1lab sft RECIPE`, and the same for `sample`, `reward-model` and `distil`."""
    from r1lab.cli.checks import check_installed, check_writable
    from r1lab.config.reading import dump_resolved, load_recipe

    recipe = load_recipe(options.recipe, overrides, schema=schema_of(options.command))
    check_writable(recipe.run_folder, "output")  # type: ignore[attr-defined]
    if options.dry_run:
        print(dump_resolved(recipe), end="")
        return 0
    for package in ("torch", "trl", "datasets"):
        check_installed(package)
    made = _call_of(options.command)(recipe)
    print(f"{options.command}: {made}")
    return 0


def _call_of(command: str) -> Callable[..., Path]:
    match command:
        case "sft":
            from r1lab.stages.sft import sft

            return sft
        case "sample":
            from r1lab.stages.sample import sample

            return sample
        case "reward-model":
            from r1lab.stages.reward_model import train_reward_model

            return train_reward_model
        case _:
            from r1lab.stages.distil import distil

            return distil


def add_pipeline_options(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `r1lab pipeline`, except its recipe."""
    parser.add_argument("--from", dest="first", metavar="STAGE",
                        help="rerun this stage and all stages that depend on it")  # fmt: skip
    parser.add_argument("--until", metavar="STAGE", help="run only this stage and its dependencies")
    parser.add_argument(
        "--quick", action="store_true", help="small, fast version: apply the recipe's `quick` keys"
    )
    parser.add_argument(
        "--jobs", type=whole(1), metavar="N", help="parallel processes (default: one per core)"
    )
    parser.epilog = (
        "A finished stage is rerun only if its recipe or its inputs have changed. Run the same\n"
        "command again to resume after an interruption. docs/r1-pipeline.md has the committed\n"
        "results."
    )


def pipeline(options: argparse.Namespace, overrides: list[Override]) -> int:
    """`r1lab pipeline RECIPE`."""
    from r1lab.cli.checks import check_installed, check_writable
    from r1lab.config.reading import find_recipe, load_recipe
    from r1lab.config.stages import PipelineRecipe
    from r1lab.pipeline.measure import table_of
    from r1lab.pipeline.plan import below, chosen, stages_of
    from r1lab.pipeline.run import PipelineRun

    path = find_recipe(options.recipe)
    recipe = load_recipe(path, overrides, schema=PipelineRecipe)
    if options.quick:
        recipe = _quick(recipe, path, overrides)
    check_writable(recipe.run_folder, "output")
    stages = chosen(stages_of(recipe, beside=path.parent, quick=options.quick), options.until)
    jobs = options.jobs or len(os.sched_getaffinity(0))
    again = below(stages, options.first) if options.first else set()
    run = PipelineRun(recipe, stages, again, jobs)
    if options.dry_run:
        _print_plan(run, stages)
        return 0
    for package in ("torch", "trl", "datasets"):
        check_installed(package)
    try:
        run.go()
    except KeyboardInterrupt:
        print("interrupted; finished stages are kept, run the same command again to resume")
        raise
    print("\n".join(table_of(stages, recipe)))
    print(f"results are in {recipe.run_folder}")
    return 0


def _quick(recipe: PipelineRecipe, path: Path, overrides: list[Override]) -> PipelineRecipe:
    """Return the recipe with its own `quick` keys applied, in a separate output folder.

    Raises R1labError if the recipe has no `quick`.
    """
    import json

    from r1lab.config.reading import load_recipe

    if not recipe.quick:
        raise R1labError("--quick: the pipeline's recipe has no key `quick`; add it")
    stages = tuple(f"{name}." for name in recipe.stages)
    own = [(key, json.dumps(value)) for key, value in recipe.quick.items()
           if not key.startswith(stages)]  # fmt: skip
    if "output" not in dict(overrides):
        own.append(("output", f"{recipe.run_folder}-quick"))
    unknown = [key for key, _ in own if key.partition(".")[0] not in type(recipe).model_fields]
    if unknown:
        raise RecipeError(f"quick.{unknown[0]}: must be a key of the pipeline, or STAGE.key")
    return load_recipe(path, [*own, *overrides], schema=type(recipe))


def _print_plan(run: PipelineRun, stages: list[Stage]) -> None:
    width = max(len(stage.name) for stage in stages)
    minutes = 0.0
    for stage in stages:
        state = run.state(stage)
        takes = stage.settings.minutes
        minutes += takes or 0.0 if state != "done" else 0.0
        parents = f" from {', '.join(stage.parents)}" if stage.parents else ""
        duration = f", about {takes:g} min" if takes else ""
        print(f"{state:8} {stage.name:{width}}  {stage.kind}{parents}{duration}")
        print(f"{'':8} {'':{width}}  r1lab {shlex.join(stage.command[3:])}")
    print(f"{minutes:g} core-minutes left, from the measured duration of each stage")
