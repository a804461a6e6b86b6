"""The command `r1lab doctor`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from r1lab.doctor.records import Report

CANNOT_TRAIN = 2  # exit code if something required for training is missing

_SIGNS = {"ok": "ok", "warning": "WARN", "missing": "MISSING"}


def add_doctor_options(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `r1lab doctor`."""
    parser.set_defaults(takes_overrides=False)
    parser.add_argument("--json", metavar="FILE", help="also write all findings to FILE")
    parser.epilog = f"Exits with code {CANNOT_TRAIN} if something required for training is missing."


def doctor(options: argparse.Namespace, _: object) -> int:
    """`r1lab doctor`."""
    from r1lab.cli.checks import check_writable_file
    from r1lab.doctor.examine import examine

    if options.json:
        check_writable_file(options.json, "--json")
    report = examine()
    if options.json:
        Path(options.json).write_text(json.dumps(report.as_dict(), indent=1) + "\n")
    _print(report)
    return 0 if report.can_train else CANNOT_TRAIN


def _print(report: Report) -> None:
    for finding in report.findings:
        print(f"{_SIGNS[finding.level]:8} {finding.name:14} {finding.found}")
        if finding.fix:
            print(f"{'':23} -> {finding.fix}")
    print("\nthis machine can train" if report.can_train else "\nthis machine cannot train yet")
