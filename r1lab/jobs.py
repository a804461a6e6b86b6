"""Processes of r1lab run one after another or side by side, and going on where that stopped.

Each task is a process of its own, started as a user would start it, and leaves a file at its end
that says so: what has one is not done again.
"""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from r1lab.types import RunStopped

LogLine = Callable[[str], None]
Then = Callable[["Task"], "Iterable[Task]"]
_TURN = 0.5  # seconds between looks at the processes


@dataclass(frozen=True, slots=True)
class Task:
    """One process: `command` makes `done`, once all files of `needs` are there.

    Of those that could start, the one of the lowest `order` does.
    """

    label: str
    command: tuple[str, ...]
    done: Path
    log: Path
    needs: tuple[Path, ...] = ()
    order: int = 0

    @property
    def is_done(self) -> bool:
        return self.done.exists()


def run_tasks(
    tasks: Iterable[Task], *, jobs: int, threads: int, say: LogLine, then: Then | None = None
) -> list[Task]:
    """Run what is not done yet, `jobs` side by side with so many threads each; those that failed.

    `then` is called with each task that has come to its end, and returns what can be run since. A
    task that fails does not stop the others, but what needs it is left out. Interrupted (Ctrl-C
    or SIGTERM), it ends the processes in the way of a signal, which saves their runs, and raises
    KeyboardInterrupt.
    """
    waiting = [task for task in tasks if not task.is_done]
    total, running = len(waiting), dict[subprocess.Popen[bytes], tuple[Task, float]]()
    failed: list[Task] = []
    in_main = threading.current_thread() is threading.main_thread()  # others get no signals
    if in_main:
        before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        while waiting or running:
            for process in [p for p in running if p.poll() is not None]:
                task, began = running.pop(process)
                minutes = (time.monotonic() - began) / 60
                if task.is_done:
                    done = total - len(waiting) - len(running) - len(failed)
                    told = f"{done} of {total}" if then is None else f"{done} so far"
                    say(f"{task.label}: done in {minutes:.1f} min ({told})")
                    more = [] if then is None else [t for t in then(task) if not t.is_done]
                    waiting, total = waiting + more, total + len(more)
                else:
                    failed.append(task)
                    say(f"{task.label}: failed with exit code {process.returncode}: {_last(task)}")
            ready = [task for task in waiting if all(path.exists() for path in task.needs)]
            ready.sort(key=lambda task: task.order)
            for task in ready[: max(jobs - len(running), 0)]:
                waiting.remove(task)
                running[_start(task, threads)] = (task, time.monotonic())
                say(f"{task.label}: started")
            if waiting and not running and not ready:  # what they need has failed
                return [*failed, *waiting]
            time.sleep(_TURN)
    except BaseException:
        _end(list(running))
        raise
    finally:
        if in_main:
            signal.signal(signal.SIGTERM, before)
    return failed


def _start(task: Task, threads: int) -> subprocess.Popen[bytes]:
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": str(threads),
        # Threads that wait asleep: spinning ones slow a small model down on busy cores.
        "OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "PASSIVE"),
        "KMP_BLOCKTIME": os.environ.get("KMP_BLOCKTIME", "0"),
    }
    task.log.parent.mkdir(parents=True, exist_ok=True)
    with task.log.open("ab") as log:
        # In a session of its own: Ctrl-C reaches it once, through this driver.
        return subprocess.Popen(
            task.command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment,
            start_new_session=True,
        )  # fmt: skip


def _end(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    for process in processes:
        process.terminate()
    for process in processes:
        try:
            process.wait(120)
        except subprocess.TimeoutExpired:
            process.kill()


def _last(task: Task) -> str:
    """Return the last line of a task's log, where r1lab prints its error."""
    lines = task.log.read_text(encoding="utf-8", errors="replace").replace("\r", "\n").split("\n")
    written = [line.strip() for line in lines if line.strip()]
    return f"{written[-1][:300] if written else 'no output'} ({task.log})"


def check_failed(failed: Sequence[Task], total: int) -> None:
    """Raise RunStopped if tasks failed. Call it after all other results have been shown."""
    if failed:
        names = "; ".join(task.label for task in failed)
        raise RunStopped(
            f"{len(failed)} of {total} could not be run ({names}); see their logs, fix the cause "
            "and run the same command again"
        )
