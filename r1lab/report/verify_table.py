"""Print the results of `r1lab verify`: a table and the failing responses.

Model text is never read as markup: it goes through `report.text.printable` into rich `Text`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from r1lab.report.text import printable
from r1lab.types import Outcome, ScoringFailure
from r1lab.verify.check import CHECKS, CheckReport, Tried

_EXPECTED = {"gold": "full score"}
_LONGEST = 120  # characters of an answer that are shown


def print_report(report: CheckReport, *, examples: int = 3, console: Console | None = None) -> None:
    """The table, at most `examples` failing responses of each kind, and faults likewise."""
    console = console or Console()
    table = Table("responses", "expected", "passed", "faults", "worst time")
    for check in CHECKS:
        tried = report.of(check)
        if not tried:
            table.add_row(check, _EXPECTED.get(check, "less"), "none could be made", "", "")
            continue
        num = sum(one.passed for one in tried)
        failed = num < len(tried) or (check == "hostile" and report.executed)
        table.add_row(
            check,
            _EXPECTED.get(check, "less"),
            Text(f"{num} of {len(tried)}", style="bold red" if failed else "green"),
            str(sum(isinstance(one.outcome, ScoringFailure) for one in tried)),
            f"{1000 * max(one.seconds for one in tried):.1f} ms",
        )
    console.print(table)
    for check in CHECKS:
        tried = report.of(check)
        _print_examples(console, "fails", [one for one in tried if not one.passed], examples)
        faults = [one for one in tried if one.passed and isinstance(one.outcome, ScoringFailure)]
        _print_examples(console, "fault", faults, examples)
    if report.executed:
        console.print(Text("hostile text was executed: the canary file was written", "bold red"))
    console.print(f"{report.per_second:,.0f} responses a second")


def as_dict(report: CheckReport) -> dict[str, Any]:
    """The report as plain values, for --json."""
    return {
        "passed": report.passed,
        "executed": report.executed,
        "per_second": round(report.per_second, 1),
        "checks": {
            check: {
                "responses": len(tried),
                "passed": sum(one.passed for one in tried),
                "faults": sum(isinstance(one.outcome, ScoringFailure) for one in tried),
                "worst_seconds": max((one.seconds for one in tried), default=None),
                "failing": [_row(one) for one in tried if not one.passed],
            }
            for check in CHECKS
            for tried in (report.of(check),)
        },
    }


def _row(one: Tried) -> dict[str, Any]:
    item = one.probe.item
    return {
        "problem": item.problem.id,
        "what": one.probe.what,
        "gold": item.problem.answer,
        "text": item.completion.text[:1000],
        "outcome": _said(one.outcome),
    }


def _print_examples(console: Console, word: str, tried: Sequence[Tried], examples: int) -> None:
    for one in tried[:examples]:
        item = one.probe.item
        line = Text(f"{word} ", style="bold red" if word == "fails" else "yellow")
        line.append(f"{one.probe.check}: {one.probe.what}", style="bold")
        line.append(f"\n  problem {_short(item.problem.id)}, gold {_short(item.problem.answer)}")
        line.append(f"\n  answer {_short(item.completion.answer)}")
        line.append(f"\n  {printable(_said(one.outcome))}")
        console.print(line)
    if len(tried) > examples:
        console.print(Text(f"  and {len(tried) - examples} more like this", style="dim"))


def _said(outcome: Outcome) -> str:
    if isinstance(outcome, ScoringFailure):
        return f"{outcome.kind}: {outcome.detail}"
    return f"score {outcome.score}" + (f" ({outcome.reason[:200]})" if outcome.reason else "")


def _short(text: str | None) -> str:
    if text is None:
        return "none"
    more = f"... ({len(text)} characters)" if len(text) > _LONGEST else ""
    return printable(repr(text[:_LONGEST])) + more
