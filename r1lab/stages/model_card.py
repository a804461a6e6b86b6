"""Write the finished base: its folder, its scores, and its model card."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from r1lab.config.recipe import PretrainRecipe
from r1lab.hashing import file_sha256
from r1lab.model.balance import ExpertLoad, routers
from r1lab.model.config import kv_cache_bytes_per_token
from r1lab.model.weights import save_checkpoint_folder

_DOCUMENTS_PER_KIND = 300


def finish_base(
    recipe: PretrainRecipe, folder: Path, model: Any, tokenizer: Any, corpus: Any, progress: Any
) -> Path:
    """Write the base as an ordinary model folder with its card; return that folder."""
    target = folder / "model"
    save_checkpoint_folder(model, tokenizer, target)
    card = {
        "size": recipe.size,
        "parameters": sum(p.numel() for p in model.parameters()),
        "seed": recipe.seed,
        "tokens": progress.tokens,
        "updates": progress.step,
        "seconds": round(progress.seconds),
        "threads": torch.get_num_threads(),
        "response_loss": final_loss(folder),
        "corpus": {"source": recipe.corpus.source, **corpus_dials(corpus)},
        **_of_v3(model, tokenizer, corpus),
        "sha256": {p.name: file_sha256(p) for p in sorted(target.glob("*.safetensors"))},
    }
    if recipe.card_problems:
        from r1lab.stages.base_scores import score_base

        card["scores"] = score_base(target, recipe)
    (target / "card.json").write_text(json.dumps(card, indent=1) + "\n")
    (target / "README.md").write_text(render_card(recipe, card), encoding="utf-8")
    return target


def _of_v3(model: Any, tokenizer: Any, corpus: Any) -> dict[str, Any]:
    """What a card says of experts and latent attention; nothing of a dense model."""
    if not routers(model):
        return {}
    loads = expert_load_by_kind(model, tokenizer, corpus)
    latent, plain = kv_cache_bytes_per_token(model.config)
    return {
        "expert_load": {name: load.tolist() for name, load in loads.items()},
        "expert_load_distance": load_distances(loads),
        "kv_cache_bytes_per_token": {"mla": latent, "multi_head": plain},
    }


def corpus_dials(corpus: Any) -> dict[str, Any]:
    """The corpus's dials as plain values, where it has any."""
    return dict(vars(corpus.dials)) if hasattr(corpus, "dials") else {}


def final_loss(folder: Path) -> float:
    """Mean response loss (nats a token) over the last twentieth of the log."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    last = lines[-max(len(lines) // 20, 1) :]
    return round(sum(line["response_loss"] for line in last) / len(last), 4)


@torch.no_grad()
def expert_load_by_kind(model: Any, tokenizer: Any, corpus: Any) -> dict[str, torch.Tensor]:
    """Share of tokens each expert gets, [layers, experts], over all and by kind of problem.

    Documents are those of the corpus far behind what was trained on.
    """
    texts: dict[str, list[str]] = {}
    index = 10**9
    while len(texts) == 0 or min(map(len, texts.values())) < _DOCUMENTS_PER_KIND:
        document = corpus[index]
        if document.prompt:
            texts.setdefault(document.task, []).append(f"{document.prompt} {document.response}")
        index += 1
        if index - 10**9 > 200 * _DOCUMENTS_PER_KIND:
            break
    counts = {task: _load_of(model, tokenizer, found) for task, found in sorted(texts.items())}
    total = torch.stack(list(counts.values())).sum(0)
    return {name: c / c.sum(-1, keepdim=True) for name, c in {"all": total, **counts}.items()}


def _load_of(model: Any, tokenizer: Any, texts: list[str]) -> torch.Tensor:
    with ExpertLoad(model) as load:
        for text in texts[:_DOCUMENTS_PER_KIND]:
            model(input_ids=torch.tensor([tokenizer.encode(text)]), use_cache=False)
        return load.take()


def load_distances(loads: Mapping[str, torch.Tensor]) -> dict[str, float]:
    """Total variation (0 to 1) of each kind's expert load from that over all, mean over layers."""
    return {
        name: round(float((load - loads["all"]).abs().sum(-1).mean() / 2), 4)
        for name, load in loads.items()
        if name != "all"
    }


def render_card(recipe: PretrainRecipe, card: Mapping[str, Any]) -> str:
    """The card as Markdown: the content of card.json for readers."""
    cache = card.get("kv_cache_bytes_per_token")
    kind = "V3-style base (MLA, mixture of experts, router bias)" if cache else "dense base"
    lines = [
        f"# {recipe.name}",
        "",
        f"A {kind} of {card['parameters']:,} "
        "parameters, pre-trained from nothing on synthetic problems with answers. Written by "
        f"`r1lab pretrain`; rebuilt by `r1lab pretrain recipes/pretrain_{recipe.name}.yaml`.",
        "",
        f"- {card['tokens']:,} tokens, {card['updates']:,} updates, {card['seconds'] / 60:.0f} "
        f"minutes with {card['threads']} thread(s), seed {card['seed']}",
        f"- response loss at the end: {card['response_loss']} nats a token",
        *(_cache_lines(cache) if cache else []),
        *(f"- sha256 of {name}: `{digest}`" for name, digest in card["sha256"].items()),
        "",
        "## Corpus",
        "",
        "| dial | value |",
        "|---|---|",
        *(f"| {name} | {value} |" for name, value in card["corpus"].items()),
        "",
        *score_lines(card.get("scores")),
    ]
    if "expert_load" in card:
        lines += _load_lines(card)
    return "\n".join(lines)


def _cache_lines(cache: Mapping[str, int]) -> list[str]:
    return [
        f"- KV cache: {cache['mla']:,} bytes a token with MLA, {cache['multi_head']:,} with plain "
        f"multi-head attention of the same heads ({cache['multi_head'] / cache['mla']:.1f}x), bf16"
    ]


def _load_lines(card: Mapping[str, Any]) -> list[str]:
    lines = [
        "## Expert load",
        "",
        "Share of tokens by expert, one row a layer of experts (even: "
        f"{1 / len(card['expert_load']['all'][0]):.3f}).",
        "",
        "| kind | layer | shares | distance from all |",
        "|---|---|---|---|",
    ]
    for name, load in card["expert_load"].items():
        distance = card["expert_load_distance"].get(name, "")
        for layer, shares in enumerate(load):
            message = " ".join(f"{share:.3f}" for share in shares)
            lines.append(f"| {name} | {layer} | {message} | {distance if layer == 0 else ''} |")
    lines += [
        "",
        "Distance: total variation between a kind's load and the load over all kinds, mean over "
        "layers; 0 is the same use of experts, 1 no expert in common.",
        "",
    ]
    return lines


_SCORES = {
    "pass_at_1": ".3f", "cons_at_k": ".3f", "greedy": ".3f", "format": ".3f", "length": ".1f",
}  # fmt: skip


def score_lines(scores: Mapping[str, Any] | None) -> list[str]:
    """The scores of a base by kind of problem, as a table in Markdown."""
    if not scores:
        return []
    rows = [
        f"| {kind} | "
        + " | ".join(
            f"{s[name]:{form}}" if s.get(name) is not None else "none"
            for name, form in _SCORES.items()
        )
        + " |"
        for kind, s in scores["kinds"].items()
    ]
    return [
        "## Scores before any reinforcement learning",
        "",
        f"{scores['num_problems']} held-out problems of each kind, {scores['num_samples']} samples "
        "each, temperature 1.",
        "",
        "| kind | pass@1 | cons@k | greedy | format | length |",
        "|---|---|---|---|---|---|",
        *rows,
        "",
    ]
