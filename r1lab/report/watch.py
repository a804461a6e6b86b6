"""`r1lab watch RUN`: show a live run in the terminal from its files alone.

Nothing is asked of the training process: the run may be on another machine, with its folder
shared. Where the output is no terminal, each new step is one plain line.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import IO, TextIO

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from r1lab.report.facts import accuracy_part, figure_of, stopped_by
from r1lab.report.figures import duration, is_number, said, sparkline
from r1lab.report.text import printable
from r1lab.run_folder import RolloutRow, RunFolder

# What a row of the table shows: label, key of metrics.jsonl, form.
_ROWS = (
    ("reward", "reward", ".3f"),
    ("accuracy", "accuracy", ".3f"),
    ("length", "length", ".1f"),
    ("length, right", "length_right", ".1f"),
    ("length, wrong", "length_wrong", ".1f"),
    ("entropy", "entropy", ".3f"),
    ("groups without variance", "zero_variance", ".2f"),
    ("responses cut off", "truncated", ".2f"),
    ("no answer", "unanswered", ".2f"),
    ("KL(sampler, trainer)", "sync_kl", ".1e"),
)
_SPARK_WIDTH = 40
_NUM_EVENTS = 4
_SILENT = 300.0  # seconds without a step that are worth a word


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The contents of a run's files at one moment."""

    name: str
    total: int | None
    accuracy: str
    metrics: Sequence[RolloutRow]
    timings: Sequence[RolloutRow]
    evals: Sequence[RolloutRow]
    events: Sequence[RolloutRow]
    ended: bool
    stopped: str | None
    seconds_silent: float | None

    @property
    def step(self) -> int:
        """The last step that was written; 0 before the first."""
        return int(self.metrics[-1]["step"]) if self.metrics else 0

    @property
    def is_over(self) -> bool:
        """Whether the run has ended, unless it is resumed."""
        return self.ended or self.stopped is not None

    @property
    def seconds_left(self) -> float | None:
        """From the mean of the last twenty steps, without evaluations; None where none is known."""
        seconds = [row["total"] for row in self.timings[-20:] if is_number(row.get("total"))]
        if not seconds or self.total is None:
            return None
        return (self.total - self.step) * sum(seconds) / len(seconds)


def watch(
    run: str,
    *,
    every: float = 2.0,
    once: bool = False,
    console: Console | None = None,
    file: TextIO | None = None,
) -> None:
    """Show a run until it has ended or stopped, by what its files say, or is interrupted itself.

    every  seconds between reads of the files;  once  show the current state and exit
    Raises R1labError if there is no run folder.
    """
    folder = RunFolder.open(run)
    console = console or Console(file=file or sys.stdout)
    if once:
        console.print(render(look(folder)))
        return
    if not console.is_terminal:
        _write_lines(folder, console.file, every)
        return
    with Live(render(look(folder)), console=console, auto_refresh=False) as live:
        while not (snapshot := look(folder)).is_over:
            live.update(render(snapshot), refresh=True)
            time.sleep(every)
        live.update(render(snapshot), refresh=True)


def look(folder: RunFolder) -> Snapshot:
    """Read the files once."""
    recipe = folder.recipe()
    # The summary first: of a run that ends meanwhile, the next look shows the last steps too.
    ended = bool(folder.summary())
    evals, events, path = folder.evals(), folder.events(), folder.metrics_path
    return Snapshot(
        name=str(recipe.get("name", folder.path.name)),
        total=recipe.get("steps"),
        accuracy=figure_of(accuracy_part(folder, evals)),
        metrics=folder.metrics(),
        timings=folder.timings(),
        evals=evals,
        events=events,
        ended=ended,
        stopped=None if ended else stopped_by(events),
        seconds_silent=time.time() - path.stat().st_mtime if path.exists() else None,
    )


def _write_lines(folder: RunFolder, file: IO[str], every: float) -> None:
    """A line for each step that the files have gained, without control characters."""
    shown = 0
    while True:
        snapshot = look(folder)
        timings = {row["step"]: row for row in snapshot.timings}
        for row in snapshot.metrics:
            if row["step"] > shown:
                figures = said(row, timings.get(row["step"]), accuracy=snapshot.accuracy)
                total = "" if snapshot.total is None else f"/{snapshot.total}"
                file.write(f"{printable(snapshot.name)} step {row['step']}{total}  {figures}\n")
        file.flush()
        shown = max(shown, snapshot.step)
        if snapshot.is_over:
            if snapshot.stopped:
                file.write(f"{printable(snapshot.name)} {printable(snapshot.stopped)}\n")
            return
        time.sleep(every)


def render(snapshot: Snapshot) -> RenderableType:
    """The picture of a moment: how far, the figures with their course, held out, what happened."""
    pieces: list[RenderableType] = [_how_far(snapshot), Text(""), _figures(snapshot)]
    if snapshot.evals:
        pieces += [Text(""), _held_out(snapshot.evals)]
    if snapshot.events:
        pieces += [Text(""), *_happened(snapshot.events)]
    title = Text(printable(snapshot.name), style="bold")
    return Panel(Group(*pieces), title=title, title_align="left", border_style="dim")


def _how_far(snapshot: Snapshot) -> RenderableType:
    total = snapshot.total or max(snapshot.step, 1)
    words = [f"step {snapshot.step} of {snapshot.total or '?'}"]
    speed = snapshot.timings[-1].get("tokens_per_second") if snapshot.timings else None
    if is_number(speed):
        words.append(f"{speed:,.0f} tokens/s")
    if snapshot.ended:
        words.append("ended")
    elif snapshot.stopped is not None:
        words.append(printable(snapshot.stopped))
    elif snapshot.seconds_left is not None:
        words.append(f"{duration(snapshot.seconds_left)} left and the evaluations")
    bar = ProgressBar(total=total, completed=snapshot.step, width=_SPARK_WIDTH)
    silent = snapshot.seconds_silent
    if not snapshot.is_over and silent is not None and silent > _SILENT:
        words.append(f"no step for {duration(silent)}")
    grid = Table.grid()  # a bar alone ends no line
    grid.add_row(bar)
    grid.add_row(Text("   ".join(words)))
    return grid


def _figures(snapshot: Snapshot) -> RenderableType:
    if not snapshot.metrics:
        return Text("no step yet", style="dim")
    table = Table.grid(padding=(0, 2))
    for label, name, form in _ROWS:
        key = snapshot.accuracy if name == "accuracy" else name
        values = [row[key] for row in snapshot.metrics if is_number(row.get(key))]
        if values:
            table.add_row(
                Text(label, style="dim"),
                Text(f"{values[-1]:{form}}", justify="right"),
                Text(sparkline(values, _SPARK_WIDTH), style="cyan"),
            )
    for key, label in (("faults", "responses faulted"), ("skipped", "updates skipped")):
        num = sum(row.get(key) or 0 for row in snapshot.metrics)
        if num:
            last = snapshot.metrics[-1].get(key) or 0
            words = f"in all, {last:g} in the last step"
            table.add_row(Text(label, style="yellow"), Text(f"{num:g}"), Text(words, style="dim"))
    return table


def _held_out(evals: Sequence[RolloutRow]) -> RenderableType:
    table = Table("held out", "pass@1", f"cons@{evals[-1].get('k')}", "length", "well-formed",
                  box=None, padding=(0, 1, 0, 0), header_style="dim")  # fmt: skip
    shown = evals if len(evals) <= 4 else (evals[0], *evals[-3:])
    for row in shown:
        scores = row["overall"]
        table.add_row(
            f"step {row['step']}",
            _estimate(scores.get("pass_at_1"), ".2f"),
            _estimate(scores.get("cons_at_k"), ".2f"),
            _estimate(scores.get("length"), ".0f"),
            _estimate(scores.get("format"), ".2f"),
        )
    return table


def _estimate(estimate: RolloutRow | None, form: str) -> str:
    if not estimate:
        return "none"
    return f"{estimate['value']:{form}} [{estimate['low']:{form}}, {estimate['high']:{form}}]"


def _happened(events: Sequence[RolloutRow]) -> list[RenderableType]:
    lines: list[RenderableType] = []
    for event in events[-_NUM_EVENTS:]:
        message = "  ".join(
            str(value) if key in ("text", "verdict") else f"{key} {value}"
            for key, value in event.items()
            if key not in ("time", "event") and not isinstance(value, dict | list)
        )
        lines.append(
            Text.assemble(
                (f"{printable(str(event.get('time', '')))}  ", "dim"),
                (printable(str(event.get("event", ""))), "bold"),
                f"  {printable(message)}",
            )
        )
    return lines
