"""Run rewards in worker processes with time and memory limits for each response.

Whatever a response does to the reward, its place in the batch is kept: it gets a verdict or a
`ScoringFailure`, and the other responses are not affected. Kinds of failures:
    timeout     longer than `limits.seconds`; the worker was killed
    memory      more than `limits.memory_mib`; the worker was replaced
    crash       the worker died (a segmentation fault, os._exit, the kernel's killer)
    output      the verdict is too large to be sent back
    exception   the reward raised

A worker takes a chunk of responses at a time; shared memory shows which one it is judging, so that
only the one that hangs is failed. Outcomes are sent back every few milliseconds; what
a killed worker had not sent is judged again, so a reward should not depend on being called once.

A batched reward (TRL's signature) is called once with all responses, in one worker: it may compare
them. Its limit of time is `seconds` * (1 + n / 32). Where that call fails in any way, each response
is judged in a call of its own.
"""

from __future__ import annotations

import contextlib
import math
import os
import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

from r1lab.types import Outcome, ScoringFailure
from r1lab.verify.call import RewardCall, RewardError
from r1lab.verify.load import Reward
from r1lab.verify.pool import Worker, WorkerPool
from r1lab.verify.protocol import IDLE, LOADING, Job, Reply, encode_job, send_frame

_LOAD_SECONDS = 300.0  # to import a reward and what it needs, or to do anything but judge
_MIN_CHUNK, _MAX_CHUNK = 4, 64
_PER_LIMIT = 32  # responses of a batched call for which the limit of time is given once more
_MAX_LOSSES = 3  # of all processes at once, with nothing judged between them


class IsolatedRunner:
    """Runs rewards in `num_workers` processes (None: the cores of this process's share).

    The processes start when they are first needed, stay for the next call, and end with `close()`
    or with this process, in whatever way it ends. Safe for several threads, one call at a time.
    """

    def __init__(self, num_workers: int | None = None) -> None:
        self.num_workers = num_workers or default_num_workers()
        self._lock = threading.Lock()
        self._crew = WorkerPool()

    def run(self, reward: Reward, items: Sequence[RewardCall]) -> list[Outcome]:
        """Return one outcome per item, in order. Raises RewardError: see `Runner`."""
        if not items:
            return []
        with self._lock:
            return _Call(self._crew, self.num_workers, reward, items).go()

    def close(self) -> None:
        """End the worker processes and their descendants; a later call starts new ones."""
        with self._lock:
            self._crew.discard()

    def __enter__(self) -> IsolatedRunner:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def default_num_workers() -> int:
    """Return this process's share of the cores available to its launcher."""
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return max(1, len(os.sched_getaffinity(0)) // processes)


@dataclass(slots=True)
class _Running:
    """Work of one worker: positions in the batch, and how many have an outcome."""

    worker: Worker
    places: list[int]
    together: bool
    done: int = 0

    @property
    def rest(self) -> list[int]:
        return self.places[self.done :]


class _Call:
    """One `run`: assign the batch in chunks until every position has an outcome."""

    def __init__(
        self, crew: WorkerPool, num_workers: int, reward: Reward, items: Sequence[RewardCall]
    ) -> None:
        self._crew, self._num_workers = crew, num_workers
        self._reward, self._items = reward, items
        self._outcomes: dict[int, Outcome] = {}
        self._waiting = deque(range(len(items)))
        self._together = reward.style == "batched"
        self._running: dict[int, _Running] = {}
        self._suspects: set[int] = set()  # deaths of a worker that was judging none of them
        self._outcomes_at_loss, self._losses = 0, 0

    def go(self) -> list[Outcome]:
        try:
            while self._waiting or self._running:
                try:
                    self._hand_out()
                    self._listen()
                except BrokenPipeError:
                    self._lose_everything()
        finally:
            # Left early, by an error or by Ctrl-C: nobody would collect what these still send.
            for running in self._running.values():
                with contextlib.suppress(BrokenPipeError):
                    self._crew.drop(running.worker)
        return [self._outcomes[place] for place in range(len(self._items))]

    # --- handing out ---

    def _hand_out(self) -> None:
        while self._waiting and len(self._running) < self._num_workers:
            together, places = self._together, self._next_places()
            self._together = False  # once; what is left of it is judged one by one
            job = Job(self._reward, [self._items[place] for place in places], together)
            payload = self._encode(job)
            worker = self._crew.take(self._reward.reference.module)
            self._running[worker.id] = running = _Running(worker, places, together)
            worker.status.begin(IDLE)
            try:
                send_frame(worker.connection, payload)
            except OSError:  # it died while idle: the next takes its place
                self._crew.drop(worker)
                self._lose(running, "the worker died before it began")

    def _next_places(self) -> list[int]:
        """All for a batched reward; else large chunks first and small ones at the end."""
        size = len(self._waiting)
        if not self._together:
            share = math.ceil(size / (2 * self._num_workers))
            size = min(size, max(_MIN_CHUNK, min(_MAX_CHUNK, share)))
            if not self._suspects.isdisjoint(islice(self._waiting, size)):
                size = 1
        return [self._waiting.popleft() for _ in range(size)]

    def _encode(self, job: Job) -> bytes:
        try:
            return encode_job(job)
        except Exception as error:  # whatever pickle meets in metadata and options
            raise RewardError(
                f"{self._reward.reference.text!r}: these problems' metadata or the options cannot "
                f"be sent to a worker process ({type(error).__name__}: {error}); keep to plain "
                "values, or set `isolate: false` for this reward"
            ) from error

    # --- listening ---

    def _listen(self) -> None:
        left = [self._seconds_left(running) for running in self._running.values()]
        # A worker that is idle now may begin a unit at any moment, without notice.
        seconds = min([*left, self._reward.limits.seconds])
        for event in self._crew.wait(seconds if left else 0.0):
            running = self._running.get(event.worker.id)
            if running is None:
                self._crew.drop(event.worker)  # an idle one: drop it, whatever it sends
            elif event.died is None:
                self._receive(running)
            else:
                self._receive(running)
                self._bury(event.worker, event.died)
        for running in list(self._running.values()):
            if self._seconds_left(running) <= 0:
                self._expire(running)

    def _seconds_left(self, running: _Running) -> float:
        unit, seconds = running.worker.status.read()
        if unit in (LOADING, IDLE):
            return _LOAD_SECONDS - seconds
        factor = 1 + len(running.places) / _PER_LIMIT if running.together else 1
        return self._reward.limits.seconds * factor - seconds

    def _receive(self, running: _Running) -> None:
        worker = running.worker
        try:
            for reply in worker.inbox.receive():
                if worker.id not in self._running:
                    raise ValueError("a reply after the last one")
                self._take(running, reply)
        except ValueError as error:
            self._crew.drop(worker)
            self._lose(running, f"the worker sent what is no outcome: {error}")
        if worker.inbox.ended:
            self._crew.ignore(worker)

    def _take(self, running: _Running, reply: Reply) -> None:
        if reply.error is not None:
            del self._running[running.worker.id]
            self._crew.give_back(running.worker)
            raise RewardError(reply.error)
        if len(reply.outcomes) > len(running.rest):
            raise ValueError(f"{len(reply.outcomes)} outcomes for {len(running.rest)} responses")
        for place, outcome in zip(running.rest, reply.outcomes, strict=False):
            self._outcomes[place] = outcome
        running.done += len(reply.outcomes)
        if not reply.done:
            return
        del self._running[running.worker.id]
        # All of it where a batched call raised: each response is judged alone then.
        self._waiting.extendleft(reversed(running.rest))
        running.done = len(running.places)
        if reply.retire:
            self._crew.drop(running.worker)
        else:
            self._crew.give_back(running.worker)

    # --- losing ---

    def _expire(self, running: _Running) -> None:
        """Kill a worker whose unit exceeded its time limit, unless it has just ended."""
        unit, _ = running.worker.status.read()
        self._receive(running)
        if running.worker.id not in self._running or self._seconds_left(running) > 0:
            return
        self._crew.drop(running.worker)
        limit = self._reward.limits.seconds
        if unit == LOADING:
            del self._running[running.worker.id]
            raise RewardError(
                f"{self._reward.reference.text!r} could not be imported within "
                f"{_LOAD_SECONDS:g} seconds in a worker process"
            )
        if unit == IDLE:
            self._lose(running, "the worker stopped working")
        else:
            self._lose(running, f"longer than {limit:g} seconds", kind="timeout", unit=unit)

    def _bury(self, worker: Worker, died: str) -> None:
        """Handle a dead worker; everything it had sent has been received."""
        unit, _ = worker.status.read()
        self._crew.drop(worker)
        running = self._running.get(worker.id)
        if running is None:
            return
        if unit == LOADING:
            del self._running[worker.id]
            raise RewardError(
                f"{self._reward.reference.text!r}: the worker process died of {died} while it "
                "imported the reward"
            )
        self._lose(running, f"the worker died of {died}", unit=unit)

    def _lose(
        self, running: _Running, detail: str, *, kind: str = "crash", unit: int = IDLE
    ) -> None:
        """Fail the response the worker was judging; judge the rest of its chunk again."""
        self._running.pop(running.worker.id, None)
        rest = running.rest
        if running.together:
            self._waiting.extendleft(reversed(rest))
            return
        if unit >= running.done:
            culprit = running.places[unit]
            self._outcomes[culprit] = ScoringFailure(kind, detail)
            rest = [place for place in rest if place != culprit]
        elif len(rest) == 1 and rest[0] in self._suspects:
            self._outcomes[rest[0]] = ScoringFailure(kind, detail)
            rest = []
        self._suspects.update(rest if unit < running.done else ())
        self._waiting.extendleft(reversed(rest))

    def _lose_everything(self) -> None:
        """Restart after the fork server died with its workers, a limited number of times."""
        lost = [(running, running.worker.status.read()[0]) for running in self._running.values()]
        self._crew.discard()
        for running, unit in lost:
            self._lose(running, "the worker processes were killed", unit=unit)
        self._losses = 0 if len(self._outcomes) > self._outcomes_at_loss else self._losses + 1
        self._outcomes_at_loss = len(self._outcomes)
        if self._losses >= _MAX_LOSSES:
            raise RewardError("worker processes cannot be started here; see the lines above")
