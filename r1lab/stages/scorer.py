"""Asking a trained reward model: what no rule can judge.

In a recipe it is the reward `r1lab.stages.scorer:reward_model`, with `isolate: false`, so that the
model is loaded once. The score goes through a logistic function: it lies between 0 and 1 as rule
rewards do, and no single reply can outweigh a batch.
"""

from __future__ import annotations

import json
import math
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from r1lab.model.load import load_config
from r1lab.stages.rows import encoded_rows
from r1lab.types import RecipeError

_BATCH = 64  # replies a forward pass


def reward_model(
    prompts: list[str],
    completions: list[str],
    *,
    path: str,
    only: str | None = None,
    **columns: Any,
) -> list[float | None]:
    """The logistic of the model's score, 0 to 1; None for problems that are not meant.

    `path` is the reward model's folder, `only` a key of the metadata of those that are.
    """
    keys = columns.get(only, [None] * len(prompts)) if only else prompts
    meant = [i for i, key in enumerate(keys) if key is not None]
    scores: list[float | None] = [None] * len(prompts)
    if meant:
        model, tokenizer = _loaded(path)
        found = score_texts(
            model, tokenizer, [prompts[i] for i in meant], [completions[i] for i in meant]
        )
        for i, score in zip(meant, found, strict=True):
            scores[i] = 1.0 / (1.0 + math.exp(-max(min(score, 30.0), -30.0)))
    return scores


@lru_cache(maxsize=2)
def _loaded(path: str) -> tuple[Any, Any]:
    return load_reward_model(path)


@torch.no_grad()
def score_texts(model: Any, tokenizer: Any, prompts: list[str], replies: list[str]) -> list[float]:
    """The model's score of each reply behind its prompt, in batches."""
    rows = [{"prompt": p, "reply": r} for p, r in zip(prompts, replies, strict=True)]
    limit = model.config.max_position_embeddings
    scores: list[float] = []
    for start in range(0, len(rows), _BATCH):
        some, left_out = encoded_rows(rows[start : start + _BATCH], tokenizer, "reply", limit)
        if left_out:
            raise RecipeError(f"{left_out} replies are longer than the reward model's {limit}")
        longest = max(len(row["input_ids"]) for row in some)
        ids = torch.full((len(some), longest), tokenizer.pad_token_id)
        mask = torch.zeros_like(ids)
        for i, row in enumerate(some):
            ids[i, : len(row["input_ids"])] = torch.tensor(row["input_ids"])
            mask[i, : len(row["input_ids"])] = 1
        logits = model(input_ids=ids.to(model.device), attention_mask=mask.to(model.device)).logits
        scores += logits[:, 0].float().tolist()
    return scores


def load_reward_model(folder: str) -> tuple[Any, Any]:
    """A trained reward model and its tokenizer, for asking. Raises RecipeError."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    path = Path(folder).expanduser()
    if not (path / "config.json").is_file():
        raise RecipeError(f"{folder!r} is not a reward model: it has no config.json")
    config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    if not any("SequenceClassification" in name for name in config.get("architectures", ())):
        raise RecipeError(f"{folder!r} is not a reward model but {config.get('architectures')}")
    loaded = load_config(path, folder, causal=False)
    model = AutoModelForSequenceClassification.from_pretrained(
        path, config=loaded, dtype=torch.float32, local_files_only=True, **experts_of(loaded)
    )
    return model.eval(), AutoTokenizer.from_pretrained(path, local_files_only=True)


def experts_of(config: Any) -> dict[str, str]:
    """How a mixture of experts is to compute them: on the CPU `eager`, the fastest there by far."""
    mixture = getattr(config, "n_routed_experts", None) or getattr(config, "num_local_experts", 0)
    return {"experts_implementation": "eager"} if mixture and not torch.cuda.is_available() else {}
