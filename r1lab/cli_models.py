"""The commands about models as they stand: `r1lab lineage` and `r1lab export`."""

from __future__ import annotations

import argparse
import importlib.util
import json
from typing import TYPE_CHECKING

from r1lab.types import R1labError

if TYPE_CHECKING:
    from r1lab.evaluate.target import Target
    from r1lab.recipe_io import Override


def add_lineage_options(parser: argparse.ArgumentParser) -> None:
    """The arguments of `r1lab lineage`."""
    parser.set_defaults(takes_overrides=False)
    parser.add_argument(
        "model", metavar="MODEL",
        help="a model's folder, a run folder (its newest checkpoint), a checkpoint, a dataset, or "
        "a shipped base",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print the records instead")
    parser.epilog = (
        "pass@1 stands with its interval where an evaluation was kept. `changed since`: the files\n"
        "are no longer those that were recorded; `gone`: they are not there."
    )


def lineage(options: argparse.Namespace, _: object) -> int:
    """`r1lab lineage MODEL`."""
    from r1lab.lineage import lineage_tree, tree_lines

    tree = lineage_tree(options.model)
    if options.json:
        print(json.dumps(tree.as_dict(), indent=1))
    else:
        print("\n".join(tree_lines(tree)))
    return 0


def add_export_options(parser: argparse.ArgumentParser) -> None:
    """The arguments of `r1lab export`."""
    _add_model(parser)
    parser.add_argument("--out", metavar="FOLDER", required=True, help="a new folder for it")
    _add_prompt(parser)
    parser.add_argument(
        "--dtype", choices=["bfloat16", "float32"], help="of the weights (as they are)"
    )
    parser.add_argument("--gguf-file", metavar="FILE", help="in MODEL, when it holds a GGUF")


def export(options: argparse.Namespace, overrides: list[Override]) -> int:
    """`r1lab export MODEL --out FOLDER`."""
    target = _target(options, overrides)
    from r1lab.stages.export import export_model

    out = export_model(
        target, options.out, template=options.template, dtype=options.dtype,
        gguf_file=options.gguf_file,
    )  # fmt: skip
    print(
        f"{out}: an ordinary Hugging Face folder; README.md is its card, lineage.json its descent"
    )
    return 0


def _add_model(parser: argparse.ArgumentParser, more: str = "") -> None:
    parser.usage = f"{parser.prog} MODEL [options] [--section.key VALUE ...]"
    parser.add_argument(
        "model", metavar="MODEL",
        help="a run folder (its trained model), a recipe (its base), a checkpoint, an adapter, a "
        f"model's folder, a shipped base, a hub name{more}",
    )  # fmt: skip


def _add_prompt(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--template", default="auto", metavar="NAME",
        help="how it is asked: auto, chat, r1-zero, compact, plain, ... (auto: as trained, else "
        "its own chat template)",
    )  # fmt: skip


def _target(options: argparse.Namespace, overrides: list[Override]) -> Target:
    if importlib.util.find_spec("torch") is None:
        raise R1labError("torch is not installed here; install r1lab's extra [cpu] or [gpu]")
    from r1lab.evaluate.target import find_target

    return find_target(options.model, overrides)
