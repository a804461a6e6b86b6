"""Signals that ask a run to stop: Ctrl-C, SIGTERM, Slurm's warning signal and a closed terminal.

The first signal stops the run at the next point from which it can resume exactly; the second one
ends the process with the default action. A launcher forwards signals that the terminal has already
sent, so a signal within a second of the first counts as the same one.
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

# SIGUSR1: batch systems send it before a time limit, if configured. SIGHUP: terminal closed.
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)
_IGNORABLE = (signal.SIGINT, signal.SIGHUP)
SAME_SIGNAL_SECONDS = 1.0


class StopSignals:
    """Raise `Interrupted` on a signal: at once, or at `release` if it arrives after `hold`.

    With `at_once` False (several processes, which must stop at the same step) a signal is only
    recorded in `requested`.
    """

    def __init__(self, *, at_once: bool = True) -> None:
        self.requested: str | None = None
        self._at_once, self._held, self._when = at_once, False, 0.0
        self._before: dict[signal.Signals, signal._HANDLER] = {}

    def __enter__(self) -> Self:
        # Python runs signal handlers, and allows setting them, only in the main thread.
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                # Signals that the parent ignores (nohup, a background job) stay ignored.
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
        """Whether a signal would be deferred."""
        return self._held

    def hold(self) -> None:
        """Defer signals until `release`: no work may be interrupted from here on."""
        self._held = True

    def release(self) -> None:
        """Stop deferring: the run can resume from here. Raises Interrupted if one arrived."""
        self._held = False
        if self.requested and self._at_once:
            raise Interrupted(self.requested)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Call `hold` on entry, and `release` on exit unless signals were already held."""
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
