"""A reward model from pairs of replies, by TRL's RewardTrainer (Bradley-Terry).

For what no rule can judge (arXiv 2501.12948, section 2.3.4). It is a sequence classifier with one
output on the base's own architecture; `r1lab.stages.scorer:reward_model` asks it in training.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch

from r1lab.config.stages import RewardModelRecipe
from r1lab.model.load import load_config, prepare_base
from r1lab.stages.rows import TrainingRow, encoded_rows, read_rows
from r1lab.stages.scorer import experts_of, score_texts
from r1lab.stages.supervised import close_stage, newest_state, open_stage, trainer_arguments
from r1lab.types import RecipeError


def train_reward_model(recipe: RewardModelRecipe) -> Path:
    """Train (or resume) and return the folder of the reward model. Raises RecipeError."""
    from datasets import Dataset
    from trl import RewardConfig, RewardTrainer

    if recipe.model.lora is not None:
        raise RecipeError("model.lora: a reward model is trained in full; leave it out")
    rows = read_rows(recipe.rows, ("prompt", "chosen", "rejected"), recipe.seed)
    train, held_out = split_rows(rows, recipe.held_out)
    if not train:
        raise RecipeError("held_out: no row is left to train on; lower it, or add rows")
    folder = open_stage(recipe)
    model, tokenizer = load_scorer(recipe)
    limit = recipe.max_length or model.config.max_position_embeddings
    pairs = _encoded_pairs(train, tokenizer, limit)
    trainer = RewardTrainer(
        model=model,
        args=RewardConfig(**trainer_arguments(recipe, folder), max_length=None),
        train_dataset=Dataset.from_list(pairs),
        processing_class=tokenizer,
    )
    trained = trainer.train(resume_from_checkpoint=newest_state(folder))
    summary: dict[str, Any] = {
        "rows": len(pairs), "updates": trainer.state.global_step, "loss": trained.training_loss,
    }  # fmt: skip
    if trainer.is_world_process_zero():
        scorer = trainer.accelerator.unwrap_model(trainer.model)
        scorer.save_pretrained(folder / "model")
        tokenizer.save_pretrained(folder / "model")
        if held_out:
            summary["held_out_rows"] = len(held_out)
            summary["held_out_accuracy"] = _accuracy(scorer, tokenizer, held_out)
    close_stage(folder, trainer, summary)
    return folder / "model"


def load_scorer(recipe: RewardModelRecipe) -> tuple[Any, Any]:
    """The base with a head of one output (drawn from the seed) in place of its vocabulary's."""
    from transformers import AutoModelForSequenceClassification

    _, tokenizer, folder = prepare_base(recipe.model)
    config = load_config(folder, recipe.model.path)
    config.num_labels, config.pad_token_id = 1, tokenizer.pad_token_id
    torch.manual_seed(recipe.seed)
    try:
        model = AutoModelForSequenceClassification.from_pretrained(
            folder, config=config, dtype=getattr(torch, recipe.model.dtype), local_files_only=True,
            **experts_of(config),
        )  # fmt: skip
    except ValueError as error:
        message = " ".join(str(error).split())[:200]
        raise RecipeError(
            f"model.path: {recipe.model.path!r} does not support a score head: {message}"
        ) from None
    return model, tokenizer


def split_rows(
    rows: list[TrainingRow], share: float
) -> tuple[list[TrainingRow], list[TrainingRow]]:
    """(to train on, held out): by a hash of the prompt, so that a prompt is on one side only."""
    sides: tuple[list[TrainingRow], list[TrainingRow]] = ([], [])
    for row in rows:
        digest = hashlib.sha256(row["prompt"].encode()).digest()
        sides[int.from_bytes(digest[:8], "big") < share * 2**64].append(row)
    return sides


def _encoded_pairs(rows: list[TrainingRow], tokenizer: Any, limit: int) -> list[TrainingRow]:
    pairs = []
    for row in rows:
        chosen, _ = encoded_rows([row], tokenizer, "chosen", limit)
        rejected, _ = encoded_rows([row], tokenizer, "rejected", limit)
        if chosen and rejected:
            pairs.append({"chosen_ids": chosen[0]["input_ids"],
                          "rejected_ids": rejected[0]["input_ids"]})  # fmt: skip
    if not pairs:
        raise RecipeError(f"max_length: none of the {len(rows)} pairs has at most {limit} tokens")
    return pairs


def _accuracy(model: Any, tokenizer: Any, rows: list[TrainingRow]) -> float:
    """The share of held-out pairs whose chosen reply scores above the other."""
    model.eval()
    prompts = [row["prompt"] for row in rows]
    chosen = score_texts(model, tokenizer, prompts, [row["chosen"] for row in rows])
    rejected = score_texts(model, tokenizer, prompts, [row["rejected"] for row in rows])
    return sum(c > r for c, r in zip(chosen, rejected, strict=True)) / len(rows)
