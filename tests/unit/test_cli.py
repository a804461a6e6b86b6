"""The command line, and the signatures that users build on: changing one is a decision."""

from __future__ import annotations

import argparse
import ast
from pathlib import Path

import pytest

from r1lab import __version__
from r1lab.cli.app import build_parser, main
from r1lab.config.recipe import TrainRecipe
from r1lab.types import R1labError, RunStopped

ROOT = Path(__file__).resolve().parents[2]

OPTIONS = {
    "train": [
        *("--debug", "--dry-run", "--force", "--help", "--keys", "--preflight", "--resume"),
        *("-h", "RECIPE"),
    ],
    "eval": [
        *("--against", "--budgets", "--columns", "--debug", "--dry-run", "--dtype", "--engine"),
        *("--gguf-file", "--grader", "--greedy", "--help", "--json", "--k", "--kv-cache-gib"),
        *("--list", "--max-tokens", "--num", "--out", "--path", "--seed", "--served-model"),
        *("--settings", "--shots", "--suite", "--summary", "--temperature", "--template"),
        *("--top-p", "--trained-on", "-h", "MODEL"),
    ],
    "compare": ["--debug", "--help", "--with", "-h", "FIRST"],
    "chat": [
        *("--debug", "--dtype", "--engine", "--help", "--kv-cache-gib", "--max-tokens", "--seed"),
        *("--served-model", "--temperature", "--template", "--thinking", "--top-p", "-h", "MODEL"),
    ],
    "serve": [
        *("--debug", "--dtype", "--gpu-memory-utilization", "--help", "--host", "--key-file"),
        *("--kv-cache-gib", "--max-model-len", "--name", "--port", "--reasoning", "--template"),
        *("--vllm-args", "-h", "MODEL"),
    ],
    "export": [
        *("--debug", "--dtype", "--gguf-file", "--help", "--out", "--template", "-h", "MODEL"),
    ],
    "lineage": ["--debug", "--help", "--json", "-h", "MODEL"],
    "pretrain": ["--debug", "--dry-run", "--help", "--keys", "-h", "RECIPE"],
    "verify": [
        *("--columns", "--debug", "--full", "--help", "--json", "--memory-mib", "--no-isolate"),
        *("--num", "--options", "--problem-options", "--problems", "--seconds", "--template"),
        *("-h", "REWARD"),
    ],
    "estimate": [
        *("--debug", "--gpus", "--help", "--json", "--layout", "--mean-tokens", "--price"),
        *("-h", "RECIPE"),
    ],
    "serve-sampler": [
        *("--debug", "--dtype", "--gpu-memory-utilization", "--help", "--host"),
        *("--kv-cache-gib", "--max-model-len", "--max-num-seqs", "--port", "--seed"),
        *("--tensor-parallel-size", "--transfer", "--vllm", "--weights-folder", "-h", "MODEL"),
    ],
    "doctor": ["--debug", "--help", "--json", "-h"],
    "quickstart": ["--debug", "--dry-run", "--help", "-h"],
    "completion": ["--debug", "--help", "-h", "SHELL"],
    "new": ["--debug", "--help", "-h", "KIND", "NAME"],
    "show": ["--debug", "--help", "--num", "--problem", "--samples", "--step", "-h", "RUN"],
    "report": [
        *("--debug", "--help", "--output", "--price", "--samples", "--watts", "-h", "RUN"),
    ],
    "reproduce": [
        *("--debug", "--dry-run", "--help", "--jobs", "--list", "--out", "--records", "--seeds"),
        *("-h", "NAME"),
    ],
    **{
        name: ["--debug", "--dry-run", "--help", "--keys", "-h", "RECIPE"]
        for name in ("sft", "sample", "reward-model", "distil")
    },
    "pipeline": [
        *("--debug", "--dry-run", "--from", "--help", "--jobs", "--keys", "--quick", "--until"),
        *("-h", "RECIPE"),
    ],
    "watch": ["--debug", "--every", "--help", "--once", "-h", "RUN"],
}

SIGNATURES = {
    "rewards/boxes.py:reward": "problem: Problem, completion: Completion",
    "rewards/division.py:reward": "problem: Problem, completion: Completion",
    "rewards/format.py:reward": (
        "problem: Problem, completion: Completion, *, forbid_empty: bool=False"
    ),
    "rewards/math/__init__.py:reward": "problem: Problem, completion: Completion",
    "r1lab/grpo/trainer.py:train": "recipe: TrainRecipe, *, resume: bool=False, force: bool=False",
    "r1lab/prompts.py:read_response": "response: str",
    "r1lab/config/reading.py:dump_resolved": (
        "recipe: BaseModel, *, versions: Mapping[str, str] | None=None, commit: str | None=None"
    ),
    "r1lab/config/reading.py:find_recipe": "path: str | Path, *, beside: Path | None=None",
    "r1lab/config/reading.py:load_recipe": (
        "path: str | Path, overrides: Sequence[Override]=(), *, schema: type[Recipe]=TrainRecipe"
    ),
    "r1lab/problems/registry.py:find": "text: str, kind: ExtensionKind, *, key: str=''",
    "r1lab/problems/registry.py:load_mixture": (
        "settings: ProblemSettings, split: Split, seed: int | None=None, *, "
        "keep: Callable[[Problem], bool] | None=None"
    ),
    "r1lab/problems/registry.py:load_problems": (
        "settings: SourceSettings, split: Split, seed: int=0, *, key: str='problems.sources'"
    ),
    "r1lab/problems/registry.py:resolve": "text: str, kind: ExtensionKind, *, key: str=''",
    "r1lab/stages/pretrain.py:pretrain": "recipe: PretrainRecipe",
}


@pytest.fixture
def recipe(tmp_path: Path) -> str:
    path = tmp_path / "recipe.yaml"
    path.write_text("name: tried\nproblems: {sources: [{source: boxes}]}\n")
    return str(path)


@pytest.fixture
def trained(monkeypatch, tmp_path) -> list[tuple[TrainRecipe, bool]]:
    """Calls that reached the trainer, which is not run."""
    calls: list[tuple[TrainRecipe, bool]] = []
    trainer = pytest.importorskip("r1lab.grpo.trainer")

    def train(recipe: TrainRecipe, *, resume: bool, force: bool) -> object:
        calls.append((recipe, resume))
        return trainer.RunEnd(Path(recipe.run_folder), recipe.steps, None)

    monkeypatch.setattr(trainer, "train", train)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("r1lab.cli.app._check", lambda recipe, dry_run: None)
    return calls


# --- what is pinned ---


def test_the_options_of_each_command():
    commands = next(
        a for a in build_parser()._actions if isinstance(a, argparse._SubParsersAction)
    ).choices
    found = {
        name: sorted(word for a in parser._actions for word in a.option_strings or [a.metavar])
        for name, parser in commands.items()
    }
    assert found == OPTIONS


@pytest.mark.parametrize("place", SIGNATURES)
def test_public_signatures(place):
    file, name = place.split(":")
    tree = ast.parse((ROOT / file).read_text())
    functions = {n.name: n for n in tree.body if isinstance(n, ast.FunctionDef)}
    assert ast.unparse(functions[name].args) == SIGNATURES[place]


@pytest.mark.parametrize("command", [[], *([name] for name in OPTIONS)])
def test_help_everywhere(command, capsys):
    with pytest.raises(SystemExit) as left:
        main([*command, "--help"])
    assert left.value.code == 0
    assert "usage: r1lab" in capsys.readouterr().out


def test_version(capsys):
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out == f"r1lab {__version__}\n"


def test_keys_lists_what_the_recipe_can_have(capsys):
    for command, key in (("train", "--sampling.group_size"), ("pretrain", "--tokens_per_batch")):
        with pytest.raises(SystemExit) as left:
            main([command, "--keys"])
        out = capsys.readouterr().out
        assert left.value.code == 0 and key in out
        assert "PydanticUndefined" not in out


# --- how arguments are read ---


@pytest.mark.parametrize(
    "arguments",
    [
        ["{}", "--steps", "3", "--resume"],
        ["--steps", "3", "{}", "--resume"],
        ["--resume", "--steps=3", "{}"],
    ],
)
def test_overrides_stand_anywhere(arguments, recipe, trained):
    assert main(["train", *(word.format(recipe) for word in arguments)]) == 0
    ((found, resume),) = trained
    assert (found.steps, resume) == (3, True)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["train"], "RECIPE"),
        (["train", "{}", "second"], "second"),
        (["tarin", "{}"], "tarin"),
        (["show", "run", "--steps", "3"], "--steps 3"),
    ],
)
def test_arguments_that_make_no_sense(arguments, expected, recipe, capsys):
    with pytest.raises(SystemExit) as left:
        main([word.format(recipe) for word in arguments])
    assert left.value.code == 2
    assert expected in capsys.readouterr().err


def test_a_misspelt_option_names_the_nearest(recipe, capsys):
    assert main(["train", recipe, "--dryrun"]) == 2
    assert "'--dry-run'?" in capsys.readouterr().err


# --- errors ---


@pytest.mark.parametrize(("error", "code"), [(R1labError("a\nb"), 2), (RunStopped("a b"), 4)])
def test_an_error_is_one_line_and_its_code(error, code, recipe, trained, monkeypatch, capsys):
    monkeypatch.setattr("r1lab.grpo.trainer.train", lambda *_, **__: (_ for _ in ()).throw(error))
    assert main(["train", recipe]) == code
    assert capsys.readouterr().err == "r1lab: error: a b\n"


def test_debug_shows_the_traceback(recipe, monkeypatch):
    with pytest.raises(R1labError):
        main(["train", recipe, "--debug", "--no.such.key", "1"])
    monkeypatch.setenv("R1LAB_DEBUG", "1")
    with pytest.raises(R1labError):
        main(["train", recipe, "--no.such.key", "1"])


def test_only_the_first_process_reports_what_all_find(recipe, monkeypatch, capsys):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    with pytest.raises(SystemExit) as left:
        main(["train", recipe, "--no.such.key", "1"])
    assert left.value.code == 2
    assert capsys.readouterr().err == ""


def test_a_process_reports_what_only_it_finds(recipe, trained, monkeypatch, capsys):
    def fail(recipe: TrainRecipe, resume: bool, force: bool) -> None:
        raise R1labError("no memory")

    monkeypatch.setenv("RANK", "1")
    monkeypatch.setattr("r1lab.grpo.trainer.train", fail)
    assert main(["train", recipe]) == 2
    assert capsys.readouterr().err == "r1lab: error (process 1): no memory\n"


def test_interrupted(recipe, trained, monkeypatch, capsys):
    monkeypatch.setattr(
        "r1lab.grpo.trainer.train", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt)
    )
    assert main(["train", recipe]) == 130
    assert "interrupted" in capsys.readouterr().err


def test_a_dry_run_shows_the_recipe_a_prompt_and_the_plan(recipe, capsys):
    assert main(["train", recipe, "--dry-run", "--steps", "7"]) == 0
    out = capsys.readouterr().out
    for part in ("# r1lab ", "steps: 7", "<think>", "7 steps of 32 questions x 16", "runs/tried"):
        assert part in out


def test_a_dry_run_asks_no_hub(recipe, monkeypatch, capsys):
    monkeypatch.setattr("r1lab.model.load.resolve_folder", lambda path: 1 / 0)
    assert main(["train", recipe, "--dry-run", "--model.path", "someone/a-model"]) == 0
