"""Sampling that runs ahead of training: `sampling.max_lag`.

With a lag of N, the rollouts of step t are sampled under the weights that step t - N began with
(step 0's own for the first N), while the steps before t train. What is asked of the sampler, and in
which order, is the same whether it works beside the trainer (servers: in a thread) or in its
process, where nothing can go on beside training:

    step t   [batch t + N under w_t]   train on batch t   ->   w_t+1 is sent behind what is asked

So a batch has the time of N steps to be ready, one batch is sampled at a time, weights change
between two of them, and versions do not depend on the clock. No sample is older than N steps:
`next` would stop the run.

**The check of weight sync.** With a lag, sampler and trainer differ on a step's own tokens because
the policy has moved, which is no fault; held against the bound, it would hide one. What is held
against it is a probe: short responses to a few questions, sampled right after the weights of step t
came to the sampler, and measured by the trainer before it changes them. It sees what the check of
lag 0 sees (stale, half-loaded or wrongly computed weights), over fewer tokens. Waiting for it means
waiting for all that was asked before it, so with a lag above 1 it is taken at every N-th step.

**Going on from a checkpoint.** Batches that are ready are saved with it, so in process a run goes
on bit for bit. Batches that a server is still working on are asked again, under the weights of the
checkpoint: newer ones than they would have had.
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
_PROBE_TOKENS = 64  # of a response: long ones would cost a step's time and tell no more


@runtime_checkable
class Publishing(Protocol):
    """A sampler that works elsewhere, beside the trainer.

    `sends_beside`: whether weights can be sent while it still samples under others.
    """

    sends_beside: bool

    def publish(self, weights: Iterable[tuple[str, torch.Tensor]], version: int) -> None:
        """Copy the weights to where the sampler can take them from."""
        ...

    def take_over(self, version: int) -> None:
        """Sample under a published version from now on."""
        ...


@dataclass(frozen=True, slots=True)
class _Batch:
    """A step's share of groups, asked for; `position` is where the stream stood before it."""

    position: int
    rollouts: Future[list[Rollout]]


class AsyncRolloutSource(RolloutSource):
    """A `RolloutSource` that asks for the batches of `settings.max_lag` steps to come."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        """As `RolloutSource`."""
        super().__init__(*arguments, **options)
        self._lag = self._settings.max_lag
        self._work: RolloutWork = (
            BackgroundExecutor() if isinstance(self.sampler, Publishing) else InlineExecutor()
        )
        self._batches: deque[_Batch] = deque()
        self._published = -1
        self._probed: Future[list[Rollout]] | None = None

    def next(self, version: int) -> list[Rollout]:
        """The groups of the step that begins at `version`; asks for those of the steps to come.

        Raises RunStopped for a sample that is older than the lag allows.
        """
        # Asked first, as it is short, and measured while the weights are still those it is under.
        self._probed = self._ask_probe(version) if version % self._lag == 0 else None
        while len(self._batches) <= self._lag:
            self._batches.append(self._ask_batch(version))
        rollouts = self._batches.popleft().rollouts.result()
        oldest = min((c.weight_version for r in rollouts for c in r.completions), default=version)
        if version - oldest > self._lag:
            raise RunStopped(
                f"a sample of weight version {oldest} came to step {version}, and "
                f"sampling.max_lag is {self._lag}"
            )
        return rollouts

    def sync(self, policy: WeightSource) -> None:
        """Send the policy's weights; the sampler takes them after what it was asked before."""
        version, sampler = policy.version, self.sampler
        if isinstance(sampler, Publishing) and sampler.sends_beside:
            if version == self._published:  # others under the same number: none may be read now
                self.settle()
            self._published = version
            sampler.publish(policy.checkpoint_weights(), version)
            self._work.do(lambda: sampler.take_over(version))
        else:
            self.settle()
            super().sync(policy)

    def settle(self) -> None:
        """Wait until all that was asked is done."""
        self._work.do(lambda: None).result()

    def probe(self) -> list[Rollout]:
        """See `RolloutSource.probe`."""
        self.settle()
        return super().probe()

    def check_agreement(self, kl: float | None, num_tokens: int, measure: Measure) -> SyncAgreement:
        """Hold the probe of this step against the bound, where there is one; may stop the run.

        The estimate over the step's own tokens (`kl`, `num_tokens`) is left aside: see above.
        """
        if self._probed is None:
            return SyncAgreement(None, 0)
        return super().check_agreement(*measure(self._probed.result()), measure)

    def state_dict(self) -> dict[str, Any]:
        """See `RolloutSource.state_dict`; with the batches that are ready, up to the first not."""
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
        """See `RolloutSource.close`; what is asked and not done is dropped."""
        self._work.stop()
        super().close()

    def _ask_batch(self, version: int) -> _Batch:
        """Ask for the next batch, under the weights of `version`."""
        position = self._position
        problems, prompts = self._draw(self.share)
        self._check_fit(problems, prompts)
        seed = seed_of(self._seed, position, self._rank)
        self._position += self.share * self._world_size
        # A second look at an agreement that does not hold is taken on these.
        self._problems_of_step, self._prompts = problems, prompts

        def sample() -> list[Rollout]:
            self._check_version(version)
            return as_rollouts(problems, prompts, self._sample(prompts, seed))

        return _Batch(position, self._work.do(sample))

    def _ask_probe(self, version: int) -> Future[list[Rollout]]:
        """Ask for short responses to the first questions that come next, without moving on."""
        problems, prompts = self._draw(min(self.share, _PROBE_QUESTIONS))
        seed = seed_of(self._seed, self._position, self._rank, 3)

        def sample() -> list[Rollout]:
            self._check_version(version)
            return as_rollouts(problems, prompts, self._sample(prompts, seed, _PROBE_TOKENS))

        return self._work.do(sample)


class RolloutWork(Protocol):
    """Does what it is given, one after the other."""

    def do(self, job: Callable[[], Produced]) -> Future[Produced]:
        """What the job gives; after one that failed all fail alike."""
        ...

    def stop(self) -> None:
        """Drop what has not begun."""
        ...


class InlineExecutor:
    """Each job when it is given: for samplers of the trainer's own process."""

    def do(self, job: Callable[[], Produced]) -> Future[Produced]:
        """See `RolloutWork.do`; raises what the job raises, a signal's interruption included."""
        done: Future[Produced] = Future()
        done.set_result(job())
        return done

    def stop(self) -> None:
        """See `RolloutWork.stop`; nothing waits."""


class BackgroundExecutor:
    """Jobs in a thread, while the trainer goes on."""

    def __init__(self) -> None:
        self._jobs: queue.SimpleQueue[tuple[Callable[[], Any], Future[Any]] | None] = (
            queue.SimpleQueue()
        )
        self._fault: BaseException | None = None
        # A daemon: a run that ends need not wait for a sampler that does not answer.
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
            except BaseException as error:  # raised where the result is asked for
                self._fault = error
                done.set_exception(error)


def _is_ready(future: Future[Any]) -> bool:
    return future.done() and future.exception() is None
