"""Bound the printed output of rewards: show the first lines, then only the number of lines.

A reward is called for every response of a run, so a line each is a flood that hides everything
else. What workers print arrives through a pipe, and so does what C code and child processes print
there; in this process only Python's own sys.stdout and sys.stderr pass through here.
"""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Iterator
from typing import Any, TextIO

SHOWN_LINES = 20
_LONGEST = 500  # characters of a line that are shown


class Bounded:
    """Forward the first lines to stderr; report the count at each power of ten."""

    def __init__(self) -> None:
        self.num_lines, self._next, self._said = 0, 10 * SHOWN_LINES, SHOWN_LINES
        self._part, self._lock = "", threading.Lock()

    def add(self, text: str) -> None:
        """Some printed text, not always whole lines."""
        with self._lock:
            *lines, part = (self._part + text).split("\n")
            self._part = part[: 2 * _LONGEST]
            for line in lines[: max(SHOWN_LINES - self.num_lines, 0)]:
                _say(line if len(line) <= _LONGEST else f"{line[:_LONGEST]}... (cut)")
            self.num_lines += len(lines)
            if self.num_lines >= self._next:
                while self.num_lines >= self._next:
                    self._next *= 10
                self._summarise("so far ")

    def close(self) -> None:
        """Report the final number of lines."""
        with self._lock:
            if self._part and self.num_lines < SHOWN_LINES:
                _say(self._part[:_LONGEST])
            self.num_lines += bool(self._part)
            self._part = ""
            if self.num_lines > self._said:
                self._summarise("")

    def _summarise(self, when: str) -> None:
        self._said = self.num_lines
        _say(f"rewards {when}printed {self.num_lines:,} lines; the first {SHOWN_LINES} are shown")


def _say(line: str) -> None:
    with contextlib.suppress(OSError, ValueError):  # stderr is closed
        print(line, file=_real(sys.stderr), flush=True)


class _Stream:
    """Replace a stream of this process: output of the given thread goes to `bounded`."""

    def __init__(self, stream: TextIO, bounded: Bounded) -> None:
        self.stream, self._bounded, self._thread = stream, bounded, threading.get_ident()

    def write(self, text: str) -> int:
        # A debugger in a reward talks through these streams: all of that is shown.
        if threading.get_ident() != self._thread or sys.gettrace() is not None:
            return self.stream.write(text)
        self._bounded.add(text)
        return len(text)

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def _real(stream: Any) -> TextIO:
    while isinstance(stream, _Stream):
        stream = stream.stream
    real: TextIO = stream
    return real


@contextlib.contextmanager
def bounded_output(bounded: Bounded) -> Iterator[None]:
    """Send this thread's printed output to `bounded` within the context."""
    streams: Any = (_Stream(sys.stdout, bounded), _Stream(sys.stderr, bounded))
    sys.stdout, sys.stderr = streams
    try:
        yield
    finally:
        # A reward, or another thread that judges, may have put streams of its own there since.
        if sys.stdout is streams[0]:
            sys.stdout = streams[0].stream
        if sys.stderr is streams[1]:
            sys.stderr = streams[1].stream
