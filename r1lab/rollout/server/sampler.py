"""Sampling by servers: `sampling.engine: server`.

Prompts are distributed over the servers by index. Weights go through a folder that all can see
(`weights_folder`), or from GPU to GPU (`weight_transfer`); only the trainer's main process sends
them. Each response names the weights it was sampled with, and is rejected if they are not current.

If a server is lost midway, the trainer waits for it, or its prompts go to the remaining servers. A
server that restarts holds the base's weights, reports them, and gets the current ones before its
next request. Every request has its own seed, so a repeated request gives the same completions up to
rounding: which prompts a server batches together depends on timing.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from r1lab.model.load import end_tokens, load_config
from r1lab.precision import settled
from r1lab.prompts import Template
from r1lab.rollout.sampler import as_completion, seed_of
from r1lab.rollout.server.client import Line, SamplerServer, ServerLost
from r1lab.rollout.server.info import BASE, difference, shape_of, vocabulary_of
from r1lab.rollout.server.weights_folder import WeightsFolder, new_run
from r1lab.types import Completion, FinishReason, InfrastructureError, R1labError, RecipeError
from r1lab.types import SamplingSettings as Settings

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

    from r1lab.rollout.server.weight_transfer import Transfer

_SECONDS_AT_START = 5.0  # timeout of a server's first response
_LONGEST_PAUSE = 10.0  # seconds between two attempts to reach a lost server


@dataclass(frozen=True, slots=True)
class Servers:
    """The servers' addresses, and how weights reach them.

    `patience` is the time in seconds for which all of them may be lost before a run stops.
    """

    urls: tuple[str, ...]
    key: str | None
    weights_folder: str | None
    transfer: str = "folder"
    patience: float = 900.0


@dataclass(frozen=True, slots=True)
class _Answer:
    """A server's completions for the prompt at `index`."""

    index: int
    version: int
    completions: list[Line]


class ServerSampler:
    """A `Sampler` over servers that run independently; the process of rank 0 sends them weights.

    Raises RecipeError if a server is not reachable, serves another model, or does not see the
    folder. `run` is the token of the run, the same in all its processes (`new_run`). `on_event` is
    called when servers are lost.
    """

    def __init__(
        self,
        servers: Servers,
        model_folder: str | Path,
        tokenizer: PreTrainedTokenizerBase,
        *,
        dtype: str = "auto",
        max_model_len: int | None = None,
        seed: int = 0,
        rank: int = 0,
        run: str = "",
        on_event: Callable[[str], None] = lambda text: None,
    ) -> None:
        self._settings, self._rank, self._seed, self._calls = servers, rank, seed, 0
        self._tokenizer = tokenizer
        self._end_tokens = end_tokens(tokenizer, Path(model_folder))
        self.sends_beside = servers.transfer == "folder"
        self._say, self._closed = on_event, False
        self._away: set[str] = set()  # lost servers that have not come back
        self.version = 0
        self._token = run or new_run()
        self._run = BASE  # the servers hold the base until the first sync
        self._folder: WeightsFolder | None = None
        self._transfers: list[Transfer] = []
        self._servers = [SamplerServer(url, servers.key) for url in servers.urls]
        try:
            config = load_config(Path(model_folder), str(model_folder))
            limits = [self._meet(server, config, settled(dtype)) for server in self._servers]
            if rank == 0:
                self._open_way(servers)
        except BaseException:
            self.close()
            raise
        self.max_model_len = min([*limits, max_model_len or max(limits)])

    # --- the protocol --------------------------------------------------------------------------

    def generate(
        self, prompts: Sequence[tuple[int, ...]], settings: Settings, *, template: Template
    ) -> list[tuple[Completion, ...]]:
        """See `Sampler.generate`; raises InfrastructureError if no server comes back in time."""
        groups: list[tuple[Completion, ...]] = [()] * len(prompts)
        for index, group in self.as_they_come(prompts, settings, template=template):
            groups[index] = group
        return groups

    def as_they_come(
        self, prompts: Sequence[tuple[int, ...]], settings: Settings, *, template: Template
    ) -> Iterator[tuple[int, tuple[Completion, ...]]]:
        """Yield the groups of `generate` with their indices, as they finish."""
        if settings.routed_experts:
            raise R1labError("algorithm.router_replay: 'sampler' is not possible over a server")
        greedy = settings.temperature == 0
        for answer in self._answers(prompts, settings):
            group = tuple(self._completion(c, answer.version, template) for c in answer.completions)
            yield answer.index, group * settings.num_samples if greedy else group

    def sync(self, weights: Iterable[tuple[str, torch.Tensor]], version: int) -> None:
        """See `Sampler.sync`. A server that is lost meanwhile gets the weights when it is back."""
        self.publish(weights, version)
        self.take_over(version)

    def publish(self, weights: Iterable[tuple[str, torch.Tensor]], version: int) -> None:
        """Send the weights: into the folder, or (NCCL) directly to the servers."""
        if self._folder is not None:
            self._folder.write(weights, version)
            return
        kept = list(weights) if len(self._transfers) > 1 else weights
        for transfer in self._transfers:
            transfer.send(kept, version)
        if self._rank > 0:
            for _ in kept:  # gathering sharded ones takes all processes
                pass

    def take_over(self, version: int) -> None:
        """Make all servers sample with a published version; earlier ones are then deleted."""
        self._run, self.version = self._token, version
        if self._folder is not None:
            self._each(self._servers, self._load)
            self._folder.drop_before(version)

    def close(self) -> None:
        """See `Sampler.close`; the servers keep running."""
        self._closed = True
        for server in self._servers:
            server.close()
        if self._folder is not None:
            self._folder.remove()
            self._folder = None

    # --- connecting ----------------------------------------------------------------------------

    def _meet(self, server: SamplerServer, config: Any, dtype: str) -> int:
        """Check that the server is compatible; return the longest sequence that it accepts."""
        began = time.monotonic()
        while True:
            try:
                facts, _ = server.about()
                break
            except ServerLost as lost:
                if time.monotonic() - began > _SECONDS_AT_START:
                    raise RecipeError(
                        f"sampling.servers: {lost}; start it with `r1lab serve-sampler`"
                    ) from None
                time.sleep(0.5)
        mismatch = difference(
            facts, shape=shape_of(config), vocabulary=vocabulary_of(self._tokenizer), dtype=dtype,
            transfer=self._settings.transfer,
        )  # fmt: skip
        if mismatch is not None:
            raise RecipeError(str(server.fault(mismatch)))
        return facts.max_model_len

    def _open_way(self, servers: Servers) -> None:
        """Prepare the transport of the weights."""
        if servers.transfer != "folder":
            from r1lab.rollout.server.weight_transfer import Transfer

            self._transfers = [Transfer(server, self._token) for server in self._servers]
            return
        if servers.weights_folder is None:
            raise RecipeError("sampling.weights_folder: required by sampling.engine: server")
        self._folder = WeightsFolder(servers.weights_folder, self._token)
        word = self._folder.write_note()
        for server in self._servers:
            seen = server.note(self._folder.run)
            if seen["note"] != word:
                raise RecipeError(
                    f"sampling.weights_folder: {server.url} does not see what is written to "
                    f"{servers.weights_folder!r}; it looks in {seen['folder']} (its "
                    "--weights-folder), which must be the same folder"
                )

    def _load(self, server: SamplerServer) -> None:
        """Make a server load the current version."""
        assert self._folder is not None
        body = {"run": self._folder.run, "version": self.version}
        server.last_line("/r1lab/load", body)

    # --- requests ------------------------------------------------------------------------------

    def _answers(self, prompts: Sequence[tuple[int, ...]], settings: Settings) -> Iterator[_Answer]:
        """Yield completions as they arrive, each prompt once, even if servers are lost."""
        seed, self._calls = settings.seed, self._calls + 1
        if seed is None:
            seed = _seed(self._seed, self._rank, self._calls)
        ask = _Ask(prompts, settings, self._end_tokens, seed)
        missing = set(range(len(prompts)))
        there = list(self._servers)
        waited_since: float | None = None
        pause = 0.5
        while missing and not self._closed:
            lost = []
            for item in self._round(self._deal(sorted(missing), there), ask):
                if isinstance(item, _Answer):
                    missing.discard(item.index)
                    waited_since, pause = None, 0.5
                    yield item
                    continue
                lost.append(item)
                server, why = item
                if server.url not in self._away:
                    self._away.add(server.url)
                    self._say(f"{why}; asking again")
            if not missing:
                return
            # Use servers that have failed only if there is no other.
            gone = {server.url for server, _ in lost}
            there = [server for server in there if server.url not in gone]
            if not there:
                there = list(self._servers)
                waited_since = waited_since or time.monotonic()
                if time.monotonic() - waited_since > self._settings.patience:
                    raise InfrastructureError(
                        f"sampling.servers: {lost[-1][1]} for {self._settings.patience:g} seconds "
                        "(sampling.server_patience); the run is saved up to its last step"
                    )
                time.sleep(pause)
                pause = min(2 * pause, _LONGEST_PAUSE)
        if missing:
            raise InfrastructureError("sampling.servers: the sampler was closed during a request")

    def _deal(
        self, questions: Iterable[int], there: Sequence[SamplerServer]
    ) -> list[tuple[SamplerServer, list[int]]]:
        """Assign each prompt to the server of its index, or to another if that one is lost."""
        shares: dict[str, tuple[SamplerServer, list[int]]] = {}
        for question in questions:
            server = self._servers[(question + self._rank) % len(self._servers)]
            if server not in there:
                server = there[question % len(there)]
            shares.setdefault(server.url, (server, []))[1].append(question)
        return list(shares.values())

    def _round(
        self, shares: Sequence[tuple[SamplerServer, list[int]]], ask: _Ask
    ) -> Iterator[_Answer | tuple[SamplerServer, str]]:
        """Send each server its share concurrently; yield completions and the lost servers.

        Errors that a server itself reports (a wrong model, another run) are raised.
        """
        came: queue.Queue[Any] = queue.Queue()
        stop = threading.Event()

        def work(server: SamplerServer, share: list[int]) -> None:
            try:
                for answer in self._asked(server, ask, share):
                    came.put(answer)
                    if stop.is_set():
                        return
            except ServerLost as error:
                came.put((server, str(error)))
            except BaseException as error:  # raised below, in the waiting thread
                came.put(error)
            finally:
                came.put(None)

        workers = [threading.Thread(target=work, args=share, daemon=True) for share in shares]
        for worker in workers:
            worker.start()
        try:
            running = len(workers)
            while running:
                item = came.get()
                if item is None:
                    running -= 1
                elif isinstance(item, BaseException):
                    raise item
                else:
                    yield item
        finally:
            stop.set()

    def _asked(self, server: SamplerServer, ask: _Ask, share: list[int]) -> Iterator[_Answer]:
        """Yield one server's completions, after sending it the current weights if needed."""
        body = ask.body(share) | {"run": self._run, "at_least": self.version}
        lines = server.lines("/r1lab/generate", body)
        first = next(lines)["weights"]
        if not self._is_current(first):
            self._bring_up(server, first)
            raise ServerLost(f"{server.url} did not hold the current weights")
        if server.url in self._away:
            self._away.discard(server.url)
            self._say(f"{server.url} is back")
        for line in lines:
            if "error" in line:
                raise server.fault(line["error"])
            if "weights" in line:
                if line["weights"] != first:
                    raise server.fault("its weights changed while it sampled")
                return
            yield _Answer(share[line["index"]], first["version"], line["completions"])

    def _is_current(self, weights: Line) -> bool:
        return weights["run"] == self._run and weights["version"] >= self.version

    def _bring_up(self, server: SamplerServer, weights: Line) -> None:
        """Send the current weights to a server that holds the base's, or earlier ones."""
        if weights["run"] not in (BASE, "torn", self._run):
            raise server.fault(
                "another run has sent it weights meanwhile; give each run servers of its own"
            )
        if self._folder is not None:
            self._load(server)
        elif self._rank == 0:
            raise InfrastructureError(
                f"sampling.servers: {server.url} was restarted, which ends a weight transfer by "
                "NCCL; the run is saved up to its last step"
            )

    def _each(self, servers: Sequence[SamplerServer], do: Callable[[SamplerServer], None]) -> None:
        """Run `do` for all servers concurrently; lost servers are skipped and retried later."""
        faults: list[BaseException] = []

        def work(server: SamplerServer) -> None:
            try:
                do(server)
            except ServerLost as lost:
                self._say(f"{lost}; it gets the weights when it is back")
            except BaseException as error:  # raised below
                faults.append(error)

        threads = [threading.Thread(target=work, args=(server,)) for server in servers]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if faults:
            raise faults[0]

    def _completion(self, plain: Line, version: int, template: Template) -> Completion:
        reasons: dict[str | None, FinishReason] = {"stop": "stop", "length": "length"}
        return as_completion(
            plain["token_ids"], plain["logprobs"], reasons.get(plain["finish_reason"], "abort"),
            tokenizer=self._tokenizer, template=template, end_tokens=self._end_tokens,
            version=version,
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Ask:
    """The parameters of one call."""

    prompts: Sequence[tuple[int, ...]]
    settings: Settings
    end_tokens: tuple[int, ...]
    seed: int

    def body(self, share: Sequence[int]) -> Line:
        """Return the request for some of the prompts."""
        settings, greedy = self.settings, self.settings.temperature == 0
        return {
            "prompts": [list(self.prompts[index]) for index in share],
            "seeds": [_seed(self.seed, index) for index in share],
            "settings": {
                "n": 1 if greedy else settings.num_samples,
                "temperature": settings.temperature,
                "top_p": settings.top_p,
                "max_tokens": settings.max_tokens,
                "stop_token_ids": list(self.end_tokens),
                "logprobs": 0 if settings.logprobs else None,  # 0: only of the sampled token
            },
        }


def _seed(*parts: int) -> int:
    """Return `seed_of` with room for the members of a group: vLLM counts up from it."""
    return seed_of(*parts) >> 1
