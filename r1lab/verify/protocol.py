"""Messages between the training process and the workers.

To a worker: pickled tuples of our own records. The text of a model is a string in them; nothing
that comes from outside is ever unpickled. Back from a worker: JSON, of bounded size, because the
worker has handled hostile text.

Each worker also has three numbers in shared memory that show what it is doing, so that
monitoring it costs the worker no system call and still works when it hangs inside C code.
"""

from __future__ import annotations

import json
import mmap
import os
import pickle
import socket
import struct
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from r1lab.types import Completion, Outcome, Problem, ScoringFailure, Verdict
from r1lab.verify.call import RewardCall, TrainerState
from r1lab.verify.load import Reward

MAX_REPLY = 16 * 2**20  # bytes of one frame from a worker
MAX_REASON = 2_000  # characters; what is longer is cut
MAX_PARTS = 64
MAX_NAME = 200  # characters of a part's name

# Units of a worker that is not at an item: it imports the reward, or does nothing of the user's.
LOADING, IDLE = -1, -2

_LENGTH = struct.Struct("!Q")


@dataclass(frozen=True, slots=True)
class Job:
    """Items for one worker. A unit is what a limit holds for: one item, or all of them together.

    together   a batched reward is called once with all items; otherwise each item is a unit
    """

    reward: Reward
    items: Sequence[RewardCall]
    together: bool


@dataclass(frozen=True, slots=True)
class Reply:
    """Progress of a job: outcomes of the items after those already sent, and how it ended.

    A job that ends without all its outcomes leaves the others to be judged one by one.

    error   the reward broke its contract, or cannot be imported
    done    the job has ended
    retire  the worker is not to be used again (its memory has grown)
    """

    outcomes: tuple[Outcome, ...] = ()
    error: str | None = None
    done: bool = False
    retire: bool = False


class Status:
    """The current unit of a worker and its start time, in shared memory."""

    SIZE = 64

    def __init__(self, descriptor: int) -> None:
        self._numbers = memoryview(mmap.mmap(descriptor, self.SIZE)).cast("q")

    @staticmethod
    def create() -> int:
        """A descriptor of new shared memory."""
        descriptor = os.memfd_create("r1lab-status", os.MFD_CLOEXEC)
        os.ftruncate(descriptor, Status.SIZE)
        return descriptor

    def begin(self, unit: int) -> None:
        # The time first: a reader between the two lines sees a unit that began too late, which
        # harms nobody, and never one that began too early.
        self._numbers[1] = time.monotonic_ns()
        self._numbers[0] = unit

    def read(self) -> tuple[int, float]:
        """(unit, seconds since it began)."""
        unit = self._numbers[0]
        return unit, (time.monotonic_ns() - self._numbers[1]) / 1e9


def encode_job(job: Job) -> bytes:
    """Encode a job. Raises pickle's error if metadata or an option cannot be pickled.

    The router's choices (`routed_experts`) are not sent: they are large, and no reward reads them.
    """
    problems: dict[int, tuple[Any, ...]] = {}
    rows = []
    for item in job.items:
        problem, completion = item.problem, item.completion
        packed = problems.get(id(problem))
        if packed is None:
            packed = problems[id(problem)] = (
                problem.id, problem.question, problem.answer, problem.verifier, problem.source,
                dict(problem.metadata),
            )  # fmt: skip
        rows.append((
            packed, item.prompt, item.state.global_step, item.state.max_steps,
            completion.token_ids, completion.text, completion.finish_reason,
            completion.weight_version, completion.prefix, completion.thinking, completion.answer,
            completion.logprobs,
        ))  # fmt: skip
    reward = replace(job.reward, options=dict(job.reward.options))
    return pickle.dumps((reward, job.together, rows), protocol=5)


def decode_job(payload: bytes) -> Job:
    """In the worker: bytes that `encode_job` made in the parent."""
    reward, together, rows = pickle.loads(payload)
    problems: dict[int, Problem] = {}
    states: dict[tuple[int, int], TrainerState] = {}
    items = []
    for packed, prompt, step, max_steps, *fields in rows:
        problem = problems.get(id(packed))
        if problem is None:
            problem = problems[id(packed)] = Problem(*packed)
        state = states.setdefault((step, max_steps), TrainerState(step, max_steps))
        items.append(RewardCall(problem, Completion(*fields), prompt, state))
    return Job(reward, items, together)


def encode_reply(reply: Reply) -> bytes:
    rows = [_row(outcome) for outcome in reply.outcomes]
    return json.dumps([rows, reply.error, reply.done, reply.retire]).encode()


def decode_reply(payload: bytes) -> Reply:
    """Raises ValueError (or TypeError) for bytes that are no reply."""
    rows, error, done, retire = json.loads(payload)
    outcomes = tuple(Verdict(*row) if len(row) == 3 else ScoringFailure(*row) for row in rows)
    return Reply(outcomes, error, done, retire)


def _row(outcome: Outcome) -> list[Any]:
    if isinstance(outcome, ScoringFailure):
        return [outcome.kind, outcome.detail[:MAX_REASON]]
    reason = outcome.reason
    if len(reason) > MAX_REASON:
        reason = f"{reason[:MAX_REASON]}... ({len(reason)} characters)"
    if not outcome.parts:
        return [outcome.score, reason, {}]
    if len(outcome.parts) > MAX_PARTS or any(len(name) > MAX_NAME for name in outcome.parts):
        return [
            "output",
            f"{len(outcome.parts)} parts; a verdict has at most {MAX_PARTS}, with names of at "
            f"most {MAX_NAME} characters",
        ]
    return [outcome.score, reason, dict(outcome.parts)]


def send_frame(connection: socket.socket, payload: bytes) -> None:
    connection.sendall(_LENGTH.pack(len(payload)))
    connection.sendall(payload)


def receive_frame(connection: socket.socket) -> bytes | None:
    """Return the next frame in the worker; None at the end."""
    head = _receive(connection, _LENGTH.size)
    return None if head is None else _receive(connection, *_LENGTH.unpack(head))


def _receive(connection: socket.socket, size: int) -> bytes | None:
    data = bytearray(size)
    view, filled = memoryview(data), 0
    while filled < size:
        count = connection.recv_into(view[filled:])
        if count == 0:
            return None
        filled += count
    return bytes(data)


class Inbox:
    """In the parent: frames out of a worker's socket, never waited for, of bounded size."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._data = bytearray()
        self.ended = False

    def receive(self) -> list[Reply]:
        """Return the complete frames received. Raises ValueError for an invalid frame."""
        # A worker that floods its socket cannot hold the parent here: one frame's worth a call.
        while len(self._data) <= MAX_REPLY and not self.ended:
            try:
                data = self._connection.recv(2**18, socket.MSG_DONTWAIT)
            except BlockingIOError:
                break
            except OSError:
                data = b""
            self.ended = not data
            self._data += data
        replies = []
        while len(self._data) >= _LENGTH.size:
            (size,) = _LENGTH.unpack_from(self._data)
            if size > MAX_REPLY:
                raise ValueError(f"a frame of {size} bytes; at most {MAX_REPLY} are allowed")
            end = _LENGTH.size + size
            if len(self._data) < end:
                break
            try:
                replies.append(decode_reply(bytes(self._data[_LENGTH.size : end])))
            except (TypeError, RecursionError) as error:
                raise ValueError(str(error)) from None
            del self._data[:end]
        return replies
