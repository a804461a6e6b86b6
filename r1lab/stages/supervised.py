"""Shared code of the stages on TRL's trainers: arguments, progress, completion.

TRL trains, saves and resumes; what is ours is which model it gets, which rows, and the folder that
is left: `model/` as every other stage and the samplers read it, `summary.json`, and
`metrics.jsonl`, a line for each time that TRL logs.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch

from r1lab.config.reading import dump_resolved
from r1lab.config.stages import SupervisedRecipe
from r1lab.hashing import changed_inputs, input_digests
from r1lab.model.adapters import add_lora
from r1lab.model.load import load_base
from r1lab.model.weights import save_checkpoint_folder
from r1lab.types import RecipeError

_STATES = "states"


def open_stage(recipe: Any) -> Path:
    """The stage's folder, with its resolved recipe and digests of what that names.

    Raises RecipeError if it belongs to another recipe, or its inputs have changed.
    """
    from r1lab.config.diff import differences, moved
    from r1lab.config.plain_yaml import parse

    folder = Path(recipe.run_folder)
    folder.mkdir(parents=True, exist_ok=True)
    written, named = folder / "recipe.yaml", folder / "inputs.json"
    found = input_digests(recipe)
    if written.exists():
        inputs = (json.loads(named.read_text()) if named.exists() else {}, found)
        now = recipe.model_dump(mode="json")
        before = moved(parse(written.read_text(encoding="utf-8")), now, inputs)
        changed = [
            f"{key}: {text}"
            for key, text in differences(before, now)
            if key not in ("name", "output")
        ] + changed_inputs(*inputs)
        if changed:
            raise RecipeError(
                f"output: {folder} contains a stage of another recipe ({'; '.join(changed)}); "
                "change it back, or name another folder with --output"
            )
    written.write_text(dump_resolved(recipe), encoding="utf-8")
    named.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return folder


def load_student(recipe: SupervisedRecipe) -> tuple[Any, Any]:
    """The model to train, with adapters where the recipe wants them, and its tokenizer.

    Weights are trained in float32 on the CPU and under the recipe's precision elsewhere: TRL keeps
    no float32 copy of its own.
    """
    model, tokenizer, _ = load_base(recipe.model)
    model.config.use_cache = False
    if recipe.model.lora is not None:
        model = add_lora(model, recipe.model.lora, seed=recipe.seed)
    return model, tokenizer


def trainer_arguments(recipe: SupervisedRecipe, folder: Path) -> dict[str, Any]:
    """What every trainer of TRL is told; progress and states go below the stage's folder."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    passes, rest = divmod(recipe.batch_size, recipe.micro_batch_size * world)
    if rest or not passes:
        raise RecipeError(
            f"batch_size: {recipe.batch_size} must be a multiple of micro_batch_size times the "
            f"{world} processes ({recipe.micro_batch_size * world})"
        )
    return {
        "output_dir": str(folder / _STATES),
        "seed": recipe.seed,
        "num_train_epochs": recipe.epochs,
        "per_device_train_batch_size": recipe.micro_batch_size,
        "gradient_accumulation_steps": passes,
        "learning_rate": recipe.learning_rate,
        "lr_scheduler_type": "cosine",
        "warmup_steps": recipe.warmup_fraction,  # below 1: a share of the updates
        "weight_decay": recipe.weight_decay,
        "max_grad_norm": recipe.max_grad_norm,
        "adam_beta2": 0.95,
        "logging_steps": 5,
        "save_strategy": "steps" if recipe.checkpoint_every else "no",
        "save_steps": recipe.checkpoint_every or 500,
        "save_total_limit": 1,
        "report_to": [],
        "bf16": recipe.model.dtype == "bfloat16",
        "use_cpu": not torch.cuda.is_available(),
        "gradient_checkpointing": False,
        "disable_tqdm": False,
        "dataloader_pin_memory": torch.cuda.is_available(),
    }


def newest_state(folder: Path) -> str | None:
    """Return the newest complete state of TRL, or None."""
    states = [path for path in (folder / _STATES).glob("checkpoint-*")
              if (path / "trainer_state.json").exists()]  # fmt: skip
    newest = max(states, key=lambda path: int(path.name.rpartition("-")[2]), default=None)
    return str(newest) if newest else None


def save_student(folder: Path, trainer: Any, tokenizer: Any) -> Path:
    """Write the trained model, adapters added to it, as every other stage reads it; its folder."""
    save_checkpoint_folder(
        trainer.accelerator.unwrap_model(trainer.model), tokenizer, folder / "model",
        is_main=trainer.is_world_process_zero(),
    )  # fmt: skip
    return folder / "model"


def close_stage(folder: Path, trainer: Any, summary: dict[str, Any]) -> None:
    """Write the log and the summary, and drop the states: the stage has come to its end."""
    if not trainer.is_world_process_zero():
        return
    lines = [row for row in trainer.state.log_history if "step" in row]
    text = "".join(json.dumps(row) + "\n" for row in lines)
    (folder / "metrics.jsonl").write_text(text, encoding="utf-8")
    shutil.rmtree(folder / _STATES, ignore_errors=True)
    temporary = folder / "summary.json.tmp"
    temporary.write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    os.replace(temporary, folder / "summary.json")  # last: it says that all is there
