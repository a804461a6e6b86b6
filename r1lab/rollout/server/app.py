"""A vLLM server's endpoints for training: `--middleware` names the class here.

    GET  /r1lab/about      the server (`info.ServerInfo`) and its current weights
    POST /r1lab/generate   token ids in; token ids, log-probs and the weights' version out
    POST /r1lab/load       load a version from the shared folder
    POST /r1lab/note       the note that a trainer left in the shared folder
    POST /r1lab/transfer   the steps of a weight transfer by NCCL

Long responses are lines of JSON, with an empty line every few seconds while there is no result, so
that a client can tell a busy server from a dead one. Weights do not change during a call of
`generate`, and no call starts while they change, so that a completion has one version. vLLM's own
endpoints are unchanged, and wait in the same way.

Without a key (R1LAB_SERVER_KEY) only clients on the same machine are served. With a key, every
client that sends it is served, on all endpoints. /health is always open.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route, Router
from starlette.types import ASGIApp, Receive, Scope, Send

from r1lab import __version__
from r1lab.rollout.server.info import (
    BASE,
    FOLDER_VARIABLE,
    KEY_VARIABLE,
    PROTOCOL,
    ServerInfo,
    is_loopback,
    shape_of,
    vocabulary_of,
)
from r1lab.rollout.server.weights_folder import find_version, read_note
from r1lab.types import R1labError

EventLine = dict[str, Any]

_SECONDS_OF_SILENCE = 10.0
_TORN = "torn"  # replaces a run's token after loading failed halfway
_under_way: set[asyncio.Future[EventLine]] = set()


class Control:
    """ASGI middleware: checks the key of every request, and serves the training endpoints."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._key = os.environ.get(KEY_VARIABLE)
        folder = os.environ.get(FOLDER_VARIABLE)
        endpoints = Endpoints(Path(folder) if folder else None)
        self._router = Router(
            [
                Route("/r1lab/about", endpoints.about, methods=["GET"]),
                Route("/r1lab/generate", endpoints.generate, methods=["POST"]),
                Route("/r1lab/load", endpoints.load, methods=["POST"]),
                Route("/r1lab/note", endpoints.note, methods=["POST"]),
                Route("/r1lab/transfer", endpoints.transfer, methods=["POST"]),
            ]
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve r1lab's own endpoints; pass other requests on."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        refusal = self._refusal(scope)
        if refusal is not None:
            await refusal(scope, receive, send)
        elif scope["type"] == "http" and scope["path"].startswith("/r1lab/"):
            await self._router(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    def _refusal(self, scope: Scope) -> Response | None:
        headers = {name.decode(): value.decode("latin-1") for name, value in scope["headers"]}
        if scope["path"] == "/health":
            return None
        if self._key is not None:
            given = headers.get("authorization", "").removeprefix("Bearer ")
            if not hmac.compare_digest(given.encode(), self._key.encode()):
                return _refused(401, f"the key is wrong or missing ({KEY_VARIABLE})")
        elif not is_loopback((scope.get("client") or (None,))[0]):
            return _refused(403, f"without {KEY_VARIABLE} only clients on this machine are served")
        if "origin" in headers and scope["path"].startswith("/r1lab/"):
            return _refused(403, "requests from browser pages are not allowed")
        return None


class Endpoints:
    """The endpoints and their shared state: the weights' version and the lock on the weights."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._run, self._version = BASE, 0
        self._gate = ReadWriteLock()
        self._facts: ServerInfo | None = None
        self._facts_lock = asyncio.Lock()
        self._transfer: Any = None  # the lock, held between the steps of a transfer

    @property
    def weights(self) -> EventLine:
        """Return the run and version of the weights."""
        return {"run": self._run, "version": self._version}

    async def about(self, request: Request) -> Response:
        """Return the server's info and its current weights."""
        async with self._facts_lock:
            if self._facts is None:
                self._facts = await asyncio.to_thread(
                    _facts_of, request.app.state.args, request.app.state.vllm_config, self._folder
                )
        return JSONResponse({**self._facts.as_dict(), "weights": self.weights})

    async def note(self, request: Request) -> Response:
        """Return the note that a run's trainer left in the folder; null if it is not visible."""
        try:
            asked = await request.json()
            folder = self._shared_folder()
            word = await asyncio.to_thread(read_note, folder, asked["run"])
        except (R1labError, ValueError, KeyError) as error:
            return JSONResponse({"error": str(error)}, status_code=400)
        return JSONResponse({"note": word, "folder": str(folder)})

    async def generate(self, request: Request) -> Response:
        """Sample `prompts` under `settings`: one line {index, completions} each, as they finish.

        The first line holds the weights. If they are not `run`'s at version `at_least` or later,
        nothing is sampled and no other line follows. The last line holds the weights again.
        """
        asked = await request.json()
        return _lines(self._generate(request.app.state.engine_client, asked))

    async def load(self, request: Request) -> Response:
        """Load version `version` of `run`; responds with one line, the weights or an error."""
        asked = await request.json()
        return _lines(_patient(self._load(request.app.state.engine_client, asked)))

    async def transfer(self, request: Request) -> Response:
        """Run one `step` of vLLM's weight transfer: init, start, update or finish, with its `info`.

        Nothing is sampled between start and finish.
        """
        asked = await request.json()
        return _lines(_patient(self._transfer_step(request.app.state.engine_client, asked)))

    async def _generate(self, engine: Any, asked: EventLine) -> AsyncIterator[EventLine | None]:
        async with self._gate.sampling():
            yield {"weights": self.weights}
            if self._run != asked["run"] or self._version < asked["at_least"]:
                return
            began = await engine.get_weight_version()
            done: asyncio.Queue[EventLine] = asyncio.Queue()
            tasks = [
                asyncio.create_task(_sample(engine, asked, index, done))
                for index in range(len(asked["prompts"]))
            ]
            try:
                missing = len(tasks)
                while missing:
                    line = await _within(done.get())
                    missing -= line is not None
                    yield line
            finally:  # the client may have disconnected
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
            if await engine.get_weight_version() != began:
                yield {"error": "the weights changed while they were sampled from"}
                return
            yield {"weights": self.weights}

    async def _load(self, engine: Any, asked: EventLine) -> EventLine:
        run, version = asked["run"], int(asked["version"])
        try:
            path = await asyncio.to_thread(find_version, self._shared_folder(), run, version)
        except R1labError as error:
            return {"error": str(error)}
        async with self._changing(engine):
            faults = await engine.collective_rpc("r1lab_load", args=(str(path), version))
            errors = [fault for fault in faults if fault]
            if errors:
                return {"error": errors[0]}
            await self._taken(engine, run, version)
        return {"weights": self.weights}

    async def _transfer_step(self, engine: Any, asked: EventLine) -> EventLine:
        from vllm.distributed.weight_transfer.base import (
            WeightTransferInitRequest,
            WeightTransferUpdateRequest,
        )

        step, info = asked["step"], asked.get("info") or {}
        if step == "init":
            await engine.init_weight_transfer_engine(WeightTransferInitRequest(init_info=info))
        elif step == "start":
            if self._transfer is None:  # otherwise resume one that its trainer never finished
                self._transfer = self._changing(engine)
                await self._transfer.__aenter__()
            await engine.start_weight_update()
        elif step == "update":
            await engine.update_weights(WeightTransferUpdateRequest(update_info=info))
        elif step == "finish" and self._transfer is not None:
            await engine.finish_weight_update()
            await engine.collective_rpc("r1lab_mend")
            await self._taken(engine, asked["run"], int(asked["version"]))
            held, self._transfer = self._transfer, None
            await held.__aexit__(None, None, None)
        else:
            return {"error": f"no such step of a transfer now: {step!r:.40}"}
        return {"weights": self.weights}

    @asynccontextmanager
    async def _changing(self, engine: Any) -> AsyncIterator[None]:
        """Block sampling in this context, after the current requests finish."""
        async with self._gate.alone():
            await engine.pause_generation(mode="wait", clear_cache=True)
            self._run, self._version = _TORN, -1
            try:
                yield
            finally:
                await engine.resume_generation()

    async def _taken(self, engine: Any, run: str, version: int) -> None:
        if not await engine.reset_prefix_cache():
            raise RuntimeError("vLLM could not reset its prefix cache")
        await engine.update_weight_version(f"{run}/{version}")
        self._run, self._version = run, version

    def _shared_folder(self) -> Path:
        if self._folder is None:
            raise R1labError("the server was started without --weights-folder")
        return self._folder


class ReadWriteLock:
    """Many samplers at a time; a weight change is exclusive and cannot be starved."""

    def __init__(self) -> None:
        self._sampling, self._held, self._moved = 0, False, asyncio.Event()

    @asynccontextmanager
    async def sampling(self) -> AsyncIterator[None]:
        """Shared access: no weight change runs inside."""
        await self._until(lambda: not self._held)
        self._sampling += 1
        try:
            yield
        finally:
            self._sampling -= 1
            self._moved.set()

    @asynccontextmanager
    async def alone(self) -> AsyncIterator[None]:
        """Exclusive access: later `sampling` calls wait from the moment of the call."""
        await self._until(lambda: not self._held)
        self._held = True
        try:
            await self._until(lambda: not self._sampling)
            yield
        finally:
            self._held = False
            self._moved.set()

    async def _until(self, free: Callable[[], bool]) -> None:
        while not free():
            self._moved.clear()
            await self._moved.wait()


async def _sample(
    engine: Any, asked: EventLine, index: int, done: asyncio.Queue[EventLine]
) -> None:
    """Sample one prompt's completions; put their line, or the error, into `done`."""
    from vllm import SamplingParams, TokensPrompt
    from vllm.sampling_params import RequestOutputKind

    try:
        params = SamplingParams(
            **asked["settings"], seed=asked["seeds"][index],
            flat_logprobs=True, detokenize=False, output_kind=RequestOutputKind.FINAL_ONLY,
        )  # fmt: skip
        prompt = TokensPrompt(prompt_token_ids=asked["prompts"][index])
        answer = None
        async for output in engine.generate(prompt, params, request_id=uuid4().hex):
            answer = output
        if answer is None:
            raise RuntimeError("vLLM gave no answer")
        completions = [_plain(member) for member in sorted(answer.outputs, key=lambda m: m.index)]
        await done.put({"index": index, "completions": completions})
    except Exception as error:  # fails only this prompt; the others continue
        await done.put({"index": index, "error": f"{type(error).__name__}: {error}"})


def _plain(member: Any) -> EventLine:
    logprobs = None if member.logprobs is None else list(member.logprobs.logprobs)
    return {
        "token_ids": list(member.token_ids), "logprobs": logprobs,
        "finish_reason": member.finish_reason,
    }  # fmt: skip


def _facts_of(args: Any, vllm_config: Any, folder: Path | None) -> ServerInfo:
    import vllm

    from r1lab.config.recipe import ModelSettings
    from r1lab.model.load import prepare_base

    config, tokenizer, _ = prepare_base(ModelSettings(path=args.model))
    transfers = ["folder"] if folder is not None else []
    if vllm_config.weight_transfer_config is not None:
        transfers.append(vllm_config.weight_transfer_config.backend)
    return ServerInfo(
        protocol=PROTOCOL,
        r1lab=__version__,
        vllm=vllm.__version__,
        shape=shape_of(config),
        vocabulary=vocabulary_of(tokenizer),
        dtype=str(vllm_config.model_config.dtype).removeprefix("torch."),
        max_model_len=vllm_config.model_config.max_model_len,
        workers=vllm_config.parallel_config.world_size_across_dp,
        transfers=tuple(transfers),
    )


async def _patient(work: Awaitable[EventLine]) -> AsyncIterator[EventLine | None]:
    """Yield the line that `work` returns, and None at intervals until then."""
    task = asyncio.ensure_future(work)
    _under_way.add(task)  # finishes even if the client disconnects
    task.add_done_callback(_under_way.discard)
    while True:
        done, _ = await asyncio.wait([task], timeout=_SECONDS_OF_SILENCE)
        if done:
            break
        yield None
    try:
        yield task.result()
    except Exception as error:  # sent to the client; vLLM's log has the details
        yield {"error": f"{type(error).__name__}: {error}"}


async def _within(waiting: Awaitable[EventLine]) -> EventLine | None:
    with suppress(TimeoutError):
        return await asyncio.wait_for(waiting, _SECONDS_OF_SILENCE)
    return None


def _lines(lines: AsyncIterator[EventLine | None]) -> Response:
    return _Lines(lines)


class _Lines(StreamingResponse):
    """Lines of JSON, an empty one for None; a disconnecting client stops their source."""

    def __init__(self, lines: AsyncIterator[EventLine | None]) -> None:
        self._source = lines
        super().__init__(self._encoded(), media_type="application/x-ndjson")

    async def _encoded(self) -> AsyncIterator[str]:
        async for line in self._source:
            yield ("" if line is None else json.dumps(line)) + "\n"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self._source.aclose()  # type: ignore[attr-defined]


def _refused(status: int, why: str) -> Response:
    return JSONResponse({"error": why}, status_code=status)
