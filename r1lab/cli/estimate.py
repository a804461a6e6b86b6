"""The command `r1lab estimate`, and the lines of it that a dry run shows."""

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
    """The arguments of `r1lab estimate`."""
    parser.usage = f"{parser.prog} RECIPE [options] [--section.key VALUE ...]"
    parser.add_argument("recipe", metavar="RECIPE", help="a YAML file, a run folder or a name")
    parser.add_argument(
        "--gpus", metavar="NxNAME", help="8xH100, RTX4090, ..., cpu (default: this machine's)"
    )
    parser.add_argument(
        "--price", type=positive, help="dollars an hour of one (default: what is usual)"
    )
    parser.add_argument(
        "--mean-tokens", type=positive, help="of a response, on average (default: a guess)"
    )
    parser.add_argument(
        "--layout", choices=("replicated", "sharded", "megatron"),
        help="how the trainer is spread (default: the first of the first two that fits)",
    )  # fmt: skip
    parser.add_argument("--json", metavar="FILE", help="write all of it there too")
    parser.epilog = (
        "No weights are read, and nothing is fetched. model.path may also be v3 or lite, for "
        "DeepSeek-V3's and V2-Lite's shapes."
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
    found = estimate_recipe(
        recipe, cluster, price=options.price, mean=options.mean_tokens, layout=options.layout
    )
    print(table(found))
    if options.json:
        Path(options.json).write_text(json.dumps(found.as_dict(), indent=1) + "\n")
    return 0


def print_brief(recipe: TrainRecipe) -> None:
    """The estimate on this machine in three lines, or the one line of why there is none."""
    from r1lab.estimate.hardware import local_cluster
    from r1lab.estimate.recipe import estimate_recipe
    from r1lab.estimate.table import brief

    try:
        print(brief(estimate_recipe(recipe, local_cluster())))
    except R1labError as error:  # a hub's model is not fetched for a dry run
        print(f"no estimate: {error}")
