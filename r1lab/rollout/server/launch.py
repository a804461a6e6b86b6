"""Start a server that samples for training runs: vLLM's own server with r1lab's additions.

It is `vllm serve` with a worker extension (`extension`), a middleware (`app`) and the settings that
make its samples those of the in-process sampler. The same arguments can be passed to vLLM's own
command; docs/samplers.md gives it in full.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

from r1lab.config.recipe import ModelSettings
from r1lab.model.load import prepare_base
from r1lab.precision import settled
from r1lab.rollout.server.info import FOLDER_VARIABLE, check_address, taken
from r1lab.types import R1labError

EXTENSION = "r1lab.rollout.server.extension.WorkerExtension"
MIDDLEWARE = "r1lab.rollout.server.app.Control"


@dataclass(frozen=True, slots=True)
class ServerOptions:
    """Options of `r1lab serve-sampler`; `more` is passed to vLLM unchanged."""

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
    """Serve until a signal stops it. Raises R1labError if the server cannot start."""
    check(options)
    arguments = vllm_arguments(options)
    from r1lab.rollout.vllm.serving import serve_vllm

    try:
        serve_vllm(arguments)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:  # taken since the check
            raise taken(options.host, options.port) from None
        raise


def check(options: ServerOptions) -> None:
    """Reject wrong options before anything heavy is loaded; raises R1labError."""
    if find_spec("vllm") is None:
        raise R1labError("vLLM is not installed here; pip install 'r1lab[gpu]' (or 'r1lab[cpu]')")
    check_address(options.host, options.port)
    if options.weights_folder is None and options.transfer is None:
        raise R1labError(
            "--weights-folder: required unless --transfer is given; set it to the folder for "
            "weights (sampling.weights_folder of the recipe)"
        )
    if options.weights_folder is not None and not Path(options.weights_folder).is_dir():
        raise R1labError(f"--weights-folder: {options.weights_folder!r} is not a folder")


def vllm_arguments(options: ServerOptions) -> list[str]:
    """Return vLLM's own arguments, and set the environment to match."""
    from r1lab.rollout.vllm.serving import engine_arguments

    config, _, folder = prepare_base(ModelSettings(path=options.model))
    if options.weights_folder is not None:
        os.environ[FOLDER_VARIABLE] = str(Path(options.weights_folder).resolve())
    arguments = [
        *engine_arguments(
            folder,
            config,
            dtype=settled(options.dtype),
            max_model_len=options.max_model_len,
            kv_cache_gib=options.kv_cache_gib,
            gpu_memory_utilization=options.gpu_memory_utilization,
            tensor_parallel_size=options.tensor_parallel_size,
        ),
        *("--host", options.host, "--port", str(options.port)),
        *("--max-num-seqs", str(options.max_num_seqs), "--seed", str(options.seed)),
        # Log-probs of the sampled distribution: after temperature and top-p.
        *("--logprobs-mode", "processed_logprobs"),
        *("--worker-extension-cls", EXTENSION, "--middleware", MIDDLEWARE),
        *("--generation-config", "vllm"),  # no sampling defaults besides the trainer's settings
        *("--disable-log-stats", "--disable-uvicorn-access-log"),
    ]
    if options.transfer is not None:
        arguments += ["--weight-transfer-config", f'{{"backend": "{options.transfer}"}}']
    return [*arguments, *options.more]
