"""The command `r1lab serve-sampler`."""

from __future__ import annotations

import argparse
import shlex
from dataclasses import fields

from r1lab.cli.arguments import whole
from r1lab.precision import CHOICES

_EPILOG = """\
The server samples for `r1lab train RECIPE --sampling.engine server`; docs/samplers.md says how.
Without R1LAB_SERVER_KEY in the environment it answers its own machine alone.
"""


def add_server_options(parser: argparse.ArgumentParser) -> None:
    """The arguments of `r1lab serve-sampler`."""
    parser.set_defaults(takes_overrides=False)
    parser.epilog = _EPILOG
    add = parser.add_argument
    add("model", metavar="MODEL", help="the recipe's model.path: a shipped base, folder, hub name")
    add("--host", default="127.0.0.1", help="address to listen at (default: this machine alone)")
    add("--port", type=whole(1), default=8000)
    add("--weights-folder", metavar="FOLDER", help="where weights come through, shared with the "
        "trainer (its sampling.weights_folder; the path may be another here)")  # fmt: skip
    add("--transfer", choices=["nccl"], help="take weights from GPU to GPU")
    add("--dtype", choices=CHOICES, default="auto",
        help="as model.dtype of the recipe")  # fmt: skip
    add(
        "--max-model-len", type=whole(1), help="prompt and response, at most (default: the model's)"
    )
    add("--kv-cache-gib", type=float, default=1.0, help="vLLM's cache, on a CPU (default: 1)")
    add("--gpu-memory-utilization", type=float, default=0.9, help="on a GPU (default: 0.9)")
    add("--max-num-seqs", type=whole(1), default=512, help="sequences at a time (default: 512)")
    add("--tensor-parallel-size", type=whole(1), default=1, help="GPUs that share the model")
    add("--seed", type=whole(0), default=0)
    add("--vllm", metavar="OPTIONS", default="",
        help='further options of vLLM, as they are: --vllm="--enable-expert-parallel"')  # fmt: skip


def serve_sampler(options: argparse.Namespace, _: object) -> int:
    """`r1lab serve-sampler`."""
    from r1lab.rollout.server.launch import ServerOptions, serve

    more = shlex.split(options.vllm)
    named = {f.name: getattr(options, f.name) for f in fields(ServerOptions) if f.name != "more"}
    serve(ServerOptions(**named, more=more))
    return 0
