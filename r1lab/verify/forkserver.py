"""The fork server: a small single-threaded process that forks the workers and cleans up.

The process that trains must not fork (torch's threads would leave locks behind), and starting an
interpreter for each replaced worker would take the better part of a second. So one interpreter is
started afresh, imports what rewards usually need, and forks from there in milliseconds.

It is also the subreaper of all that descends from the workers: what a reward leaves running, even
in a session of its own, becomes the fork server's child when its parent dies, and is killed.
The same happens when the training process dies, in whatever way.

Run as `main(descriptor)` with a SOCK_SEQPACKET socket; its messages are JSON:
    to the fork server     {"do": "fork", "id": 3} with a socket and a status;
                           {"do": "kill", "id": 3};
                           {"do": "preload", "module": "r1lab.rewards.math"}
    from the fork server   {"id": 3, "died": "exit code 1"}
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import io
import json
import os
import resource
import select
import signal
import socket
import sys
from typing import NoReturn

from r1lab.verify.protocol import Status
from r1lab.verify.worker import serve

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
MAX_MESSAGE = 4096  # bytes


def main(descriptor: int) -> NoReturn:
    """Serve until the other side closes; never returns."""
    parent = os.getppid()
    # Workers end without a last flush, and a line is of use when it is printed.
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(line_buffering=True, errors="backslashreplace")
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    # Also signals the parent's death when a process that it forked keeps the socket open.
    _prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    commands = socket.socket(fileno=descriptor)
    commands.set_inheritable(False)
    nursery = _Nursery(commands, parent)
    try:
        nursery.run()
    finally:
        nursery.end()


class _Nursery:
    def __init__(self, commands: socket.socket, parent: int) -> None:
        self._commands, self._parent = commands, parent
        self._pids: dict[int, int] = {}  # worker's id -> pid
        self._wake, waker = socket.socketpair()
        for end in (self._wake, waker):
            end.setblocking(False)
        self._waker = waker
        for number in (signal.SIGCHLD, signal.SIGTERM):
            signal.signal(number, lambda *_: None)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.set_wakeup_fd(waker.fileno(), warn_on_full_buffer=False)

    def run(self) -> None:
        while os.getppid() == self._parent:
            ready, _, _ = select.select([self._commands, self._wake], [], [])
            if self._wake in ready:
                with contextlib.suppress(BlockingIOError):
                    self._wake.recv(4096)
                self._reap()
            if self._commands in ready:
                message, descriptors, _, _ = socket.recv_fds(
                    self._commands, MAX_MESSAGE, 2, socket.MSG_CMSG_CLOEXEC
                )
                if not message:
                    return
                self._obey(json.loads(message), descriptors)

    def _obey(self, message: dict[str, object], descriptors: list[int]) -> None:
        match message["do"]:
            case "fork":
                self._fork(int(str(message["id"])), *descriptors)
            case "kill":
                self._kill(int(str(message["id"])))
            case "preload":
                # An import error is reported by the worker, where it is handled.
                with contextlib.suppress(Exception):
                    importlib.import_module(str(message["module"]))

    def _fork(self, worker: int, connection: int, status: int) -> None:
        gc.freeze()  # what is shared with the workers is not to be copied by their collector
        nursery = os.getpid()
        pid = os.fork()
        if pid == 0:
            _begin_worker(self, nursery, connection, status)
        self._pids[worker] = pid
        os.close(connection)
        os.close(status)

    def forget(self) -> None:
        """Release the fork server's resources in a new worker."""
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)
        for end in (self._commands, self._wake, self._waker):
            end.close()

    def _kill(self, worker: int) -> None:
        pid = self._pids.get(worker)
        if pid is not None:
            # Not reaped yet, so the number is still its own. Its group first, then itself: a
            # reward may have left the group.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(pid, signal.SIGKILL)
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def _reap(self) -> None:
        workers = {pid: worker for worker, pid in self._pids.items()}
        died = []
        for pid, status in _dead_children():
            if pid in workers:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(pid, signal.SIGKILL)
                del self._pids[workers[pid]]
                died.append((workers[pid], status))
        if died:
            self._kill_strays()
        for worker, status in died:
            with contextlib.suppress(OSError):  # the other side is gone
                self._commands.send(json.dumps({"id": worker, "died": _said(status)}).encode())

    def _kill_strays(self) -> None:
        """Kill orphans: children of this process that are not workers."""
        killed: set[int] = set()
        while strays := _children() - set(self._pids.values()) - killed:
            for pid in strays:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            killed |= strays  # their children become ours: SIGCHLD reports it

    def end(self) -> NoReturn:
        """Kill all descendants and exit."""
        self._pids.clear()
        while True:
            for pid in _children():
                for kill in (os.killpg, os.kill):
                    with contextlib.suppress(ProcessLookupError, PermissionError):
                        kill(pid, signal.SIGKILL)
            try:
                os.waitpid(-1, 0)
            except ChildProcessError:
                os._exit(0)


def _begin_worker(nursery: _Nursery, parent: int, connection: int, status: int) -> NoReturn:
    """Run a newly forked worker."""
    try:
        os.setsid()
        _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)
        nursery.forget()
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        shared = Status(status)
        os.close(status)
        serve(socket.socket(fileno=connection), shared)
    except BrokenPipeError:
        pass  # the parent is gone or has dropped this worker
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        os._exit(1)


def _dead_children() -> list[tuple[int, int]]:
    dead = []
    with contextlib.suppress(ChildProcessError):
        while (found := os.waitpid(-1, os.WNOHANG))[0]:
            dead.append(found)
    return dead


def _children() -> set[int]:
    """Return the child processes, excluding zombies."""
    own, found = os.getpid(), set()
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError), open(f"/proc/{name}/stat", "rb") as file:
                # The program name is in parentheses and may contain any character.
                state, ppid = file.read().rpartition(b")")[2].split()[:2]
                if int(ppid) == own and state != b"Z":
                    found.add(int(name))
    return found


def _said(status: int) -> str:
    code = os.waitstatus_to_exitcode(status)
    if code >= 0:
        return f"exit code {code}"
    with contextlib.suppress(ValueError):
        return f"signal {signal.Signals(-code).name}"
    return f"signal {-code}"


def _prctl(option: int, value: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, value, 0, 0, 0) != 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
