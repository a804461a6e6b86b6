"""The commands for using models: `r1lab lineage`, `export`, `serve` and `chat`."""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from r1lab.cli.arguments import finite, positive, whole
from r1lab.precision import CHOICES, settled
from r1lab.types import R1labError

if TYPE_CHECKING:
    from r1lab.config.reading import Override
    from r1lab.evaluate.target import Target


def add_lineage_options(parser: argparse.ArgumentParser) -> None:
    """The arguments of `r1lab lineage`."""
    parser.set_defaults(takes_overrides=False)
    parser.add_argument(
        "model", metavar="MODEL",
        help="a model's folder, a run folder (its newest checkpoint), a checkpoint, a dataset, or "
        "a shipped base",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print the records instead")
    parser.epilog = (
        "pass@1 stands with its interval where an evaluation was kept. `changed since`: the files\n"
        "are no longer those that were recorded; `gone`: they are not there."
    )


def lineage(options: argparse.Namespace, _: object) -> int:
    """`r1lab lineage MODEL`."""
    from r1lab.lineage import lineage_tree, tree_lines

    tree = lineage_tree(options.model)
    if options.json:
        print(json.dumps(tree.as_dict(), indent=1))
    else:
        print("\n".join(tree_lines(tree)))
    return 0


def add_export_options(parser: argparse.ArgumentParser) -> None:
    """The arguments of `r1lab export`."""
    _add_model(parser)
    parser.add_argument("--out", metavar="FOLDER", required=True, help="a new folder for it")
    _add_prompt(parser)
    parser.add_argument(
        "--dtype", type=settled, choices=CHOICES, help="of the weights (as they are)"
    )
    parser.add_argument("--gguf-file", metavar="FILE", help="in MODEL, when it holds a GGUF")


def export(options: argparse.Namespace, overrides: list[Override]) -> int:
    """`r1lab export MODEL --out FOLDER`."""
    target = _target(options, overrides)
    from r1lab.stages.export import export_model

    out = export_model(
        target, options.out, template=options.template, dtype=options.dtype,
        gguf_file=options.gguf_file,
    )  # fmt: skip
    print(
        f"{out}: an ordinary Hugging Face folder; README.md is its card, lineage.json its descent"
    )
    return 0


def add_serve_options(parser: argparse.ArgumentParser) -> None:
    """The arguments of `r1lab serve`."""
    _add_model(parser)
    add = parser.add_argument
    add("--host", default="127.0.0.1", help="address to listen on (127.0.0.1: this machine alone)")
    add("--port", type=whole(1), default=8000, help="port to listen on (8000)")
    add(
        "--key-file", metavar="FILE",
        help="holds the key that clients must send; else $R1LAB_SERVER_KEY, needed for any other "
        "host than this one",
    )  # fmt: skip
    add("--name", help="what clients call the model (its label)")
    add(
        "--reasoning", default="r1lab", metavar="PARSER",
        help="takes thinking and content apart: r1lab, a parser of vLLM's, or none (r1lab)",
    )  # fmt: skip
    _add_prompt(parser)
    add("--dtype", type=settled, choices=CHOICES, help="of the weights (as this machine is fast)")
    add("--max-model-len", type=whole(1), help="prompt and response together (as the model allows)")
    add("--kv-cache-gib", type=positive, default=1.0, help="vLLM's cache on the CPU (1)")
    add(
        "--gpu-memory-utilization", type=positive, default=0.9, help="share of a GPU's memory (0.9)"
    )
    add("--vllm-args", default="", metavar="ARGS", help="further arguments of `vllm serve`")
    parser.epilog = (
        "Clients of OpenAI's find thinking in `reasoning` (and `reasoning_content`) and what\n"
        "stands behind it in `content`. docs/using-models.md has examples."
    )


def serve(options: argparse.Namespace, overrides: list[Override]) -> int:
    """`r1lab serve MODEL`."""
    if options.key_file:
        key = Path(options.key_file).expanduser().read_text(encoding="utf-8").strip()
        if not key:
            raise R1labError(f"--key-file: {options.key_file} is empty")
        os.environ["R1LAB_SERVER_KEY"] = key
    try:
        more = shlex.split(options.vllm_args)
    except ValueError as error:
        raise R1labError(f"--vllm-args: {options.vllm_args!r}: {error}") from None
    target = _target(options, overrides)
    from r1lab.stages.serving import ServeOptions
    from r1lab.stages.serving import serve as serve_target

    chosen = ServeOptions(
        host=options.host, port=options.port, name=options.name, reasoning=options.reasoning,
        template=options.template, dtype=options.dtype, max_model_len=options.max_model_len,
        kv_cache_gib=options.kv_cache_gib, gpu_memory_utilization=options.gpu_memory_utilization,
        more=more,
    )  # fmt: skip
    serve_target(target, chosen, lambda text: print(text, file=sys.stderr, flush=True))
    return 0


def add_chat_options(parser: argparse.ArgumentParser) -> None:
    """The arguments of `r1lab chat`."""
    _add_model(parser, ", or the URL of a running server")
    add = parser.add_argument
    add(
        "--thinking", choices=["show", "dim", "hide"],
        help="how the thinking part is shown (dim in a terminal, hide elsewhere)",
    )  # fmt: skip
    add("--engine", choices=["vllm", "transformers"], help="that samples (as in training, vllm)")
    _add_prompt(parser)
    add("--temperature", type=finite, help="of sampling (as evaluated, 1.0); 0 is greedy")
    add("--top-p", type=positive, help="of sampling (as evaluated, 1.0)")
    add("--max-tokens", type=whole(1), help="of an answer (all that the model has room for)")
    add("--seed", type=whole(0), help="of every answer: the same question has the same answer")
    add("--dtype", type=settled, choices=CHOICES, help="of the weights (as this machine is fast)")
    add("--kv-cache-gib", type=positive, default=1.0, help="vLLM's cache on the CPU (1)")
    add("--served-model", metavar="NAME", help="of a server that serves several")
    parser.epilog = (
        "Ctrl-T or /thinking switches how thinking is shown, Ctrl-C stops an answer, Ctrl-D\n"
        "leaves. Without a terminal each line of the input is a question."
    )


def chat(options: argparse.Namespace, overrides: list[Override]) -> int:
    """`r1lab chat MODEL`."""
    if options.temperature is not None and options.temperature < 0:
        raise R1labError(f"--temperature: {options.temperature:g} must be 0 or above")
    if options.top_p is not None and options.top_p > 1:
        raise R1labError(f"--top-p: {options.top_p:g} must be above 0 and at most 1")
    target = _target(options, overrides)
    from r1lab.chat.backends import ChatOptions, find_speaker
    from r1lab.chat.terminal import converse

    chosen = ChatOptions(
        engine=options.engine, template=options.template, temperature=options.temperature,
        top_p=options.top_p, max_tokens=options.max_tokens, seed=options.seed,
        dtype=options.dtype, kv_cache_gib=options.kv_cache_gib, served_model=options.served_model,
    )  # fmt: skip
    speaker = find_speaker(target, chosen)
    try:
        converse(speaker, options.thinking, target.label)
    finally:
        speaker.close()
    return 0


def _add_model(parser: argparse.ArgumentParser, more: str = "") -> None:
    parser.usage = f"{parser.prog} MODEL [options] [--section.key VALUE ...]"
    parser.add_argument(
        "model", metavar="MODEL",
        help="a run folder (its trained model), a recipe (its base), a checkpoint, an adapter, a "
        f"model's folder, a shipped base, a hub name{more}",
    )  # fmt: skip


def _add_prompt(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--template", default="auto", metavar="NAME",
        help="how it is asked: auto, chat, r1-zero, compact, plain, ... (auto: as trained, else "
        "its own chat template)",
    )  # fmt: skip


def _target(options: argparse.Namespace, overrides: list[Override]) -> Target:
    if importlib.util.find_spec("torch") is None:
        raise R1labError("torch is not installed here; install r1lab's extra [cpu] or [gpu]")
    from r1lab.evaluate.target import find_target

    return find_target(options.model, overrides)
