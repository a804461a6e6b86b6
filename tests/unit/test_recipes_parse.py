"""Every YAML file in recipes/ is read by what it is meant for, found by walking the folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from r1lab.cli.app import main
from r1lab.cli.checks import check_run
from r1lab.config.reading import dump_resolved, load_recipe, shipped_recipes
from r1lab.config.recipe import PretrainRecipe
from r1lab.config.stages import PipelineRecipe
from r1lab.pipeline.plan import stages_of
from r1lab.problems.registry import load_mixture, resolve
from r1lab.prompts import TEMPLATES
from r1lab.reproduce.experiment import load_experiment

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "recipes"
RECIPES = [
    path
    for path in sorted(FOLDER.rglob("*.y*ml"))
    if path.parent.name not in ("accelerate", "reproduce")
]
EXPERIMENTS = sorted((FOLDER / "reproduce").glob("*.y*ml"))
LAUNCHERS = sorted((FOLDER / "accelerate").glob("*.y*ml"))
R1 = [path for path in RECIPES if path.parent.name == "r1"]  # a pipeline, and its stages' own
PRETRAINING = [path for path in RECIPES if path.stem.startswith("pretrain")]
TRAINING = [path for path in RECIPES if path not in (*PRETRAINING, *R1)]
GPU = [path for path in TRAINING if path.parent.name == "gpu"]
# What the published bases allow, prompt and response together (config.json of each on the hub).
CONTEXTS = {
    "Qwen/Qwen2.5-0.5B": 32_768, "Qwen/Qwen2.5-1.5B": 131_072, "Qwen/Qwen2.5-3B": 32_768,
    "Qwen/Qwen2.5-Math-7B": 4_096, "deepseek-ai/DeepSeek-V3-Base": 163_840,
    "moonshotai/Moonlight-16B-A3B": 8_192,
}  # fmt: skip


def name(path: Path) -> str:
    return str(path.relative_to(FOLDER))


@pytest.fixture(scope="session")
def stand_ins(tmp_path_factory) -> Path:
    """Published sets in their own form and size, with sums in place of their problems."""
    folder = tmp_path_factory.mktemp("datasets")
    for place, first, num in (("gsm8k/train", 0, 1500), ("gsm8k/test", 2000, 1319),
                              ("math/train", 0, 1500), ("math500/test", 2000, 500)):  # fmt: skip
        path = folder / f"{place}.jsonl"
        path.parent.mkdir(exist_ok=True)
        rows = [_row(place, n) for n in range(first, first + num)]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def _row(place: str, n: int) -> dict[str, object]:
    asked, found = f"What is {n} + 1?", str(n + 1)
    if place.startswith("gsm8k"):
        return {"question": asked, "answer": f"One more. #### {found}"}
    return {"problem": asked, "answer": found, "subject": "Algebra", "level": 1 + n % 5}


def test_there_are_recipes_of_each_sort():
    assert TRAINING and PRETRAINING and LAUNCHERS
    assert {path.resolve() for path in shipped_recipes().values()} == {p.resolve() for p in RECIPES}


@pytest.mark.parametrize("path", TRAINING, ids=name)
def test_a_training_recipe(path, tmp_path, stand_ins, monkeypatch):
    monkeypatch.setenv(
        "R1LAB_DATASETS", str(stand_ins)
    )  # no hub from here; bases are not asked for
    recipe = load_recipe(path)
    assert check_run(recipe, dry_run=True) == []
    for split in ("train", "test"):
        problem = load_mixture(recipe.problems, split)[0]
        assert problem.question in TEMPLATES[recipe.template].prompt(problem.question)
    resolved = tmp_path / "resolved.yaml"
    resolved.write_text(dump_resolved(recipe))
    assert load_recipe(resolved) == recipe


@pytest.mark.parametrize("path", GPU, ids=name)
def test_a_recipe_for_a_real_base(path):
    """It says what it wants, costs and should give, that nobody ran it here, and fits its base."""
    text = path.read_text()
    for word in ("# Not run here", "# Wants:", "# Cost:", "# Expected:", "# Published", "ours"):
        assert word.lower() in text.lower(), f"{name(path)} does not say: {word}"
    recipe = load_recipe(path)
    length = recipe.sampling.max_model_len
    assert length is not None and length <= CONTEXTS[recipe.model.path]
    assert recipe.sampling.questions_per_step % recipe.algorithm.num_minibatches == 0


def test_without_the_hub_a_recipe_is_refused_in_one_line(monkeypatch, capsys):
    """The tests' environment is offline; a machine without a network waits for retries first."""
    pytest.importorskip("datasets")
    monkeypatch.delenv("R1LAB_DATASETS", raising=False)
    for recipe, asked in (("gsm8k_qwen05b", "openai/gsm8k"), ("deepseek_v3", "MATH-500")):
        assert main(["train", f"reproduce/gpu/{recipe}", "--dry-run"]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and "set R1LAB_DATASETS" in error
        assert f"{asked}' is no folder here and could not be fetched from the hub" in error


@pytest.mark.parametrize("path", PRETRAINING, ids=name)
def test_a_pre_training_recipe(path):
    recipe = load_recipe(path, schema=PretrainRecipe)
    assert callable(resolve(recipe.corpus.source, "source"))


def test_the_pipeline_uses_each_of_its_recipes():
    pipeline = FOLDER / "r1" / "nano.yaml"
    recipe = load_recipe(pipeline, schema=PipelineRecipe)
    for quick in (False, True):
        stages = stages_of(recipe, beside=pipeline.parent, quick=quick)
        used = {base for stage in stages for base in _with_bases(stage.path)}
        assert {pipeline, *used} == set(R1)


def _with_bases(path: Path) -> list[Path]:
    """A recipe's file, and those that it extends."""
    base = yaml.safe_load(path.read_text()).get("extends")
    return [path, *(_with_bases(path.parent / base) if base else [])]


@pytest.mark.parametrize("path", EXPERIMENTS, ids=name)
def test_an_experiment(path):
    experiment = load_experiment(path.stem)
    assert experiment.name == path.stem
    for arm in experiment.arms.values():
        load_recipe(FOLDER / "reproduce" / "arms" / f"{arm.recipe}.yaml")
        if arm.base is not None:
            load_recipe(FOLDER / "reproduce" / "bases" / f"{arm.base}.yaml", schema=PretrainRecipe)


@pytest.mark.parametrize("path", [*RECIPES, *EXPERIMENTS], ids=name)
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
