"""Export a model as a Hugging Face folder usable without r1lab: `r1lab export`.

Adapters are merged as the sampler sees them (base + delta, `r1lab.model.weights`); whole weights
are copied byte for byte. The tokenizer gets a chat template that writes the very prompt the model
was trained with, so that `apply_chat_template(..., add_generation_prompt=True)`, vLLM's server and
chat programs ask it rightly. The prompts of training hold one question: of a conversation, the
template asks the last one.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from r1lab.evaluate.prompting import AUTO, CHAT, template_name
from r1lab.evaluate.target import Target, model_settings
from r1lab.lineage import figures_of, read_lineage, write_lineage
from r1lab.model.files import make_saveable
from r1lab.model.load import cache_folder, end_tokens, load_model, prepare_base
from r1lab.model.weights import save_checkpoint_folder
from r1lab.prompts import TEMPLATES, Template
from r1lab.rollout.source import encode_prompt
from r1lab.stages.export_card import render_export
from r1lab.types import R1labError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_WEIGHTS = ("*.safetensors", "*.safetensors.index.json")


def export_model(
    target: Target,
    out: str | Path,
    *,
    template: str = AUTO,
    dtype: str | None = None,
    gguf_file: str | None = None,
    link: bool = False,
) -> Path:
    """Write the target as a folder that plain transformers and vLLM load; return it.

    template  of `r1lab.prompts`, `chat` (the tokenizer's own), or `auto`: as trained
    dtype     of the weights; None leaves them as they are
    link      weights are linked, not copied, where the disk can: for a cache
    Raises R1labError if `out` is not empty, or if the target cannot be exported.
    """
    if target.is_server:
        raise R1labError(f"{target.path} is a server; give the folder of the model that it serves")
    out = Path(out).expanduser()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise R1labError(f"--out: {out} is not empty; name another folder")
    settings = model_settings(target, dtype=dtype, gguf_file=gguf_file)
    config, tokenizer, folder = prepare_base(settings)
    asked = template_name(template, target, folder, tokenizer)
    partial = out.with_name(f"{out.name}.{os.getpid()}.partial")
    partial.mkdir(parents=True)
    try:
        if dtype is None and any(folder.glob("*.safetensors")):  # merged already, if need be
            _take_weights(folder, partial, os.link if link else shutil.copyfile)
        else:
            model = load_model(folder, config, getattr(torch, settings.dtype))
            save_checkpoint_folder(model, tokenizer, partial)
        _write_generation_config(config, tokenizer, folder, partial, target)
        _write_tokenizer(tokenizer, partial, asked)
        if out.exists():
            out.rmdir()
        partial.rename(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    _describe(out, target, folder, asked)
    return out


def exported(target: Target, *, template: str = AUTO) -> Path:
    """The target in exported form, for who needs it once: its own folder where that will do.

    That is where its tokenizer has a chat template already and no other prompt is asked for; else
    an export in the cache folder, made once for each state of the model.
    """
    settings = model_settings(target)
    _, tokenizer, folder = prepare_base(settings)
    asked = template_name(template, target, folder, tokenizer)
    if asked == CHAT or tokenizer.chat_template == chat_template_of(TEMPLATES[asked], tokenizer):
        return folder
    files = sorted(file for pattern in (*_WEIGHTS, "*.json") for file in folder.glob(pattern))
    stats = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    key = hashlib.sha256(f"{folder.resolve()} {stats} {asked}".encode()).hexdigest()[:12]
    place = cache_folder() / f"export-{target.label}-{key}"
    if not (place / "README.md").is_file():
        shutil.rmtree(place, ignore_errors=True)
        export_model(target, place, template=template, link=True)
    return place


def chat_template_of(template: Template, tokenizer: PreTrainedTokenizerBase) -> str:
    """A chat template (Jinja) whose generation prompt is `template.prompt` of the last question.

    Behind a tokenizer that begins every text with a token of its own, the prompt begins with it:
    servers add none to what a chat template writes. An assistant's message stands behind the
    question that it answers, ended by the end of sequence.
    """
    before, _, behind = template.text.partition("{question}")
    first = tokenizer.bos_token_id
    begins = first is not None and tokenizer("a")["input_ids"][:1] == [first]
    return (
        "{%- set ns = namespace(question='') -%}"
        "{%- for message in messages -%}{%- if message['role'] == 'user' -%}"
        "{%- set ns.question = message['content'] -%}{%- endif -%}{%- endfor -%}"
        f"{'{{- bos_token -}}' if begins else ''}"
        f"{{{{- {_quoted(before)} + ns.question + {_quoted(behind)} -}}}}"
        f"{{%- if add_generation_prompt -%}}{{{{- {_quoted(template.prefix)} -}}}}"
        "{%- elif messages and messages[-1]['role'] == 'assistant' -%}"
        "{{- messages[-1]['content'] + eos_token -}}{%- endif -%}"
    )


def _quoted(text: str) -> str:
    """A string literal of Jinja, which reads Python's escapes."""
    return json.dumps(text, ensure_ascii=True)


def _take_weights(folder: Path, to: Path, take: Callable[[Path, Path], Any]) -> None:
    files = sorted(file for pattern in _WEIGHTS for file in folder.glob(pattern))
    for file in files:
        try:
            take(file.resolve(), to / file.name)
        except OSError:  # another disk, or one without links
            shutil.copyfile(file, to / file.name)
    shutil.copyfile(folder / "config.json", to / "config.json")


def _write_generation_config(
    config: Any, tokenizer: PreTrainedTokenizerBase, folder: Path, to: Path, target: Target
) -> None:
    """Ends and sampling as the model was evaluated, for `generate` and servers."""
    from transformers import GenerationConfig

    file = folder / "generation_config.json"
    has_own = file.is_file()
    written = (
        GenerationConfig.from_pretrained(folder)
        if has_own
        else GenerationConfig.from_model_config(config)
    )
    ends = end_tokens(tokenizer, folder)
    written.eos_token_id = ends[0] if len(ends) == 1 else list(ends)
    if written.pad_token_id is None:
        written.pad_token_id = tokenizer.pad_token_id
    if target.recipe is not None:
        asked = target.recipe.evaluation
        written.do_sample, written.temperature = asked.temperature > 0, asked.temperature or None
        written.top_p = asked.top_p
    make_saveable(written)
    written.save_pretrained(to)


def _write_tokenizer(tokenizer: PreTrainedTokenizerBase, to: Path, asked: str) -> None:
    if asked != CHAT:
        template = TEMPLATES[asked]
        tokenizer.chat_template = chat_template_of(template, tokenizer)
        question = "1 + 1 ?"
        message = [{"role": "user", "content": question}]
        found = tokenizer.apply_chat_template(message, add_generation_prompt=True, tokenize=False)
        ids = tokenizer(found, add_special_tokens=False)["input_ids"]
        if tuple(ids) != encode_prompt(tokenizer, template.prompt(question)):
            raise R1labError(
                f"--template {asked}: this model's tokenizer reads the prompt of a chat template "
                "otherwise than that of training; export it with --template chat"
            )
    tokenizer.save_pretrained(to)


def _describe(out: Path, target: Target, folder: Path, asked: str) -> None:
    """The lineage record and the model card; the recipe of the source goes along."""
    source = _source(target, folder)
    record = read_lineage(source) if source.is_dir() else None
    write_lineage(
        out,
        stage="export",
        parents=[source if source.is_dir() else target.path],
        recipe=record.recipe if record else None,
        name=target.label,
        template=None if asked == CHAT else asked,
        figures=figures_of(source) if source.is_dir() else (),
    )
    card = render_export(out, target, source, None if asked == CHAT else TEMPLATES[asked])
    (out / "README.md").write_text(card, encoding="utf-8")


def _source(target: Target, folder: Path) -> Path:
    """What was exported: an adapter's own folder rather than the one that it was merged into."""
    given = Path(target.path).expanduser()
    return given if given.is_dir() else folder
