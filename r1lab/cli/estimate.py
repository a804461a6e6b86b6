"""The command `r1lab estimate`, and its summary in a dry run."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from r1lab.cli.arguments import positive
from r1lab.types import R1labError

if TYPE_CHECKING:
    from r1lab.config.reading import Override
    from r1lab.config.recipe import TrainRecipe


def add_estimate_options(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `r1lab estimate`."""
    parser.usage = f"{parser.prog} RECIPE [options] [--section.key VALUE ...]"
    parser.add_argument("recipe", metavar="RECIPE", help="a YAML file, a run folder or a name")
    parser.add_argument(
        "--gpus",
        metavar="NxNAME",
        help="hardware: 8xH100, RTX4090, ..., cpu (default: this machine)",
    )
    parser.add_argument(
        "--price", type=positive, help="US dollars per device-hour (default: a typical price)"
    )
    parser.add_argument(
        "--mean-tokens", type=positive, help="mean tokens per response (default: a guess)"
    )
    parser.add_argument(
        "--layout", choices=("replicated", "sharded", "megatron"),
        help="how the trainer is distributed (default: replicated if it fits, else sharded)",
    )  # fmt: skip
    parser.add_argument("--json", metavar="FILE", help="also write the full estimate to FILE")
    parser.epilog = (
        "Reads no weights and downloads nothing. model.path may also be v3 or lite, the shapes of "
        "DeepSeek-V3 and V2-Lite."
    )


def estimate(options: argparse.Namespace, overrides: list[Override]) -> int:
    """`r1lab estimate`."""
    from r1lab.cli.checks import check_writable_file
    from r1lab.config.reading import load_recipe
    from r1lab.config.recipe import TrainRecipe
    from r1lab.estimate.hardware import local_cluster, parse_gpus
    from r1lab.estimate.recipe import estimate_recipe
    from r1lab.estimate.table import table

    if options.json:
        check_writable_file(options.json, "--json")
    recipe = load_recipe(options.recipe, overrides, schema=TrainRecipe)
    cluster = parse_gpus(options.gpus) if options.gpus else local_cluster()
    result = estimate_recipe(
        recipe, cluster, price=options.price, mean=options.mean_tokens, layout=options.layout
    )
    print(table(result))
    if options.json:
        Path(options.json).write_text(json.dumps(result.as_dict(), indent=1) + "\n")
    return 0


def print_brief(recipe: TrainRecipe) -> None:
    """Print the estimate for this machine in three lines, or one line why there is none."""
    from r1lab.estimate.hardware import local_cluster
    from r1lab.estimate.recipe import estimate_recipe
    from r1lab.estimate.table import brief

    try:
        print(brief(estimate_recipe(recipe, local_cluster())))
    except R1labError as error:  # a dry run does not download a model from the hub
        print(f"no estimate: {error}")
