"""Sampling ahead of training: `sampling.max_lag`.

With a lag of N, the rollouts of step t are sampled with the weights that step t - N began with
(those of step 0 for the first N), while the steps before t train. The requests to the sampler and
their order are the same whether it runs concurrently (servers: in a thread) or in the trainer's
process, where nothing can run during training:

    step t   [batch t + N under w_t]   train on batch t   ->   w_t+1 is sent after pending requests

A batch therefore has N steps to complete, one batch is sampled at a time, weights change between
two batches, and versions do not depend on timing. No sample is older than N steps: `next` would
stop the run.

**Check of weight sync.** With a lag, sampler and trainer differ on a step's own tokens because the
policy has changed, which is not a fault; compared with the bound, it would hide one. A probe is
compared instead: short responses to a few prompts, sampled right after the sampler received the
weights of step t, and measured by the trainer before it changes them. It detects what the check
without lag detects (stale, half-loaded or wrongly computed weights), with fewer tokens. Waiting for
the probe means waiting for all earlier requests, so with a lag above 1 it runs at every N-th step.

**Resuming from a checkpoint.** Finished batches are saved in the checkpoint, so an in-process run
resumes bit for bit. Batches that a server has not finished are requested again, with the weights of
the checkpoint, which are newer than those of the original request.
"""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, runtime_checkable

from r1lab.rollout.sampler import WeightSource, seed_of
from r1lab.rollout.serialization import rollout_as_plain, rollout_from_plain
from r1lab.rollout.source import (
    Measure,
    RolloutSource,
    SyncAgreement,
    as_rollouts,
)
from r1lab.types import Rollout, RunStopped

if TYPE_CHECKING:
    import torch

Produced = TypeVar("Produced")

_PROBE_QUESTIONS = 4
_PROBE_TOKENS = 64  # per response: longer ones would take a step's time and show no more


@runtime_checkable
class Publishing(Protocol):
    """A sampler that runs concurrently with the trainer.

    `sends_beside`: whether weights can be sent while it still samples under others.
    """

    sends_beside: bool

    def publish(self, weights: Iterable[tuple[str, torch.Tensor]], version: int) -> None:
        """Copy the weights to where the sampler can load them from."""
        ...

    def take_over(self, version: int) -> None:
        """Sample with a published version from now on."""
        ...


@dataclass(frozen=True, slots=True)
class _Batch:
    """A step's share of groups, requested; `position` is that of the stream before it."""

    position: int
    rollouts: Future[list[Rollout]]


class AsyncRolloutSource(RolloutSource):
    """A `RolloutSource` that requests batches `settings.max_lag` steps ahead."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        """See `RolloutSource`."""
        super().__init__(*arguments, **options)
        self._lag = self._settings.max_lag
        self._work: RolloutWork = (
            BackgroundExecutor() if isinstance(self.sampler, Publishing) else InlineExecutor()
        )
        self._batches: deque[_Batch] = deque()
        self._published = -1
        self._probed: Future[list[Rollout]] | None = None

    def next(self, version: int) -> list[Rollout]:
        """Return the groups of the step that begins at `version`; request those of later steps.

        Raises RunStopped for a sample older than the lag allows.
        """
        # Request the probe first: it is short, and must be measured before the weights change.
        self._probed = self._ask_probe(version) if version % self._lag == 0 else None
        while len(self._batches) <= self._lag:
            self._batches.append(self._ask_batch(version))
        rollouts = self._batches.popleft().rollouts.result()
        oldest = min((c.weight_version for r in rollouts for c in r.completions), default=version)
        if version - oldest > self._lag:
            raise RunStopped(
                f"sampling.max_lag: step {version} got a sample of weight version {oldest}, older "
                f"than the {self._lag} steps allowed"
            )
        return rollouts

    def sync(self, policy: WeightSource) -> None:
        """Send the policy's weights; the sampler applies them after its pending requests."""
        version, sampler = policy.version, self.sampler
        if isinstance(sampler, Publishing) and sampler.sends_beside:
            if version == self._published:  # same version, other weights: nobody may read them now
                self.settle()
            self._published = version
            sampler.publish(policy.checkpoint_weights(), version)
            self._work.do(lambda: sampler.take_over(version))
        else:
            self.settle()
            super().sync(policy)

    def settle(self) -> None:
        """Wait until all requests are finished."""
        self._work.do(lambda: None).result()

    def probe(self) -> list[Rollout]:
        """See `RolloutSource.probe`."""
        self.settle()
        return super().probe()

    def check_agreement(self, kl: float | None, num_tokens: int, measure: Measure) -> SyncAgreement:
        """Compare this step's probe, if any, with the bound; may stop the run.

        The estimate over the step's own tokens (`kl`, `num_tokens`) is ignored, as explained above.
        """
        if self._probed is None:
            return SyncAgreement(None, 0)
        return super().check_agreement(*measure(self._probed.result()), measure)

    def state_dict(self) -> dict[str, Any]:
        """See `RolloutSource.state_dict`; includes finished batches up to the first pending one."""
        ready = []
        for batch in self._batches:
            if not _is_ready(batch.rollouts):
                break
            ready.append([rollout_as_plain(rollout) for rollout in batch.rollouts.result()])
        unready = [batch.position for batch in self._batches][len(ready) :]
        position = unready[0] if unready else self._position
        return {**super().state_dict(), "position": position, "ahead": ready}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See `RolloutSource.load_state_dict`."""
        super().load_state_dict(state)
        for plain in state.get("ahead", []):
            done: Future[list[Rollout]] = Future()
            done.set_result([rollout_from_plain(rollout) for rollout in plain])
            self._batches.append(_Batch(self._position, done))

    def close(self) -> None:
        """See `RolloutSource.close`; drops pending requests."""
        self._work.stop()
        super().close()

    def _ask_batch(self, version: int) -> _Batch:
        """Request the next batch, with the weights of `version`."""
        position = self._position
        problems, prompts = self._draw(self.share)
        self._check_fit(problems, prompts)
        seed = seed_of(self._seed, position, self._rank)
        self._position += self.share * self._world_size
        # If the agreement check fails, it is repeated on these.
        self._problems_of_step, self._prompts = problems, prompts

        def sample() -> list[Rollout]:
            self._check_version(version)
            return as_rollouts(problems, prompts, self._sample(prompts, seed))

        return _Batch(position, self._work.do(sample))

    def _ask_probe(self, version: int) -> Future[list[Rollout]]:
        """Request short responses to the next prompts without advancing the stream."""
        problems, prompts = self._draw(min(self.share, _PROBE_QUESTIONS))
        seed = seed_of(self._seed, self._position, self._rank, 3)

        def sample() -> list[Rollout]:
            self._check_version(version)
            return as_rollouts(problems, prompts, self._sample(prompts, seed, _PROBE_TOKENS))

        return self._work.do(sample)


class RolloutWork(Protocol):
    """Runs jobs one after the other."""

    def do(self, job: Callable[[], Produced]) -> Future[Produced]:
        """Return a future of the job's result; after one failure all later jobs fail with it."""
        ...

    def stop(self) -> None:
        """Drop jobs that have not started."""
        ...


class InlineExecutor:
    """Runs each job when submitted: for samplers in the trainer's own process."""

    def do(self, job: Callable[[], Produced]) -> Future[Produced]:
        """See `RolloutWork.do`; raises the job's errors, including interruption by a signal."""
        done: Future[Produced] = Future()
        done.set_result(job())
        return done

    def stop(self) -> None:
        """See `RolloutWork.stop`; nothing is ever pending."""


class BackgroundExecutor:
    """Runs jobs in a thread, concurrently with the trainer."""

    def __init__(self) -> None:
        self._jobs: queue.SimpleQueue[tuple[Callable[[], Any], Future[Any]] | None] = (
            queue.SimpleQueue()
        )
        self._fault: BaseException | None = None
        # A daemon, so that a run can end while a sampler does not answer.
        threading.Thread(target=self._run, name="sampling", daemon=True).start()

    def do(self, job: Callable[[], Produced]) -> Future[Produced]:
        """See `RolloutWork.do`."""
        done: Future[Produced] = Future()
        self._jobs.put((job, done))
        return done

    def stop(self) -> None:
        """See `RolloutWork.stop`."""
        self._fault = self._fault or RuntimeError("the stream of rollouts is closed")
        self._jobs.put(None)

    def _run(self) -> None:
        while (item := self._jobs.get()) is not None:
            job, done = item
            try:
                if self._fault is not None:
                    raise self._fault
                done.set_result(job())
            except BaseException as error:  # raised by the future's result()
                self._fault = error
                done.set_exception(error)


def _is_ready(future: Future[Any]) -> bool:
    return future.done() and future.exception() is None
