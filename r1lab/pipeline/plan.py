"""A pipeline's stages: their recipes, folders and commands, and when one is done.

A stage is done when its folder holds `stage.json` with the fingerprint that it has now: a hash of
its resolved recipe and of the bytes that its inputs were made of. Nothing here imports torch.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from r1lab.config.migrations import without_added_keys
from r1lab.config.reading import Override, load_recipe, relative_places
from r1lab.config.recipe import PretrainRecipe, TrainRecipe
from r1lab.config.section import Section
from r1lab.config.stages import (
    DistilRecipe,
    PipelineRecipe,
    RewardModelRecipe,
    SampleRecipe,
    SftRecipe,
    StageSettings,
)
from r1lab.hints import nearest
from r1lab.types import RecipeError

SCHEMAS: dict[str, type[Section]] = {
    "pretrain": PretrainRecipe, "rl": TrainRecipe, "sft": SftRecipe, "sample": SampleRecipe,
    "reward_model": RewardModelRecipe, "distil": DistilRecipe,
}  # fmt: skip
COMMANDS = {
    "pretrain": "pretrain", "rl": "train", "sft": "sft", "sample": "sample",
    "reward_model": "reward-model", "distil": "distil",
}  # fmt: skip
REWARD_MODEL = "r1lab.stages.scorer:reward_model"


@dataclass(frozen=True, slots=True)
class Stage:
    """One stage of a pipeline, as it is to be run.

    figures     the folder of its evaluation: a pipeline's own, also where stages are shared
    recipe      its resolved recipe, inputs filled in
    overrides   what the pipeline changes of the recipe's file, `--key value` in one list
    parents     the stages whose artefacts it takes, and where those lie
    """

    name: str
    settings: StageSettings
    path: Path
    folder: Path
    figures: Path
    recipe: Section
    overrides: tuple[str, ...]
    parents: Mapping[str, str]

    @property
    def kind(self) -> str:
        return self.settings.kind

    @property
    def artefact(self) -> Path:
        """What the stage leaves: the folder of a model, or a file of rows."""
        if isinstance(self.recipe, TrainRecipe):
            return self.folder / "checkpoints" / f"step-{self.recipe.steps}" / "model"
        return self.folder / ("rows.jsonl" if self.kind == "sample" else "model")

    @property
    def ended(self) -> Path:
        """The file that the stage's own process leaves last."""
        return self.artefact / "README.md" if self.kind == "pretrain" else (
            self.folder / "summary.json"
        )  # fmt: skip

    @property
    def is_model(self) -> bool:
        """Whether it leaves a language model, which can be evaluated."""
        return self.kind not in ("sample", "reward_model")

    @property
    def record(self) -> dict[str, Any]:
        """What stage.json says of it since it is done; empty before."""
        return read_json(self.folder / "stage.json")

    @property
    def command(self) -> tuple[str, ...]:
        resume = ("--resume",) if self.kind == "rl" else ()
        return (sys.executable, "-m", "r1lab", COMMANDS[self.kind], str(self.path), *resume,
                *self.overrides)  # fmt: skip

    def fingerprint(self, digests: Mapping[str, str]) -> str:
        """A hash of what decides the artefact; `digests` are those of the parents' artefacts."""
        values = self.recipe.model_dump(mode="json")
        recipe = without_added_keys(relative_places(values, Path.cwd()))
        recipe.pop("output"), recipe.pop("name")
        for key in ("tracking", "checkpoints", "checkpoint_every", "reward_workers", "resume"):
            recipe.pop(key, None)
        parents = {name: digests[name] for name in self.parents}
        text = json.dumps({"kind": self.kind, "recipe": recipe, "parents": parents}, sort_keys=True)
        for name, artefact in self.parents.items():  # wherever it lies: its bytes stand for it
            for place in (artefact, os.path.abspath(artefact)):
                text = text.replace(json.dumps(place), json.dumps(f"artefact of {name}"))
        return hashlib.sha256(text.encode()).hexdigest()


def stages_of(recipe: PipelineRecipe, *, beside: Path, quick: bool = False) -> list[Stage]:
    """The stages in their order, every recipe read and checked. Raises RecipeError."""
    found: dict[str, Stage] = {}
    out = Path(recipe.run_folder)
    for name, settings in recipe.stages.items():
        overrides = _overrides(recipe, name, settings, quick)
        folder = Path(settings.folder).expanduser() if settings.folder else out / name
        if quick and settings.folder:
            folder = folder.with_name(f"{folder.name}-quick")
        overrides += [("output", str(folder)), ("name", f"{recipe.name}-{name}")]
        path = _recipe_path(name, settings, beside)
        given = load_recipe(path, overrides, schema=SCHEMAS[settings.kind])
        overrides += _inputs(name, settings, found, given)
        resolved = load_recipe(path, overrides, schema=SCHEMAS[settings.kind])
        names = [settings.model, settings.teacher, settings.reward_model, *settings.rows]
        found[name] = Stage(
            name, settings, path, folder, out / name, resolved,
            tuple(word for key, text in overrides for word in (f"--{key}", text)),
            {name: str(found[name].artefact) for name in names if name is not None},
        )  # fmt: skip
    return list(found.values())


def chosen(stages: Sequence[Stage], until: str | None) -> list[Stage]:
    """All stages, or those that `until` needs, itself included. Raises RecipeError."""
    if until is None:
        return list(stages)
    check_name(stages, until, "--until")
    needed = {until}
    for stage in reversed(stages):
        if stage.name in needed:
            needed |= set(stage.parents)
    return [stage for stage in stages if stage.name in needed]


def below(stages: Sequence[Stage], name: str) -> set[str]:
    """The stage and all that take anything of it, at any remove. Raises RecipeError."""
    check_name(stages, name, "--from")
    found = {name}
    for stage in stages:
        if found & set(stage.parents):
            found.add(stage.name)
    return found


def check_name(stages: Sequence[Stage], name: str, option: str) -> None:
    """Refuse the name of a stage that is not there; raises RecipeError."""
    names = [stage.name for stage in stages]
    if name not in names:
        raise RecipeError(
            f"{option}: unknown stage {name!r}{nearest(name, names)}; there are {', '.join(names)}"
        )


def _recipe_path(name: str, settings: StageSettings, beside: Path) -> Path:
    from r1lab.config.reading import find_recipe

    try:
        return find_recipe(settings.recipe, beside=beside)
    except RecipeError as error:
        raise RecipeError(f"stages.{name}.recipe: {error}") from None


def _overrides(
    recipe: PipelineRecipe, name: str, settings: StageSettings, quick: bool
) -> list[Override]:
    """Seed, precision, the stage's own changes, and those of a quick run."""
    overrides = [("seed", str(recipe.seed))]
    overrides.append(("dtype" if settings.kind == "pretrain" else "model.dtype", recipe.dtype))
    if settings.kind in ("rl", "sample"):
        overrides.append(("problems.seed", str(recipe.seed)))
    changes = dict(settings.overrides)
    if quick:
        prefix = f"{name}."
        changes |= {key.removeprefix(prefix): value for key, value in recipe.quick.items()
                    if key.startswith(prefix)}  # fmt: skip
    overrides += [(key, json.dumps(value)) for key, value in changes.items()]
    if settings.kind in ("rl", "sample"):  # last: a whole `sampling` may stand among the changes
        overrides.append(("sampling.engine", recipe.engine))
    return overrides


def _inputs(
    name: str, settings: StageSettings, found: Mapping[str, Stage], given: Section
) -> list[Override]:
    """Where the stage's inputs lie, as keys of its recipe."""
    overrides: list[Override] = []
    if settings.model is not None:
        overrides.append(("model.path", str(found[settings.model].artefact)))
    if settings.teacher is not None:
        overrides.append(("teacher.path", str(found[settings.teacher].artefact)))
    if settings.rows:
        own = [rows.model_dump(mode="json") for rows in getattr(given, "rows", ())]
        taken = [{"path": str(found[other].artefact), "num": num}
                 for other, num in settings.rows.items()]  # fmt: skip
        overrides.append(("rows", json.dumps([*taken, *own])))
    if settings.reward_model is not None:
        rewards = given.rewards if isinstance(given, TrainRecipe) else ()
        places = [i for i, reward in enumerate(rewards) if reward.reward == REWARD_MODEL]
        if not places:
            raise RecipeError(
                f"stages.{name}.reward_model: its recipe has no reward {REWARD_MODEL!r} to ask it"
            )
        path = str(found[settings.reward_model].artefact)
        overrides += [(f"rewards.{i}.options.path", path) for i in places]
    return overrides


def read_json(path: Path) -> dict[str, Any]:
    """The object in a file, empty where there is none."""
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return found
