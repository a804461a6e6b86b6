"""`r1lab serve`: vLLM's OpenAI-compatible server on any model that r1lab knows.

The exported form is served, so that a client's messages become the prompt of training, and
thinking and content come apart by a reasoning parser.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec

from r1lab.config.recipe import ModelSettings
from r1lab.evaluate.target import Target
from r1lab.model.load import load_config
from r1lab.rollout.server.info import KEY_VARIABLE, check_address
from r1lab.rollout.vllm.serving import (
    GUARD,
    PARSER,
    PLUGIN,
    engine_arguments,
    serve_vllm,
)
from r1lab.stages.export import exported
from r1lab.types import R1labError


@dataclass(frozen=True, slots=True)
class ServeOptions:
    """What `r1lab serve` takes.

    reasoning  `r1lab`: the parser here; a name of vLLM's own; `none`: thinking stays in the content
    name       what clients call the model; None: its label
    more       arguments of `vllm serve`, as they are
    """

    host: str = "127.0.0.1"
    port: int = 8000
    name: str | None = None
    reasoning: str = PARSER
    template: str = "auto"
    dtype: str | None = None
    max_model_len: int | None = None
    kv_cache_gib: float = 1.0
    gpu_memory_utilization: float = 0.9
    more: Sequence[str] = field(default=())


def serve(target: Target, options: ServeOptions, say: Callable[[str], None]) -> None:
    """Serve the target until a signal ends it; `say` receives the address. Raises R1labError."""
    if target.is_server:
        raise R1labError(f"{target.path} is already a server; give a model")
    if find_spec("vllm") is None:
        raise R1labError("vLLM is not installed here; pip install 'r1lab[cpu]' (or 'r1lab[gpu]')")
    check_address(options.host, options.port)
    folder = exported(target, template=options.template)
    name = options.name or target.label
    arguments = [
        *engine_arguments(
            folder,
            load_config(folder, str(folder)),
            dtype=options.dtype or ModelSettings().dtype,
            max_model_len=options.max_model_len,
            kv_cache_gib=options.kv_cache_gib,
            gpu_memory_utilization=options.gpu_memory_utilization,
        ),
        *("--host", options.host, "--port", str(options.port), "--served-model-name", name),
    ]
    if os.environ.get(KEY_VARIABLE):
        arguments += ["--middleware", GUARD]
    if options.reasoning == PARSER:
        arguments += ["--reasoning-parser-plugin", PLUGIN, "--reasoning-parser", PARSER]
    elif options.reasoning != "none":
        arguments += ["--reasoning-parser", options.reasoning]
    say(
        f"starting vLLM with {folder}; when it is up, {name} answers at "
        f"http://{options.host}:{options.port}/v1"
    )
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    serve_vllm([*arguments, *options.more])
