"""The command `r1lab serve-sampler`."""

from __future__ import annotations

import argparse
import shlex
from dataclasses import fields

from r1lab.cli.arguments import whole
from r1lab.precision import CHOICES

_EPILOG = """\
The server samples for `r1lab train RECIPE --sampling.engine server`; see docs/samplers.md.
Without R1LAB_SERVER_KEY in the environment it accepts only local connections.
"""


def add_server_options(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `r1lab serve-sampler`."""
    parser.set_defaults(takes_overrides=False)
    parser.epilog = _EPILOG
    add = parser.add_argument
    add("model", metavar="MODEL", help="the recipe's model.path: a shipped model, folder, hub name")
    add(
        "--host", default="127.0.0.1",
        help="address to listen on (default: 127.0.0.1, this machine only)",
    )  # fmt: skip
    add("--port", type=whole(1), default=8000, help="port to listen on (default: 8000)")
    add("--weights-folder", metavar="FOLDER", help="shared folder from which weights are read: the "
        "trainer's sampling.weights_folder, under the path that this machine uses")  # fmt: skip
    add("--transfer", choices=["nccl"], help="receive weights from GPU to GPU")
    add("--dtype", choices=CHOICES, default="auto",
        help="dtype of the weights, as model.dtype of the recipe (default: auto)")  # fmt: skip
    add(
        "--max-model-len", type=whole(1),
        help="maximum tokens of prompt and response together (default: the model's)",
    )  # fmt: skip
    add(
        "--kv-cache-gib", type=float, default=1.0,
        help="vLLM's KV cache on a CPU, in GiB (default: 1)",
    )  # fmt: skip
    add(
        "--gpu-memory-utilization", type=float, default=0.9,
        help="fraction of GPU memory that vLLM may use (default: 0.9)",
    )  # fmt: skip
    add(
        "--max-num-seqs", type=whole(1), default=512,
        help="maximum concurrent sequences (default: 512)",
    )  # fmt: skip
    add(
        "--tensor-parallel-size", type=whole(1), default=1,
        help="number of GPUs that share the model (default: 1)",
    )  # fmt: skip
    add("--seed", type=whole(0), default=0, help="random seed of the engine (default: 0)")
    add("--vllm", metavar="OPTIONS", default="",
        help='additional vLLM options: --vllm="--enable-expert-parallel"')  # fmt: skip


def serve_sampler(options: argparse.Namespace, _: object) -> int:
    """`r1lab serve-sampler`."""
    from r1lab.rollout.server.launch import ServerOptions, serve

    more = shlex.split(options.vllm)
    named = {f.name: getattr(options, f.name) for f in fields(ServerOptions) if f.name != "more"}
    serve(ServerOptions(**named, more=more))
    return 0
