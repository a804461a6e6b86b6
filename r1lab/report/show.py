"""`r1lab show RUN`: samples of a run in the terminal, group by group.

Model text is never read as markup: it goes through `report.text.printable` into rich `Text`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby, islice

from rich.console import Console, Group, RenderableType
from rich.panel import Panel
from rich.rule import Rule
from rich.text import Text

from r1lab.prompts import THINK_CLOSE
from r1lab.report.facts import accuracy_part
from r1lab.report.text import printable
from r1lab.run_folder import RolloutRow, RunFolder
from r1lab.types import R1labError


def show(
    run: str,
    *,
    step: int | None = None,
    problem: str | None = None,
    num: int = 3,
    samples: int = 2,
    console: Console | None = None,
) -> None:
    """Print `num` groups of a step's rollouts with at most `samples` responses of each.

    step     None: the last one that was kept
    problem  an id, or the start of one: only those problems, with all their responses
    Of a group, the best and the worst scored responses are shown first. Raises R1labError, one
    line, for a run, a step or a problem that is not there.
    """
    folder = RunFolder.open(run)
    console = console or Console()
    steps = folder.rollout_steps()
    if step is None:
        if not steps:
            raise R1labError(f"{folder.path} has no rollouts yet")
        step = steps[-1]
    groups = list(_groups(folder.rollouts(step)))
    if problem is not None:
        groups = [group for group in groups if group[0]["problem_id"].startswith(problem)]
        if not groups:
            raise R1labError(
                f"step {step} of {folder.path} asked no problem {problem!r}; another step may have"
            )
    accuracy = accuracy_part(folder, folder.evals())
    console.print(
        Rule(Text(f"{printable(str(folder.path))}  step {step} of {steps[-1]}", style="bold"))
    )
    for group in islice(groups, num):
        console.print(_render_group(group, accuracy, None if problem is not None else samples))
    hidden = len(groups) - num
    if hidden > 0:
        console.print(Text(f"{hidden} more groups: --num, --problem ID, --step N", style="dim"))


def _groups(rows: Sequence[RolloutRow]) -> Iterator[list[RolloutRow]]:
    for _, rows_of_group in groupby(rows, key=lambda row: row["group"]):
        yield list(rows_of_group)


def _render_group(rows: Sequence[RolloutRow], accuracy: str, samples: int | None) -> RenderableType:
    first = rows[0]
    scores = [row["score"] for row in rows if row["score"] is not None]
    mean = f"{sum(scores) / len(scores):.2f}" if scores else "none"
    faulted = sum(row["fault"] is not None for row in rows)
    without = f", without {faulted} that faulted" if faulted else ""
    head = Text.assemble(
        (printable(first["question"]), "bold"),
        "\n",
        ("gold  ", "dim"),
        printable(first["gold"]),
        (f"    {len(rows)} responses, mean score {mean}{without}", "dim"),
    )
    shown = _extremes(rows)[:samples]
    title = Text(" ".join(filter(None, (first["source"], first["problem_id"]))))
    left_out = len(rows) - len(shown)
    foot = Text(f"{left_out} more", style="dim") if left_out else None
    return Panel(
        Group(head, *(_render_response(row, accuracy) for row in shown)),
        title=Text(printable(title.plain)),
        title_align="left",
        subtitle=foot,
        subtitle_align="right",
        border_style="dim",
    )


def _extremes(rows: Sequence[RolloutRow]) -> list[RolloutRow]:
    """Best, worst, second best, second worst, ...: what an advantage is made of."""
    order = sorted(rows, key=lambda row: -(float("-inf") if row["score"] is None else row["score"]))
    turns: list[RolloutRow] = []
    while order:
        turns.append(order.pop(0))
        if order:
            turns.append(order.pop())
    return turns


def _render_response(row: RolloutRow, accuracy: str) -> RenderableType:
    if row["fault"]:
        mark, style, verdict = "!", "yellow", printable(row["fault"])
    elif row["score"] is None:
        mark, style, verdict = "-", "dim", "no reward applies"
    else:
        right = row["parts"].get(accuracy, 0.0) >= 1.0
        mark, style = ("+", "green") if right else ("x", "red")
        parts = "  ".join(f"{printable(name)} {value:g}" for name, value in row["parts"].items())
        verdict = f"score {row['score']:g}   {parts}"
    facts = f"{row['length']} tokens"
    if row["finish_reason"] != "stop":
        facts += ", cut off" if row["finish_reason"] == "length" else f", {row['finish_reason']}"
    if row["advantage"] is not None:
        facts += f", advantage {row['advantage']:+.2f}"
    if row.get("carried_over"):  # folders written by older versions have no such column
        facts += ", sampled in an earlier step"
    line = Text.assemble((f"{mark} {verdict}", style), (f"   {facts}", "dim"))
    pieces: list[RenderableType] = [Rule(style="dim"), line]
    if row["reason"]:
        pieces.append(Text(printable(row["reason"]), style="italic"))
    pieces.append(_render_text(row["prefix"], row["text"]))
    return Group(*pieces)


def _render_text(prefix: str, text: str) -> Text:
    """The response with its thinking part dimmed: everything up to the last `</think>`."""
    thinking, closed, rest = (prefix + text).rpartition(THINK_CLOSE)
    if not closed:
        return Text(printable(rest), style="dim" if prefix else "")
    return Text.assemble((printable(thinking + closed), "dim"), printable(rest))
