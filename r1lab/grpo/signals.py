"""Signals that ask a run to stop: Ctrl-C, SIGTERM, the warning that Slurm sends before it, and a
terminal that has gone.

The first one stops the run at the next moment from which it can go on exactly; the second one ends
the process as if nobody listened. A launcher passes on what the terminal has sent already, so a
signal within a second of the first counts as the same.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Self

from r1lab.types import Interrupted

# SIGUSR1: what batch systems send ahead of a time limit where they are asked for it. SIGHUP: the
# terminal has gone.
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)
_IGNORABLE = (signal.SIGINT, signal.SIGHUP)
SAME_SIGNAL_SECONDS = 1.0


class StopSignals:
    """Listens while it is entered: raises `Interrupted` at once, or from `hold` on at `release`.

    With `at_once` False (several processes, which must stop at the same step) a signal is only
    noted in `requested`.
    """

    def __init__(self, *, at_once: bool = True) -> None:
        self.requested: str | None = None
        self._at_once, self._held, self._when = at_once, False, 0.0
        self._before: dict[signal.Signals, signal._HANDLER] = {}

    def __enter__(self) -> Self:
        # Python runs handlers in the main thread alone, and takes them from nowhere else.
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                # What the parent ignores on purpose (nohup, a shell's background job) stays so.
                if number not in _IGNORABLE or signal.getsignal(number) is not signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._receive)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:  # fmt: skip
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @property
    def is_held(self) -> bool:
        """Whether a signal would wait."""
        return self._held

    def hold(self) -> None:
        """From here on nothing may be cut short: a signal waits for `release`."""
        self._held = True

    def release(self) -> None:
        """The run can be gone on from here; raises Interrupted for a signal that waited."""
        self._held = False
        if self.requested and self._at_once:
            raise Interrupted(self.requested)

    @contextmanager
    def held(self) -> Iterator[None]:
        """`hold` around what is inside, and `release` after it if nobody holds already."""
        was_held = self._held
        self.hold()
        yield
        if not was_held:
            self.release()

    def _receive(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.requested is None:
            self.requested, self._when = signal.Signals(number).name, now
            if self._at_once and not self._held:
                raise Interrupted(self.requested)
        elif now - self._when > SAME_SIGNAL_SECONDS:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
