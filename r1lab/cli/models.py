"""The commands that use models: `r1lab lineage`, `export`, `serve` and `chat`."""

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
    """Add the arguments of `r1lab lineage`."""
    parser.set_defaults(takes_overrides=False)
    parser.add_argument(
        "model", metavar="MODEL",
        help="a model folder, a run folder (its newest checkpoint), a checkpoint, a dataset, or "
        "a shipped base model",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print the records as JSON")
    parser.epilog = (
        "pass@1 is shown with its interval if an evaluation was stored. `changed since`: the\n"
        "files differ from the recorded ones; `gone`: they no longer exist."
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
    """Add the arguments of `r1lab export`."""
    _add_model(parser)
    parser.add_argument("--out", metavar="FOLDER", required=True, help="new folder to write")
    _add_prompt(parser)
    parser.add_argument(
        "--dtype", type=settled, choices=CHOICES, help="dtype of the weights (default: unchanged)"
    )
    parser.add_argument("--gguf-file", metavar="FILE", help="GGUF file inside MODEL")


def export(options: argparse.Namespace, overrides: list[Override]) -> int:
    """`r1lab export MODEL --out FOLDER`."""
    target = _target(options, overrides)
    from r1lab.stages.export import export_model

    out = export_model(
        target, options.out, template=options.template, dtype=options.dtype,
        gguf_file=options.gguf_file,
    )  # fmt: skip
    print(
        f"{out}: a standard Hugging Face folder; README.md is the model card, lineage.json the "
        "lineage"
    )
    return 0


def add_serve_options(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `r1lab serve`."""
    _add_model(parser)
    add = parser.add_argument
    add(
        "--host", default="127.0.0.1",
        help="address to listen on (default: 127.0.0.1, this machine only)",
    )  # fmt: skip
    add("--port", type=whole(1), default=8000, help="port to listen on (default: 8000)")
    add(
        "--key-file", metavar="FILE",
        help="file with the key that clients must send (default: $R1LAB_SERVER_KEY); a key is "
        "required unless the host is local",
    )  # fmt: skip
    add("--name", help="model name that clients use (default: its label)")
    add(
        "--reasoning", default="r1lab", metavar="PARSER",
        help="parser that separates thinking from content: r1lab, one of vLLM's, or none "
        "(default: r1lab)",
    )  # fmt: skip
    _add_prompt(parser)
    add(
        "--dtype", type=settled, choices=CHOICES,
        help="dtype of the weights (default: the faster one on this machine)",
    )  # fmt: skip
    add(
        "--max-model-len", type=whole(1),
        help="maximum tokens of prompt and response together (default: the model's)",
    )  # fmt: skip
    add(
        "--kv-cache-gib", type=positive, default=1.0,
        help="vLLM's KV cache on the CPU, in GiB (default: 1)",
    )  # fmt: skip
    add(
        "--gpu-memory-utilization", type=positive, default=0.9,
        help="fraction of GPU memory that vLLM may use (default: 0.9)",
    )  # fmt: skip
    add("--vllm-args", default="", metavar="ARGS", help="additional arguments for `vllm serve`")
    parser.epilog = (
        "OpenAI clients find the thinking in `reasoning` (and `reasoning_content`) and the rest\n"
        "of the response in `content`. docs/using-models.md has examples."
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
    """Add the arguments of `r1lab chat`."""
    _add_model(parser, ", or the URL of a running server")
    add = parser.add_argument
    add(
        "--thinking", choices=["show", "dim", "hide"],
        help="how to display thinking (default: dim in a terminal, otherwise hide)",
    )  # fmt: skip
    add(
        "--engine", choices=["vllm", "transformers"],
        help="sampling engine (default: as in training, else vllm)",
    )  # fmt: skip
    _add_prompt(parser)
    add(
        "--temperature", type=finite,
        help="sampling temperature (default: as in evaluation, else 1.0); 0: greedy",
    )  # fmt: skip
    add(
        "--top-p", type=positive,
        help="nucleus sampling threshold (default: as in evaluation, else 1.0)",
    )  # fmt: skip
    add(
        "--max-tokens", type=whole(1),
        help="maximum tokens of an answer (default: the rest of the model's context)",
    )  # fmt: skip
    add(
        "--seed", type=whole(0),
        help="sampling seed of every answer, so that the same question gets the same answer",
    )  # fmt: skip
    add(
        "--dtype", type=settled, choices=CHOICES,
        help="dtype of the weights (default: the faster one on this machine)",
    )  # fmt: skip
    add(
        "--kv-cache-gib", type=positive, default=1.0,
        help="vLLM's KV cache on the CPU, in GiB (default: 1)",
    )  # fmt: skip
    add("--served-model", metavar="NAME", help="model name, if the server serves several models")
    parser.epilog = (
        "Ctrl-T or /thinking toggles the display of thinking, Ctrl-C stops an answer, Ctrl-D\n"
        "exits. Without a terminal, each line of the input is a question."
    )


def chat(options: argparse.Namespace, overrides: list[Override]) -> int:
    """`r1lab chat MODEL`."""
    if options.temperature is not None and options.temperature < 0:
        raise R1labError(f"--temperature: {options.temperature:g} must be at least 0")
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
        f"model folder, a shipped base model, a hub name{more}",
    )  # fmt: skip


def _add_prompt(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--template", default="auto", metavar="NAME",
        help="prompt template: auto, chat, r1-zero, compact, plain, ... (auto: as trained, else "
        "the model's chat template)",
    )  # fmt: skip


def _target(options: argparse.Namespace, overrides: list[Override]) -> Target:
    if importlib.util.find_spec("torch") is None:
        raise R1labError("torch is not installed here; install r1lab's extra [cpu] or [gpu]")
    from r1lab.evaluate.target import find_target

    return find_target(options.model, overrides)
