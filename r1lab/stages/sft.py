"""Supervised fine-tuning on prompts and completions, by TRL's SFTTrainer.

The cold start of DeepSeek-R1 (arXiv 2501.12948, section 2.3.1), its SFT on rejection samples
(2.3.3) and the distillation into dense students (2.4). The loss is over completions alone.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from r1lab.config.stages import SftRecipe
from r1lab.stages.rows import encoded_rows, read_rows
from r1lab.stages.supervised import (
    close_stage,
    load_student,
    newest_state,
    open_stage,
    save_student,
    trainer_arguments,
)
from r1lab.types import RecipeError


def sft(recipe: SftRecipe) -> Path:
    """Train (or resume) and return the folder of the model. Raises RecipeError."""
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    rows = read_rows(recipe.rows, ("prompt", "completion"), recipe.seed)
    folder = open_stage(recipe)
    model, tokenizer = load_student(recipe)
    limit = recipe.max_length or model.config.max_position_embeddings
    kept, left_out = encoded_rows(rows, tokenizer, "completion", limit)
    if not kept:
        raise RecipeError(f"max_length: none of the {len(rows)} rows has at most {limit} tokens")
    settings: dict[str, Any] = trainer_arguments(recipe, folder)
    trainer = SFTTrainer(
        model=model,
        args=SFTConfig(
            **settings, max_length=None, completion_only_loss=True, packing=False,
            shuffle_dataset=True,
        ),
        train_dataset=Dataset.from_list(kept),
        processing_class=tokenizer,
    )  # fmt: skip
    trained = trainer.train(resume_from_checkpoint=newest_state(folder))
    made = save_student(folder, trainer, tokenizer)
    summary = {
        "rows": len(kept), "rows_left_out": left_out, "updates": trainer.state.global_step,
        "loss": trained.training_loss,
    }  # fmt: skip
    close_stage(folder, trainer, summary)
    return made
