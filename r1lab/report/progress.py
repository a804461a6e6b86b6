"""Progress of a run: a bar in a terminal, plain lines otherwise.

In a terminal the bar stays at the bottom and is drawn anew each step. In a file or a pipe each step
is one line, without any control character. Both show the same metrics and the time left.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import Any, TextIO

from r1lab.report.figures import duration, said
from r1lab.report.text import GuardedStream, printable

_BAR = "{desc} {n_fmt}/{total_fmt} |{bar:8}|"


class Progress:
    """Print each step and other messages of a run.

    total     steps of the whole run
    disable   print nothing (every process but the main one)
    lines     where lines go; None: standard output
    terminal  where the bar is drawn, if that is a terminal; None: standard error
    """

    def __init__(
        self,
        total: int,
        name: str = "",
        *,
        disable: bool = False,
        lines: TextIO | None = None,
        terminal: TextIO | None = None,
    ) -> None:
        self._total, self._name, self._disable = total, printable(name), disable
        # Training does not depend on being read, also where a program calls it.
        self._lines: Any = GuardedStream(lines or sys.stdout)
        self._terminal: Any = GuardedStream(terminal or sys.stderr)
        self._initial = self._done = 0
        self._accuracy, self._began = "accuracy", time.monotonic()
        self._bar: Any = None

    def start(self, initial: int = 0, *, accuracy: str = "accuracy") -> None:
        """Start the steps; `initial` of them were done before (a resumed run).

        `accuracy` is the figure of metrics.jsonl that tells right from wrong.
        """
        self._initial = self._done = initial
        self._accuracy, self._began = accuracy, time.monotonic()
        if not self._disable and self._terminal.isatty():
            from tqdm import tqdm

            self._bar = tqdm(
                total=self._total, initial=initial, desc=self._name, file=self._terminal,
                dynamic_ncols=True, bar_format=_BAR,
            )  # fmt: skip

    def step(self, metrics: Mapping[str, Any], timings: Mapping[str, Any] | None = None) -> None:
        """Report a finished step: its line of metrics.jsonl, and of timings.jsonl if present.

        The time left is reckoned from all time since the start, evaluations included.
        """
        if self._disable:
            return
        self._done += 1
        pace = (time.monotonic() - self._began) / (self._done - self._initial)
        figures = said(metrics, timings, accuracy=self._accuracy)
        left = f"{duration(pace * (self._total - self._done))} left"
        if self._bar is None:
            self.say(f"step {self._done}/{self._total}  {figures}  {left}")
        else:
            # What is said last is cut off first in a narrow terminal.
            self._bar.bar_format = f"{_BAR} {left}  {figures}"
            self._bar.update()

    def say(self, line: str) -> None:
        """A line of its own, with the run's name before it: above the bar in a terminal."""
        if self._disable:
            return
        text = printable(f"{self._name}: {line}" if self._name else line).replace("\n", " ")
        if self._bar is None:
            self._lines.write(text + "\n")
            self._lines.flush()
        else:
            self._bar.write(text, file=self._lines)

    def close(self) -> None:
        """Leave the terminal as it was found; the last state of the bar stays. May be repeated."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None
