"""Starting a server that samples for a training run: vLLM's own, with what r1lab adds to it.

It is `vllm serve` with a worker extension (`server_extension`), a middleware (`server_app`) and the
settings that make its samples those of the sampler in process. What is given here can be given to
vLLM's own command as well; docs/samplers.md has it in full.
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
    from r1lab.rollout.vllm.serving import serve_vllm

    try:
        serve_vllm(arguments)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:  # taken since it was looked at
            raise taken(options.host, options.port) from None
        raise


def check(options: ServerOptions) -> None:
    """Refuse what is wrong before anything heavy is loaded; raises R1labError."""
    if find_spec("vllm") is None:
        raise R1labError("vLLM is not installed here; pip install 'r1lab[gpu]' (or 'r1lab[cpu]')")
    check_address(options.host, options.port)
    if options.weights_folder is None and options.transfer is None:
        raise R1labError(
            "--weights-folder: name the folder that weights come through (sampling.weights_folder "
            "of the recipe), or a --transfer"
        )
    if options.weights_folder is not None and not Path(options.weights_folder).is_dir():
        raise R1labError(f"--weights-folder: {options.weights_folder!r} is no folder here")


def vllm_arguments(options: ServerOptions) -> list[str]:
    """vLLM's own arguments, its environment set to match."""
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
        # Log-probs of what was sampled from: after temperature and top-p.
        *("--logprobs-mode", "processed_logprobs"),
        *("--worker-extension-cls", EXTENSION, "--middleware", MIDDLEWARE),
        *("--generation-config", "vllm"),  # nothing is added to what the trainer asks for
        *("--disable-log-stats", "--disable-uvicorn-access-log"),
    ]
    if options.transfer is not None:
        arguments += ["--weight-transfer-config", f'{{"backend": "{options.transfer}"}}']
    return [*arguments, *options.more]
