"""The commands that read run folders: `r1lab watch` and `r1lab report`."""

from __future__ import annotations

import argparse
import importlib.util

from r1lab.cli.arguments import positive, whole
from r1lab.types import R1labError


def add_watch_options(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `r1lab watch`."""
    parser.set_defaults(takes_overrides=False)
    parser.add_argument("run", metavar="RUN", help="a run folder")
    parser.add_argument(
        "--every",
        type=positive,
        default=2.0,
        metavar="SECONDS",
        help="refresh interval (default: 2)",
    )
    parser.add_argument("--once", action="store_true", help="print the current state and exit")


def watch(options: argparse.Namespace, _: object) -> int:
    """`r1lab watch RUN`."""
    if importlib.util.find_spec("rich") is None:
        raise R1labError("rich is not installed here; install r1lab's extra [train]")
    from r1lab.report.watch import watch as watch_run

    watch_run(options.run, every=options.every, once=options.once)
    return 0


def add_report_options(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `r1lab report`."""
    parser.set_defaults(takes_overrides=False)
    parser.add_argument(
        "runs", metavar="RUN", nargs="+", help="run folders, overlaid in one report"
    )
    parser.add_argument(
        "--output", metavar="FILE",
        help="file to write (default: report.html in the run folder; for several runs, in the "
        "current folder)",
    )  # fmt: skip
    parser.add_argument(
        "--samples", type=whole(0), default=100_000, metavar="N",
        help="maximum number of transcripts; 0: none (default: 100,000)",
    )  # fmt: skip
    parser.add_argument(
        "--price", type=positive, metavar="DOLLARS",
        help="price of the machine in US dollars per hour, used to estimate cost",
    )  # fmt: skip
    parser.add_argument(
        "--watts", type=positive, metavar="W",
        help="power draw of the machine in watts, used to estimate energy",
    )  # fmt: skip
    parser.epilog = (
        "Writes one HTML file that needs no network: curves with intervals, every sample with its\n"
        "verdict, settings, versions and cost. It can be written while a run is in progress."
    )


def report(options: argparse.Namespace, _: object) -> int:
    """`r1lab report RUN...`."""
    if importlib.util.find_spec("pyarrow") is None:
        raise R1labError("pyarrow is not installed here; install r1lab's extra [train]")
    from r1lab.report.html import write_report

    path = write_report(
        options.runs, options.output, price=options.price, watts=options.watts,
        max_samples=options.samples,
    )  # fmt: skip
    print(f"{path}: {path.stat().st_size / 2**20:.1f} MiB; open it in a browser")
    return 0
