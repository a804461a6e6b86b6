"""Start, monitor and kill the worker processes from the training process.

The fork server (`r1lab.verify.forkserver`) reports deaths. They are not read from the workers'
sockets, which a child of a reward may hold open.
"""

from __future__ import annotations

import itertools
import json
import os
import selectors
import socket
import subprocess
import sys
import weakref
from dataclasses import dataclass

from r1lab.types import R1labError
from r1lab.verify.forkserver import MAX_MESSAGE
from r1lab.verify.output import Bounded
from r1lab.verify.protocol import Inbox, Status

_START = (
    "import sys; sys.path[:] = sys.argv[2:]; "
    "from r1lab.verify.forkserver import main; main(int(sys.argv[1]))"
)
_SEND_SECONDS = 60  # a worker that accepts no work for this long is lost


@dataclass(frozen=True, slots=True)
class Worker:
    """One worker process. `connection` carries jobs to it and replies back into `inbox`."""

    id: int
    connection: socket.socket
    status: Status
    inbox: Inbox

    def fileno(self) -> int:
        return self.connection.fileno()


@dataclass(frozen=True, slots=True)
class Event:
    """An event of a worker: it sent data (`died` is None), or it died for this reason."""

    worker: Worker
    died: str | None = None


class Pool:
    """Worker processes of one fork server. Not thread-safe."""

    def __init__(self) -> None:
        if sys.platform != "linux":
            raise R1labError("rewards are isolated on Linux only; set `isolate: false` for them")
        self._ids = itertools.count(1)
        self._workers: dict[int, Worker] = {}
        self._selector = selectors.DefaultSelector()
        self._commands, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.output = Bounded()
        # What workers print is read here, so that it is bounded and mixes with no command's output.
        self._prints, prints = os.pipe()
        os.set_blocking(self._prints, False)
        with theirs, open(prints, "wb") as printing:
            # A session of its own: Ctrl-C reaches this process alone, which then ends the others.
            self._nursery = subprocess.Popen(
                [sys.executable, "-c", _START, str(theirs.fileno()), *map(str, sys.path)],
                stdin=subprocess.DEVNULL,
                stdout=printing,
                stderr=printing,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
                env=_environment(),
            )
        self._selector.register(self._commands, selectors.EVENT_READ)
        self._selector.register(self._prints, selectors.EVENT_READ, self._prints)
        self._end = weakref.finalize(self, _end, os.getpid(), self._commands, self._nursery)

    def start(self) -> Worker:
        """Start a new worker. Raises BrokenPipeError if the fork server has died."""
        ours, theirs = socket.socketpair()
        status = Status.create()
        number = next(self._ids)
        try:
            self._tell({"do": "fork", "id": number}, [theirs.fileno(), status])
            # Waiting for room to send has an end; receiving never waits.
            seconds = _SEND_SECONDS.to_bytes(8, sys.byteorder) + bytes(8)
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, seconds)
            worker = Worker(number, ours, Status(status), Inbox(ours))
        finally:
            theirs.close()
            os.close(status)
        self._workers[number] = worker
        self._selector.register(ours, selectors.EVENT_READ, worker)
        return worker

    def preload(self, module: str) -> None:
        """Preload this module for workers that are started from now on."""
        self._tell({"do": "preload", "module": module})

    def kill(self, worker: Worker) -> None:
        """Kill a worker and its process group, without an event."""
        if self._forget(worker):
            self._tell({"do": "kill", "id": worker.id})

    def wait(self, seconds: float) -> list[Event]:
        """Wait for at least one event; return none if the time runs out.

        Raises BrokenPipeError if the fork server has died, and every worker with it.
        """
        events, reported = [], False
        for key, _ in self._selector.select(max(seconds, 0)):
            if key.data is None:
                reported = True
            elif key.data is self._prints:
                self._read_prints()
            else:
                events.append(Event(key.data))
        # Deaths last: what a worker sent before it died counts.
        return events + (self._deaths() if reported else [])

    def ignore(self, worker: Worker) -> None:
        """Stop reading from this worker: its connection has closed and its death will follow."""
        if worker.connection in self._selector.get_map():
            self._selector.unregister(worker.connection)

    def close(self) -> None:
        """End all processes; returns when they have gone."""
        for worker in list(self._workers.values()):
            self._forget(worker)
        self._selector.close()
        self._end()
        while self._read_prints():
            pass
        os.close(self._prints)
        self.output.close()

    def _read_prints(self) -> bool:
        """Read some printed output of the workers; return whether there may be more."""
        try:
            data = os.read(self._prints, 2**16)
        except BlockingIOError:
            return False
        if not data and self._prints in (self._selector.get_map() or ()):
            self._selector.unregister(self._prints)
        self.output.add(data.decode(errors="replace"))
        return bool(data)

    def _deaths(self) -> list[Event]:
        deaths: list[Event] = []
        while True:
            try:
                message = self._commands.recv(MAX_MESSAGE, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return deaths
            except OSError:
                message = b""
            if not message:
                raise BrokenPipeError("the fork server has died")
            said = json.loads(message)
            worker = self._workers.get(said["id"])
            if worker is not None:
                deaths.append(Event(worker, said["died"]))

    def _forget(self, worker: Worker) -> bool:
        if self._workers.pop(worker.id, None) is None:
            return False
        self.ignore(worker)
        worker.connection.close()
        return True

    def _tell(self, message: dict[str, object], descriptors: list[int] | None = None) -> None:
        socket.send_fds(self._commands, [json.dumps(message).encode()], descriptors or [])


class WorkerPool:
    """The pool's workers between jobs: taken, given back, dropped. Starts the pool when needed."""

    def __init__(self) -> None:
        self._pool: Pool | None = None
        self._owner = os.getpid()
        self._idle: list[Worker] = []
        self._preloaded: set[str] = set()

    def take(self, module: str) -> Worker:
        """Return an idle or a new worker; `module` holds the reward that it will run."""
        if self._owner != os.getpid():  # a fork: the processes belong to the parent
            self._pool, self._idle, self._owner = None, [], os.getpid()
        if self._idle:
            return self._idle.pop()
        if self._pool is None:
            self._pool, self._preloaded = Pool(), set()
        # Shipped rewards are known to start no threads, so they may be imported before the fork.
        if module.startswith("r1lab.rewards.") and module not in self._preloaded:
            self._pool.preload(module)
            self._preloaded.add(module)
        return self._pool.start()

    def give_back(self, worker: Worker) -> None:
        """Return a worker to the pool for the next job."""
        self._idle.append(worker)

    def drop(self, worker: Worker) -> None:
        """Remove a worker, dead or alive."""
        if worker in self._idle:
            self._idle.remove(worker)
        if self._pool is not None:
            self._pool.kill(worker)

    def discard(self) -> None:
        """End every process."""
        if self._pool is not None and self._owner == os.getpid():
            self._pool.close()
        self._pool, self._idle = None, []

    def wait(self, seconds: float) -> list[Event]:
        """See `Pool.wait`."""
        assert self._pool is not None
        return self._pool.wait(seconds)

    def ignore(self, worker: Worker) -> None:
        """See `Pool.ignore`."""
        assert self._pool is not None
        self._pool.ignore(worker)


def _environment() -> dict[str, str]:
    """One thread for each worker, and the same order of sets in every run."""
    defaults = {"OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "0"}
    return {**defaults, **os.environ}


def _end(owner: int, commands: socket.socket, nursery: subprocess.Popen[bytes]) -> None:
    commands.close()
    if os.getpid() == owner:  # not in a fork of it
        nursery.wait()
