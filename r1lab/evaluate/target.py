"""Resolve the MODEL argument of `r1lab eval` to a folder or a server.

runs/mine                        a run: its trained model, the newest checkpoint that it kept
recipes/mine.yaml, quickstart    a recipe: its base
runs/mine/checkpoints/step-40    a checkpoint
folder                           a model in Hugging Face's form, or an adapter of peft's
nano, owner/model                a shipped base, a model from the hub
http://host:8000/v1              a running server that speaks OpenAI's protocol
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from r1lab.config.recipe import ModelSettings, TrainRecipe
from r1lab.model.load import cache_folder
from r1lab.run_folder import RunFolder
from r1lab.types import R1labError

if TYPE_CHECKING:
    from r1lab.config.reading import Override


@dataclass(frozen=True, slots=True)
class Target:
    """The model to evaluate.

    label   its name in files and tables
    path    what `model.path` would be: a folder, a shipped name, a hub name; the URL of a server
    recipe  of a run or a recipe: its problems, rewards and limits
    run     the run folder, where there is one
    """

    label: str
    path: str
    recipe: TrainRecipe | None = None
    run: Path | None = None

    @property
    def is_server(self) -> bool:
        return self.path.startswith(("http://", "https://"))


def find_target(model: str, overrides: Sequence[Override] = ()) -> Target:
    """Resolve `model`; raises R1labError. `overrides` change the recipe of a run or a recipe."""
    from r1lab.config.reading import find_recipe, load_recipe

    if model.startswith(("http://", "https://")):
        _no_overrides(model, overrides)
        return Target(re.sub(r"[/:]+", "-", model.split("://", 1)[1].strip("/")), model)
    folder = Path(model).expanduser()
    if folder.is_dir() and (folder / "recipe.yaml").is_file():
        recipe = load_recipe(model, overrides, schema=TrainRecipe)
        if any(key == "model.path" for key, _ in overrides):
            # Another model on this run's problems: none of the run's own results.
            return Target(_label(Path(recipe.model.path)), recipe.model.path, recipe)
        return Target(folder.resolve().name, str(RunFolder(folder).trained_model()), recipe, folder)
    if folder.is_dir():
        _no_overrides(model, overrides)
        inner = folder / "model"
        is_checkpoint = (inner / "config.json").is_file()
        return Target(_label(folder), str(inner if is_checkpoint else folder))
    if model.endswith((".yaml", ".yml")) or _is_recipe(model):
        recipe = load_recipe(find_recipe(model), overrides, schema=TrainRecipe)
        return Target(recipe.name, recipe.model.path, recipe)
    _no_overrides(model, overrides)
    return Target(model.replace("/", "-"), model)


def model_settings(
    target: Target, *, dtype: str | None = None, gguf_file: str | None = None
) -> ModelSettings:
    """How to load the target's model; an adapter is merged into its base first."""
    given = target.recipe.model if target.recipe else ModelSettings()
    settings = given.model_copy(
        update={
            "path": target.path,
            "lora": None,
            "dtype": dtype or given.dtype,
            "gguf_file": gguf_file or (given.gguf_file if target.path == given.path else None),
        }
    )
    return settings.model_copy(update={"path": model_folder(target, settings)})


def model_folder(target: Target, settings: ModelSettings) -> str:
    """The path to load: an adapter is merged into its base first, once for each state of it."""
    folder = Path(settings.path).expanduser()
    config = folder / "adapter_config.json"
    if not config.is_file():
        return settings.path
    from r1lab.model.adapters import merged_folder

    files = sorted(path for path in folder.iterdir() if path.is_file())
    stats = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    key = hashlib.sha256(f"{folder.resolve()} {stats} {settings.dtype}".encode()).hexdigest()[:12]
    merged = cache_folder() / f"merged-{target.label}-{key}"
    if not (merged / "config.json").is_file():
        merged_folder(folder, merged, dtype=settings.dtype)
    return str(merged)


def _is_recipe(name: str) -> bool:
    from r1lab.config.reading import shipped_recipes

    return name in shipped_recipes()


def _label(folder: Path) -> str:
    """A short name: `mine-step-40` for runs/mine/checkpoints/step-40."""
    folder = folder.resolve()
    parts = [part for part in folder.parts[-4:] if part not in ("checkpoints", "model", "/")]
    of_a_run = folder.name.startswith("step-") or folder.name == "model"
    return "-".join(parts[-2:] if of_a_run else parts[-1:])


def _no_overrides(model: str, overrides: Sequence[Override]) -> None:
    if overrides:
        raise R1labError(
            f"--{overrides[0][0]}: {model!r} has no recipe whose keys could be changed; give a "
            "recipe or a run folder, or use the options of `r1lab eval --help`"
        )
