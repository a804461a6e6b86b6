"""Worker process: receive a job, judge its items in order, send the outcomes.

The user's reward is trusted here, its input is not: an item may hang, eat memory, crash the
process or fork it. Time is watched from outside (a loop in C code heeds no signal handler); memory
by the kernel, through RLIMIT_DATA, which counts what the process can write to and not the address
space that threads merely reserve.
"""

from __future__ import annotations

import os
import resource
import socket
import sys
import time
from collections.abc import Callable
from typing import Any, NoReturn

from r1lab.report.text import GuardedStream
from r1lab.types import Outcome, R1labError, ScoringFailure
from r1lab.verify.call import RewardError, judge_alone, judge_one, judge_together
from r1lab.verify.load import Reward
from r1lab.verify.protocol import (
    IDLE,
    LOADING,
    Job,
    Reply,
    Status,
    decode_job,
    encode_reply,
    receive_frame,
    send_frame,
)

_MIB = 2**20
_FLUSH_SECONDS = 0.005  # finished outcomes wait this long at most before they are sent


def serve(connection: socket.socket, status: Status) -> NoReturn:
    """Judge jobs until the other side closes the connection; never returns."""
    # A child that a reward forks has no business with the parent.
    os.register_at_fork(after_in_child=connection.close)
    # What a reward prints is nobody's score: it must not fail where nobody reads it.
    sys.stdout, sys.stderr = GuardedStream(sys.stdout), GuardedStream(sys.stderr)
    worker = _Worker(connection, status)
    while (payload := receive_frame(connection)) is not None:
        worker.do(decode_job(payload))
    os._exit(0)


class _Worker:
    def __init__(self, connection: socket.socket, status: Status) -> None:
        self._connection, self._status = connection, status
        self._functions: dict[tuple[str, str], Callable[..., Any]] = {}
        self._memory = _Memory()
        self._pid = os.getpid()

    def do(self, job: Job) -> None:
        try:
            function = self._load(job.reward)
        except R1labError as error:
            return self._send(Reply(error=str(error), done=True))
        try:
            out_of_memory = self._judge(job, function)
        except RewardError as error:
            self._end_unit()
            return self._send(Reply(error=str(error), done=True))
        grown = self._memory.grown_beyond(job.reward.limits.memory_mib * _MIB)
        self._send(Reply(done=True, retire=out_of_memory or grown))

    def _judge(self, job: Job, function: Callable[..., Any]) -> bool:
        """Send the outcomes of all items; return whether one ran out of memory."""
        reward, room = job.reward, job.reward.limits.memory_mib * _MIB
        if job.together:
            self._begin_unit(0, room)
            outcomes = judge_together(function, job.items, reward.options)
            self._end_unit()
            if isinstance(outcomes, ScoringFailure):
                return outcomes.kind == "memory"
            self._send(Reply(tuple(outcomes)))
            return False
        judge = judge_one if reward.style == "single" else judge_alone
        waiting: list[Outcome] = []
        out_of_memory, flushed = False, time.monotonic()
        for unit, item in enumerate(job.items):
            self._begin_unit(unit, room)
            outcome = judge(function, item, reward.options)
            self._end_unit()
            waiting.append(outcome)
            out_of_memory |= isinstance(outcome, ScoringFailure) and outcome.kind == "memory"
            if time.monotonic() - flushed > _FLUSH_SECONDS:
                self._send(Reply(tuple(waiting)))
                waiting, flushed = [], time.monotonic()
        if waiting:
            self._send(Reply(tuple(waiting)))
        return out_of_memory

    def _load(self, reward: Reward) -> Callable[..., Any]:
        key = (reward.reference.path or reward.reference.module, reward.reference.function)
        if key not in self._functions:
            self._status.begin(LOADING)
            self._functions[key] = reward.function()
            self._end_unit()
            self._memory.settle()
        return self._functions[key]

    def _begin_unit(self, unit: int, room: int) -> None:
        self._memory.leave_room(room)
        self._status.begin(unit)

    def _end_unit(self) -> None:
        if os.getpid() != self._pid:
            os._exit(0)  # a child that the reward forked and that came back like its parent
        self._status.begin(IDLE)
        self._memory.lift()

    def _send(self, reply: Reply) -> None:
        send_frame(self._connection, encode_reply(reply))


class _Memory:
    """Memory limit of a unit, beyond what the process already holds."""

    def __init__(self) -> None:
        # Read in place: opening the file for each item would cost more than judging it.
        self._statm = os.open("/proc/self/statm", os.O_RDONLY | os.O_CLOEXEC)
        self._page = os.sysconf("SC_PAGE_SIZE")
        _, self._hard = resource.getrlimit(resource.RLIMIT_DATA)
        self.settle()

    def settle(self) -> None:
        """Set the baseline: the process should not grow from here on."""
        self._settled = self._used()

    def grown_beyond(self, room: int) -> bool:
        return self._used() - self._settled > room // 2

    def leave_room(self, room: int) -> None:
        limit = self._used() + room
        if self._hard != resource.RLIM_INFINITY:
            limit = min(limit, self._hard)
        resource.setrlimit(resource.RLIMIT_DATA, (limit, self._hard))

    def lift(self) -> None:
        resource.setrlimit(resource.RLIMIT_DATA, (self._hard, self._hard))

    def _used(self) -> int:
        """Return the bytes of data and stack."""
        return int(os.pread(self._statm, 128, 0).split()[5]) * self._page
