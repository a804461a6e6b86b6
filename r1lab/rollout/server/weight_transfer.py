"""Weights from GPU to GPU by NCCL: vLLM's own weight transfer over r1lab's endpoints.

vLLM 0.32 (`vllm.distributed.weight_transfer`) has both ends: the workers of a server started with
`--transfer nccl` join a process group with the trainer, which broadcasts every weight as rank 0
while they receive. This module has the trainer's control calls (vLLM's `VLLMWeightSyncClient`) and
its stream of weights (`WeightSource`). NCCL needs a separate GPU on each side.

Written against vLLM's interface and never run, for lack of a GPU.
"""

from __future__ import annotations

import socket
from collections.abc import Iterable, Iterator
from contextlib import closing
from typing import Any
from urllib.parse import urlsplit

import torch

from r1lab.rollout.server.client import SamplerServer
from r1lab.types import RecipeError


class Transfer:
    """The connection to one server; opened with the first weights, which give names and shapes."""

    def __init__(self, server: SamplerServer, run: str) -> None:
        """Raises RecipeError if this process has no GPU."""
        if not torch.cuda.is_available():
            raise RecipeError(
                "sampling.weight_transfer: 'nccl' goes from GPU to GPU, and this machine has none; "
                "use 'folder'"
            )
        self._server, self._run = server, run
        self._engine: Any = None
        self._source: Any = None

    def send(self, weights: Iterable[tuple[str, torch.Tensor]], version: int) -> None:
        """Make the server load all weights as `version` of this run."""
        client = _Client(self._server, self._run, version)
        if self._engine is None:
            weights = list(weights)
            self._source = _source()
            self._source.describe(weights)
            self._source.weights = weights
            self._engine = self._open(client)
        else:
            self._source.weights, self._engine.client = weights, client
        self._engine.send_weights()
        self._source.weights = ()

    def _open(self, client: _Client) -> Any:
        from vllm.distributed.weight_transfer.factory import WeightTransferTrainerFactory
        from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo

        facts, _ = self._server.about()
        info = NCCLTrainerInitInfo(
            master_address=_own_address(self._server.url), master_port=_free_port(),
            world_size=1 + facts.workers, rank=0,
        )  # fmt: skip
        return WeightTransferTrainerFactory.trainer_init(info, client=client, source=self._source)


class _Client:
    """vLLM's `VLLMWeightSyncClient` over /r1lab/transfer."""

    def __init__(self, server: SamplerServer, run: str, version: int) -> None:
        self._server, self._named = server, {"run": run, "version": version}

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        self._step("init", init_info)

    def start_weight_update(self) -> None:
        self._step("start")

    def update_weights(self, update_info: dict[str, Any]) -> None:
        self._step("update", update_info)

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        self._step("finish")

    def _step(self, step: str, info: dict[str, Any] | None = None) -> None:
        self._server.last_line("/r1lab/transfer", {**self._named, "step": step, "info": info})


def _source() -> Any:
    """Return a `WeightSource` over the `weights` given for a round."""
    from vllm.distributed.weight_transfer.base import ParamMeta, WeightSource

    class Source(WeightSource):
        weights: Iterable[tuple[str, torch.Tensor]] = ()

        def describe(self, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
            self._metadata = [ParamMeta(name, t.dtype, tuple(t.shape)) for name, t in weights]

        def metadata(self) -> list[Any]:
            return self._metadata

        def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]:
            for name, tensor in self.weights:
                yield name, tensor.detach().to("cuda", non_blocking=True).contiguous()

    return Source()


def _own_address(url: str) -> str:
    """Return the address by which a server reaches this machine: that of the route to it."""
    parts = urlsplit(url)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    with closing(socket.create_connection((parts.hostname or "", port), timeout=10)) as way:
        return str(way.getsockname()[0])


def _free_port() -> int:
    with closing(socket.socket()) as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])
