"""The commands that read a run folder: `r1lab watch`."""

from __future__ import annotations

import argparse
import importlib.util

from r1lab.types import R1labError


def add_watch_options(parser: argparse.ArgumentParser) -> None:
    """The arguments of `r1lab watch`."""
    parser.set_defaults(takes_overrides=False)
    parser.add_argument("run", metavar="RUN", help="a run folder")
    parser.add_argument(
        "--every", type=float, default=2.0, metavar="SECONDS", help="between looks (default: 2)"
    )
    parser.add_argument("--once", action="store_true", help="show what is there, and leave")


def watch(options: argparse.Namespace, _: object) -> int:
    """`r1lab watch RUN`."""
    if importlib.util.find_spec("rich") is None:
        raise R1labError("rich is not installed here; install r1lab's extra [train]")
    if options.every <= 0:
        raise R1labError(f"--every: {options.every:g} must be above 0")
    from r1lab.report.watch import watch as watch_run

    watch_run(options.run, every=options.every, once=options.once)
    return 0
