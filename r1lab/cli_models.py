"""The commands about models as they stand: `r1lab lineage`."""

from __future__ import annotations

import argparse
import json


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
