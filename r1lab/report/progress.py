"""What a run says while it goes: a bar in a terminal, plain lines everywhere else.

In a terminal the bar stays at the bottom and is drawn anew each step. In a file or a pipe each step
is one line, without any control character. Both say the same figures and the time left.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import Any, TextIO

from r1lab.report.figures import duration, said
from r1lab.report.text import printable


class Progress:
    """Says each step of a run.

    total     steps of the whole run; `initial` of them were done before (a resumed run)
    accuracy  the part of the verdict that tells right from wrong (`Verifiers.accuracy`)
    disable   say nothing at all (every process but the main one)
    file      where to; None: standard error
    """

    def __init__(
        self,
        total: int,
        initial: int = 0,
        name: str = "",
        *,
        accuracy: str = "accuracy",
        disable: bool = False,
        file: TextIO | None = None,
    ) -> None:
        self._total, self._done, self._initial = total, initial, initial
        self._name, self._accuracy, self._disable = printable(name), accuracy, disable
        self._file = sys.stderr if file is None else file
        self._began = time.monotonic()
        self._bar: Any = None
        if not disable and self._file.isatty():
            from tqdm import tqdm

            self._bar = tqdm(
                total=total, initial=initial, desc=self._name, file=self._file, dynamic_ncols=True,
                bar_format="{desc} {n_fmt}/{total_fmt} |{bar:20}|{postfix}",
            )  # fmt: skip

    def step(self, metrics: Mapping[str, Any], timings: Mapping[str, Any] | None = None) -> None:
        """A step is done: its line of metrics.jsonl, and that of timings.jsonl where there is one.

        The time left is reckoned from all time since the start, evaluations included.
        """
        if self._disable:
            return
        self._done += 1
        pace = (time.monotonic() - self._began) / (self._done - self._initial)
        figures = said(metrics, timings, accuracy=self._accuracy)
        left = f"{duration(pace * (self._total - self._done))} left"
        if self._bar is None:
            self.say(f"{self._name} step {self._done}/{self._total}  {figures}  {left}".lstrip())
        else:
            self._bar.set_postfix_str(f"{figures}  {left}", refresh=False)
            self._bar.update()

    def say(self, line: str) -> None:
        """A line of its own: above the bar in a terminal."""
        if self._disable:
            return
        text = printable(line).replace("\n", " ")
        if self._bar is None:
            self._file.write(text + "\n")
            self._file.flush()
        else:
            self._bar.write(text, file=self._file)

    def close(self) -> None:
        """Leave the terminal as it was found; the last state of the bar stays. May be repeated."""
        if self._bar is not None:
            self._bar.close()
