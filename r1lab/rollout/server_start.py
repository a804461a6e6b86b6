"""Starting a server that samples for a training run: vLLM's own, with what r1lab adds to it.

It is `vllm serve` with a worker extension (`server_extension`), a middleware (`server_app`) and the
settings that make its samples those of the sampler in process. What is given here can be given to
vLLM's own command as well; docs/samplers.md has it in full.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

from r1lab.model.load import prepare_base
from r1lab.precision import fast_precision
from r1lab.recipe import ModelSettings
from r1lab.rollout.server_facts import FOLDER_VARIABLE, KEY_VARIABLE, is_loopback
from r1lab.rollout.vllm_facts import installed_build
from r1lab.types import R1labError

EXTENSION = "r1lab.rollout.server_extension.WorkerExtension"
MIDDLEWARE = "r1lab.rollout.server_app.Control"


@dataclass(frozen=True, slots=True)
class ServerOptions:
    """What `r1lab serve-sampler` takes; `more` goes to vLLM as it is."""

    model: str
    host: str = "127.0.0.1"
    port: int = 8000
    weights_folder: str | None = None
    transfer: str | None = None
    dtype: str = "auto"
    max_model_len: int | None = None
    kv_cache_gib: float = 1.0
    gpu_memory_utilization: float = 0.9
    max_num_seqs: int = 512
    tensor_parallel_size: int = 1
    seed: int = 0
    more: Sequence[str] = field(default=())


def serve(options: ServerOptions) -> None:
    """Serve until a signal ends it. Raises R1labError for what cannot be started."""
    check(options)
    arguments = vllm_arguments(options)

    import uvloop
    from vllm.entrypoints.launchers.api_server.entry import run_server
    from vllm.entrypoints.launchers.cli_args import make_arg_parser, validate_parsed_serve_args
    from vllm.entrypoints.serve.utils.api_utils import cli_env_setup
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    cli_env_setup()
    parsed = make_arg_parser(FlexibleArgumentParser(prog="r1lab serve-sampler")).parse_args(
        arguments
    )
    validate_parsed_serve_args(parsed)
    try:
        uvloop.run(run_server(parsed))
    except OSError as error:
        if error.errno == errno.EADDRINUSE:  # taken since it was looked at
            raise _taken(options) from None
        raise


def check(options: ServerOptions) -> None:
    """Refuse what is wrong before anything heavy is loaded; raises R1labError."""
    if find_spec("vllm") is None:
        raise R1labError("vLLM is not installed here; pip install 'r1lab[gpu]' (or 'r1lab[cpu]')")
    if not is_loopback(options.host) and not os.environ.get(KEY_VARIABLE):
        raise R1labError(
            f"--host: {options.host} lets other machines in; set {KEY_VARIABLE} to a secret here "
            "and where you train, or take 127.0.0.1"
        )
    if options.weights_folder is None and options.transfer is None:
        raise R1labError(
            "--weights-folder: name the folder that weights come through (sampling.weights_folder "
            "of the recipe), or a --transfer"
        )
    if options.weights_folder is not None and not Path(options.weights_folder).is_dir():
        raise R1labError(f"--weights-folder: {options.weights_folder!r} is no folder here")
    family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((options.host, options.port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise _taken(options) from None
            raise R1labError(f"--host, --port: {options.host}:{options.port}: {error}") from None


def vllm_arguments(options: ServerOptions) -> list[str]:
    """vLLM's own arguments, its environment set to match."""
    from r1lab.rollout.vllm_engine import choose_attention

    dtype = fast_precision() if options.dtype == "auto" else options.dtype
    config, _, folder = prepare_base(ModelSettings(path=options.model))
    choose_attention(config, "auto")
    if options.weights_folder is not None:
        os.environ[FOLDER_VARIABLE] = str(Path(options.weights_folder).resolve())
    longest = options.max_model_len or config.max_position_embeddings
    arguments = [
        "--model", str(folder), "--host", options.host, "--port", str(options.port),
        "--dtype", dtype, "--max-num-seqs", str(options.max_num_seqs), "--seed", str(options.seed),
        "--tensor-parallel-size", str(options.tensor_parallel_size),
        # Log-probs of what was sampled from: after temperature and top-p.
        "--logprobs-mode", "processed_logprobs",
        "--worker-extension-cls", EXTENSION, "--middleware", MIDDLEWARE,
        "--generation-config", "vllm",  # nothing is added to what the trainer asks for
        "--disable-log-stats", "--disable-uvicorn-access-log",
    ]  # fmt: skip
    if options.max_model_len is not None:
        arguments += ["--max-model-len", str(options.max_model_len)]
    if options.transfer is not None:
        arguments += ["--weight-transfer-config", f'{{"backend": "{options.transfer}"}}']
    build = installed_build()
    if build is not None and build.device == "cpu":
        if options.tensor_parallel_size == 1:
            # The worker in the engine's process: one process less that imports everything.
            os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
            arguments += ["--distributed-executor-backend", "uni"]
        arguments += [
            "--kv-cache-memory-bytes", str(int(options.kv_cache_gib * 2**30)), "--enforce-eager",
            # A request with a seed of its own fails there if its prompt is split over two steps.
            "--no-enable-chunked-prefill", "--max-num-batched-tokens", str(max(4096, longest)),
        ]  # fmt: skip
    else:
        arguments += ["--gpu-memory-utilization", str(options.gpu_memory_utilization)]
    return [*arguments, *options.more]


def _taken(options: ServerOptions) -> R1labError:
    return R1labError(
        f"--port: {options.port} is taken by another process on {options.host}; take another port, "
        "or end what listens there"
    )
