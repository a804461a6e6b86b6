"""vLLM's OpenAI-compatible server with r1lab's patches, so that `vllm serve` runs V3 correctly.

vLLM's own command cannot be started from its CPU build (it looks for the metadata of another
distribution), and its workers are separate processes, which need `patches` before they build the
model: a worker extension (`worker`) applies them there.
"""

from __future__ import annotations

import hmac
import os
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from r1lab.rollout.server.info import KEY_VARIABLE
from r1lab.rollout.vllm.build_info import installed_build
from r1lab.rollout.vllm.engine import CPU_MLA_BACKEND, choose_attention

if TYPE_CHECKING:
    from transformers import PretrainedConfig

EXTENSION = "r1lab.rollout.vllm.worker.PatchedWorker"
GUARD = "r1lab.rollout.vllm.serving.KeyGuard"
PLUGIN, PARSER = "r1lab.rollout.vllm.reasoning_parser", "r1lab"


def serve_vllm(argv: Sequence[str]) -> None:
    """Run vLLM's server in this process with the arguments of `vllm serve`, until a signal.

    `--worker-extension-cls` defaults to `EXTENSION`; another one must apply the same patches.
    """
    import uvloop
    from vllm.entrypoints.launchers.api_server.entry import run_server
    from vllm.entrypoints.launchers.cli_args import make_arg_parser, validate_parsed_serve_args
    from vllm.entrypoints.serve.utils.api_utils import cli_env_setup
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    _say_reasoning_content()
    cli_env_setup()
    parser = make_arg_parser(FlexibleArgumentParser(prog="vllm serve"))
    options = parser.parse_args(["--worker-extension-cls", EXTENSION, *argv])
    validate_parsed_serve_args(options)
    uvloop.run(run_server(options))


def engine_arguments(
    folder: Path, config: PretrainedConfig, *, dtype: str, max_model_len: int | None,
    kv_cache_gib: float, gpu_memory_utilization: float, tensor_parallel_size: int = 1,
) -> list[str]:  # fmt: skip
    """Return the engine's arguments of `vllm serve`, and set the environment to match."""
    uses_mla_kernel = choose_attention(config, "auto")
    longest = max_model_len or config.max_position_embeddings
    arguments = [
        "--model", str(folder), "--dtype", dtype, "--max-model-len", str(longest),
        "--tensor-parallel-size", str(tensor_parallel_size),
    ]  # fmt: skip
    build = installed_build()
    if build is None or build.device != "cpu":
        return [*arguments, "--gpu-memory-utilization", str(gpu_memory_utilization)]
    if tensor_parallel_size == 1:
        # Run the worker in the engine's process: one process fewer that imports everything.
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        arguments += ["--distributed-executor-backend", "uni"]
    if uses_mla_kernel:
        arguments += ["--attention-backend", CPU_MLA_BACKEND]
    return [
        *arguments, "--enforce-eager", "--kv-cache-memory-bytes", str(int(kv_cache_gib * 2**30)),
        # A request with its own seed fails there if its prompt is split over two steps.
        "--no-enable-chunked-prefill", "--max-num-batched-tokens", str(max(4096, longest)),
    ]  # fmt: skip


class KeyGuard:
    """ASGI middleware that requires the key (`KEY_VARIABLE`) for everything except /health.

    vLLM's own `--api-key` leaves other sampling endpoints open (/invocations).
    """

    def __init__(self, app: Callable[..., Awaitable[None]]) -> None:
        self._app = app
        self._key = os.environ[KEY_VARIABLE].encode()

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        """Pass on requests with the key; a browser's preflight (OPTIONS) carries none."""
        asks = scope["type"] in ("http", "websocket") and scope["path"] != "/health"
        if asks and scope.get("method") != "OPTIONS" and not self._knows(scope):
            from starlette.responses import JSONResponse

            error = {"message": "the key is wrong or missing", "type": "Unauthorized", "code": 401}
            await JSONResponse({"error": error}, status_code=401)(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _knows(self, scope: dict[str, Any]) -> bool:
        given = dict(scope["headers"]).get(b"authorization", b"").removeprefix(b"Bearer ")
        return hmac.compare_digest(given, self._key)


def _say_reasoning_content() -> None:
    """Report thinking twice: vLLM calls it `reasoning`, older clients read `reasoning_content`."""
    from vllm.entrypoints.openai.chat_completion.serving import OpenAIServingChat
    from vllm.parser.abstract_parser import DelegatingParser

    create, parse = OpenAIServingChat._create_chat_message, DelegatingParser.parse_delta

    def create_chat_message(self: Any, *args: Any, **kwargs: Any) -> Any:
        return _named_twice(create(self, *args, **kwargs))

    def parse_delta(self: Any, *args: Any, **kwargs: Any) -> Any:
        return _named_twice(parse(self, *args, **kwargs))

    OpenAIServingChat._create_chat_message = create_chat_message
    DelegatingParser.parse_delta = parse_delta


def _named_twice(message: Any) -> Any:
    if message is not None and message.reasoning is not None:
        message.reasoning_content = message.reasoning  # these pydantic models allow extra fields
    return message
