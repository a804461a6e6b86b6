"""Every YAML file in recipes/ is read by what it is meant for, found by walking the folder."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from r1lab.checks import check_run
from r1lab.prompts import TEMPLATES
from r1lab.recipe import PretrainRecipe
from r1lab.recipe_io import dump_resolved, load_recipe, shipped_recipes
from r1lab.registry import load_mixture, resolve

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "recipes"
RECIPES = [p for p in sorted(FOLDER.rglob("*.y*ml")) if p.parent.name != "accelerate"]
LAUNCHERS = sorted((FOLDER / "accelerate").glob("*.y*ml"))
PRETRAINING = [path for path in RECIPES if path.stem.startswith("pretrain")]
TRAINING = [path for path in RECIPES if path not in PRETRAINING]


def name(path: Path) -> str:
    return str(path.relative_to(FOLDER))


def test_there_are_recipes_of_each_sort():
    assert TRAINING and PRETRAINING and LAUNCHERS
    assert {path.resolve() for path in shipped_recipes().values()} == {p.resolve() for p in RECIPES}


@pytest.mark.parametrize("path", TRAINING, ids=name)
def test_a_training_recipe(path, tmp_path):
    recipe = load_recipe(path)
    assert check_run(recipe, dry_run=True) == []
    for split in ("train", "test"):
        problem = load_mixture(recipe.problems, split)[0]
        assert problem.question in TEMPLATES[recipe.template].prompt(problem.question)
    resolved = tmp_path / "resolved.yaml"
    resolved.write_text(dump_resolved(recipe))
    assert load_recipe(resolved) == recipe


@pytest.mark.parametrize("path", PRETRAINING, ids=name)
def test_a_pre_training_recipe(path):
    recipe = load_recipe(path, schema=PretrainRecipe)
    assert callable(resolve(recipe.corpus.source, "source"))


@pytest.mark.parametrize("path", RECIPES, ids=name)
def test_a_recipe_opens_with_its_command(path):
    """What a file is for, and how it is run, stands in its first lines."""
    comment = [line for line in path.read_text().splitlines()[:8] if line.startswith("#")]
    assert any("r1lab" in line for line in comment), f"{name(path)}: no command in its comment"


@pytest.mark.parametrize("path", LAUNCHERS, ids=name)
def test_a_configuration_of_the_launcher(path):
    config = pytest.importorskip("accelerate.commands.config.config_args")
    loaded = config.load_config_from_file(str(path))
    # The recipe decides the precision; a launcher that set it too would wrap the model twice.
    assert loaded.mixed_precision == "no"
    assert loaded.num_processes == yaml.safe_load(path.read_text())["num_processes"]


@pytest.mark.parametrize("path", RECIPES, ids=name)
def test_commands_in_comments_name_files_that_are_there(path):
    for word in path.read_text().replace("`", " ").split():
        if word.startswith("recipes/"):
            assert (ROOT / word.rstrip(".,;:)")).exists(), f"{name(path)} names {word}"
