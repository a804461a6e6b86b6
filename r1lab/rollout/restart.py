"""A sampler that is rebuilt, once, if its engine dies during a call.

The result of a call depends only on (weights, prompts, settings), so a run whose engine died and
restarted is identical to one without the failure. An open stream is replayed up to its position:
prompts added meanwhile are added at the same points.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, TypeVar

from r1lab.prompts import Template
from r1lab.rollout.sampler import GroupStream, Sampler, WeightSource, stream_of
from r1lab.shortages import is_out_of_memory
from r1lab.types import Completion, InfrastructureError, R1labError, SamplingSettings

if TYPE_CHECKING:
    import torch

Returned = TypeVar("Returned")


class RestartingSampler:
    """A `Sampler` around one that `build` creates.

    A call that fails is repeated once, on a new engine with the current `weights`, after calling
    `on_restart`. With `can_restart` False (several processes, whose engines start together) the
    first failure raises InfrastructureError. If a sync fails on the new engine too, only the next
    call raises it, so that the update before it is not lost with the engine.
    """

    def __init__(
        self,
        build: Callable[[], Sampler],
        weights: WeightSource,
        *,
        can_restart: bool = True,
        on_restart: Callable[[str], None] = lambda cause: None,
    ) -> None:
        self._build, self._weights = build, weights
        self._can_restart, self._on_restart = can_restart, on_restart
        self._sampler: Sampler | None = build()
        self._fault: InfrastructureError | None = None
        self.max_model_len = self._sampler.max_model_len

    @property
    def version(self) -> int:
        """See `Sampler.version`."""
        return self._inner.version

    def generate(
        self,
        prompts: Sequence[tuple[int, ...]],
        settings: SamplingSettings,
        *,
        template: Template,
    ) -> list[tuple[Completion, ...]]:
        """See `Sampler.generate`."""
        return self._call(lambda: self._inner.generate(prompts, settings, template=template))

    def stream(self, settings: SamplingSettings, *, template: Template) -> GroupStream:
        """See `Streaming.stream`."""
        return _RestartingStream(self, settings, template)

    def sync(self, weights: Iterable[tuple[str, torch.Tensor]], version: int) -> None:
        """See `Sampler.sync`; `weights` must be the policy's, which a restart also uses."""
        try:
            self._inner.sync(weights, version)
        except Exception as error:
            try:
                self._restart(error)
            except InfrastructureError as fault:
                self._fault = fault

    def close(self) -> None:
        """See `Sampler.close`."""
        if self._sampler is not None:
            self._sampler.close()
            self._sampler = None

    @property
    def _inner(self) -> Sampler:
        if self._fault is not None:
            raise self._fault
        assert self._sampler is not None, "the sampler is closed"
        return self._sampler

    def _call(self, call: Callable[[], Returned]) -> Returned:
        try:
            return call()
        except Exception as error:
            self._restart(error)
        try:
            return call()
        except Exception as error:
            if isinstance(error, R1labError):
                raise
            raise _died(error, "again after a restart") from error

    def _restart(self, error: Exception) -> None:
        """Rebuild the engine with the current weights; raises what a restart cannot fix."""
        if isinstance(error, R1labError) or is_out_of_memory(error):
            raise error
        if not self._can_restart:
            raise _died(error, "and is not restarted among several processes") from error
        self._on_restart(_cause(error))
        try:
            self.close()
        except Exception as fault:
            # It is dead already: what it cannot free is freed when the process ends.
            self._on_restart(f"closing it failed too: {_cause(fault)}")
            self._sampler = None
        try:
            self._sampler = self._build()
            self._sampler.sync(self._weights.checkpoint_weights(), self._weights.version)
        except Exception as fault:
            raise _died(fault, "and could not be restarted") from fault


class _RestartingStream:
    """A stream on the current engine of a `RestartingSampler`."""

    def __init__(
        self, sampler: RestartingSampler, settings: SamplingSettings, template: Template
    ) -> None:
        self._sampler, self._settings, self._template = sampler, settings, template
        self._calls: list[Callable[[GroupStream], object]] = []  # made so far, in order
        self._engine: Sampler | None = None  # the one that the stream belongs to
        self._stream: GroupStream | None = None

    def add(self, prompts: Sequence[tuple[int, ...]]) -> None:
        """See `GroupStream.add`."""
        self._do(lambda stream: stream.add(prompts))

    def wait(self) -> list[tuple[int, tuple[Completion, ...]]]:
        """See `GroupStream.wait`."""
        return self._do(lambda stream: stream.wait())

    def _do(self, call: Callable[[GroupStream], Returned]) -> Returned:
        result = self._sampler._call(lambda: call(self._current()))
        self._calls.append(call)
        return result

    def _current(self) -> GroupStream:
        """Return the stream; on a new engine, replay all calls so far on a new one."""
        engine = self._sampler._inner
        if self._stream is None or engine is not self._engine:
            self._stream = stream_of(engine, self._settings, template=self._template)
            self._engine = engine
            for call in self._calls:
                call(self._stream)
        return self._stream


def _died(error: Exception, when: str) -> InfrastructureError:
    return InfrastructureError(
        f"the sampler's engine died {when} ({_cause(error)}); the run is saved up to its last "
        "step: fix the cause, or try sampling.engine: transformers"
    )


def _cause(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:200]}" if text else type(error).__name__
