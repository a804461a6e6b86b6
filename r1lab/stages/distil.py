"""On-policy distillation (Agarwal et al., arXiv 2306.13649), by TRL's DistillationTrainer.

The student answers prompts itself, and is drawn to the teacher's distribution over each token of
what it wrote: it learns to continue from its own mistakes, which rows of a teacher do not show it.
Teacher and student need one vocabulary.
"""

from __future__ import annotations

from pathlib import Path

from r1lab.config.stages import DistilRecipe
from r1lab.model.load import load_base
from r1lab.stages.rows import read_rows
from r1lab.stages.supervised import (
    close_stage,
    load_student,
    newest_state,
    open_stage,
    save_student,
    trainer_arguments,
)
from r1lab.types import RecipeError


def distil(recipe: DistilRecipe) -> Path:
    """Train (or resume) and return the folder of the student. Raises RecipeError."""
    from datasets import Dataset
    from trl import DistillationConfig, DistillationTrainer

    rows = read_rows(recipe.rows, ("prompt",), recipe.seed)
    if len(rows) < recipe.batch_size:  # TRL takes whole batches alone, and would find none
        raise RecipeError(
            f"batch_size: {recipe.batch_size} prompts are needed for an update, but rows has "
            f"{len(rows)}"
        )
    folder = open_stage(recipe)
    model, tokenizer = load_student(recipe)
    teacher, other, _ = load_base(recipe.teacher)
    if other.get_vocab() != tokenizer.get_vocab():
        raise RecipeError(
            f"teacher.path: {recipe.teacher.path!r} has another vocabulary than "
            f"{recipe.model.path!r}, and their distributions cannot be compared"
        )
    trainer = DistillationTrainer(
        model=model,
        teacher_model=teacher,
        args=DistillationConfig(
            **trainer_arguments(recipe, folder), max_completion_length=recipe.max_tokens,
            temperature=recipe.temperature, beta=recipe.beta,
        ),
        train_dataset=Dataset.from_list([{"prompt": row["prompt"]} for row in rows]),
        processing_class=tokenizer,
    )  # fmt: skip
    trained = trainer.train(resume_from_checkpoint=newest_state(folder))
    made = save_student(folder, trainer, tokenizer)
    summary = {
        "rows": len(rows), "updates": trainer.state.global_step, "loss": trained.training_loss,
    }  # fmt: skip
    close_stage(folder, trainer, summary)
    return made
