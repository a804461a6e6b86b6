"""Runs that are moved, whose inputs change, whose base cannot be saved as it is, and that nobody
reads: real short runs with the slow sampler.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from r1lab.cli.app import main
from r1lab.run_folder import RunFolder

REWARD = """\
from helper import scale

def reward(problem, completion):
    return scale * float(len(completion.text) % 7)
"""
RECIPE = """\
name: moved
steps: 1
model: {path: models/base, dtype: float32}
problems:
  check_gold: 0
  sources: [{source: data/rows.jsonl, options: {test_file: held_out.jsonl}}]
rewards: [{reward: "rewards/mine.py", isolate: false}]
sampling: {engine: transformers, questions_per_step: 2, group_size: 4, max_tokens: 8}
evaluation: {num_problems: 2, num_samples: 2, every: 0, greedy: false}
checkpoints: {every: 1}
tracking: {trackers: []}
reward_workers: 1
"""


@pytest.fixture(scope="module")
def template(tmp_path_factory, repository) -> Path:
    """A project with a recipe, a base, tables and a reward beside it, and one step of its run."""
    folder = tmp_path_factory.mktemp("template") / "project"
    for name in ("models", "data", "rewards"):
        (folder / name).mkdir(parents=True)
    shutil.copytree(repository / "data/models/nano", folder / "models/base")
    for name, first in (("rows", 1), ("held_out", 50)):
        rows = [{"question": f"{n} + 1 ?", "answer": str(n + 1)} for n in range(first, first + 9)]
        (folder / f"data/{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    (folder / "rewards/mine.py").write_text(REWARD)
    (folder / "rewards/helper.py").write_text("scale = 0.1\n")
    (folder / "recipe.yaml").write_text(RECIPE)
    with contextlib.chdir(folder):
        assert main(["train", "recipe.yaml"]) == 0
    # Out of reach of what it recorded: whatever is found later must have moved along.
    return folder.rename(folder.with_name("kept"))


@pytest.fixture
def project(template, tmp_path, monkeypatch) -> Path:
    """The project as if it had been moved here; the current folder is another one."""
    folder = tmp_path / "project"
    shutil.copytree(template, folder)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    return folder


def steps(run: Path) -> list[int]:
    return [row["step"] for row in RunFolder(run).metrics()]


def one_error(capsys) -> str:
    err = capsys.readouterr().err
    assert "Traceback" not in err
    (line,) = [line for line in err.splitlines() if line.startswith("r1lab: error")]
    return line


# --- from elsewhere ----------------------------------------------------------------------------


@pytest.mark.parametrize("named", ["", "/", "/recipe.yaml", "link", "."])
def test_a_run_that_was_moved_with_its_inputs_goes_on_where_it_is(project, named, monkeypatch):
    run = project / "runs/moved"
    if named == "link":
        given = project.parent / "link"
        given.symlink_to(run)
    elif named == ".":
        monkeypatch.chdir(run)
        given = "."
    else:
        given = f"{run}{named}"
    assert main(["train", str(given), "--resume", "--steps", "2"]) == 0
    assert steps(run) == [1, 2]
    assert not list((project.parent / "elsewhere").iterdir())
    assert run.joinpath("checkpoints/step-2/manifest.json").is_file()


def test_a_run_that_was_renamed_alone_finds_its_inputs_where_they_are(project):
    elsewhere = project.parent / "elsewhere"
    with contextlib.chdir(project):
        assert main(["train", "recipe.yaml", "--output", "runs/second"]) == 0
    run = (project / "runs/second").rename(elsewhere / "another name")
    assert main(["train", str(run), "--resume", "--steps", "2"]) == 0
    assert steps(run) == [1, 2]
    assert list(elsewhere.iterdir()) == [run]
    assert [path.name for path in (project / "runs").iterdir()] == ["moved"]


def test_inputs_that_did_not_move_along_are_named_by_the_path_looked_for(project, capsys):
    shutil.rmtree(project / "models")
    assert main(["train", str(project / "runs/moved"), "--resume", "--steps", "2"]) == 2
    assert str(Path("models/base")) in one_error(capsys)
    assert steps(project / "runs/moved") == [1]


def test_the_inputs_of_a_recipe_are_the_same_from_everywhere(project, tmp_path, monkeypatch):
    decoy = tmp_path / "elsewhere"  # of the same names, and not what the recipe means
    for name in ("models/base", "data", "rewards"):
        (decoy / name).mkdir(parents=True)
    (decoy / "rewards/mine.py").write_text("def reward(problem, completion): raise KeyError\n")
    (decoy / "data/rows.jsonl").write_text("no table\n")
    output = tmp_path / "run"
    assert main(["train", str(project / "recipe.yaml"), "--output", str(output)]) == 0
    recipe = RunFolder(output).recipe()
    assert recipe["model"]["path"] == str(project / "models/base")
    assert recipe["problems"]["sources"][0]["source"] == str(project / "data/rows.jsonl")
    assert recipe["rewards"][0]["reward"] == str(project / "rewards/mine.py")


def test_a_folder_without_a_recipe_is_no_run(project, tmp_path, capsys):
    (project / "runs/moved/recipe.yaml").unlink()
    assert main(["train", str(project / "runs/moved"), "--resume"]) == 2
    assert str(project / "runs/moved") in one_error(capsys)
    assert not list((tmp_path / "elsewhere").iterdir())


def test_a_run_without_a_checkpoint_starts_in_the_folder_that_is_named(project, tmp_path):
    run = project / "runs/moved"
    shutil.rmtree(run / "checkpoints")
    assert main(["train", str(run), "--resume"]) == 0
    assert steps(run) == [1] and (run / "checkpoints/step-1").is_dir()
    assert not list((tmp_path / "elsewhere").iterdir())


def test_a_run_that_was_moved_is_reported_shown_and_exported(project, tmp_path):
    run = str(project / "runs/moved")
    assert main(["report", run]) == 0
    assert main(["show", run]) == 0
    assert main(["export", run, "--out", str(tmp_path / "model")]) == 0
    assert (tmp_path / "model/config.json").is_file()


# --- what a recipe names -----------------------------------------------------------------------


def _change(path: Path) -> None:
    if path.suffix == ".safetensors":  # one bit of a weight
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)
    elif path.suffix == ".jsonl":
        row = {"question": "7 + 7 ?", "answer": "14"}
        path.write_text(path.read_text() + json.dumps(row) + "\n")
    else:
        path.write_text(path.read_text() + "\n# another line\n")


@pytest.mark.parametrize(
    "name",
    ["rewards/mine.py", "rewards/helper.py", "data/rows.jsonl", "data/held_out.jsonl",
     "models/base/model.safetensors"],
)  # fmt: skip
def test_what_a_recipe_names_has_changed(project, name, capsys, monkeypatch):
    monkeypatch.chdir(project)
    run = project / "runs/moved"
    _change(project / name)
    assert main(["train", "recipe.yaml", "--resume", "--steps", "2"]) == 2
    assert Path(name).name in one_error(capsys)
    assert steps(run) == [1]
    if name == "rewards/helper.py":
        assert main(["train", "recipe.yaml", "--resume", "--force", "--steps", "2"]) == 0
        (event,) = [e for e in RunFolder(run).events() if e["event"] == "recipe changed"]
        assert any("helper.py" in change for change in event["changes"])
        # From then on it is what the run goes on with.
        assert main(["train", "recipe.yaml", "--resume", "--steps", "3"]) == 0
        assert steps(run) == [1, 2, 3]


# --- what a checkpoint will need ---------------------------------------------------------------


def test_sampling_without_do_sample_trains_and_is_saved(project, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(project)
    settings = {"eos_token_id": 2, "temperature": 0.9, "top_p": 0.6}
    base = project / "models/base"
    (base / "generation_config.json").write_text(json.dumps(settings))
    output = tmp_path / "run"
    assert main(["train", str(project / "recipe.yaml"), "--output", str(output)]) == 0
    assert capsys.readouterr().err.count("generation_config.json") == 1
    saved = json.loads((output / "checkpoints/step-1/model/generation_config.json").read_text())
    assert saved["do_sample"] is True
    assert saved["temperature"] == 0.9 and saved["top_p"] == 0.6
    assert main(["export", str(base), "--out", str(tmp_path / "model")]) == 0
    assert json.loads((tmp_path / "model/generation_config.json").read_text())["do_sample"] is True


@pytest.mark.parametrize("what", ["tokenizer", "folder"])
def test_what_cannot_be_saved_is_refused_before_anything_is_sampled(
    project, what, capsys, monkeypatch
):
    monkeypatch.chdir(project)
    run = project / "run"
    if what == "tokenizer":  # half a character, which loads and cannot be written as UTF-8
        path = project / "models/base/tokenizer_config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "note": "\ud800"}))
        names = "models/base"
    else:
        run.mkdir()
        (run / "checkpoints").write_text("not a folder")
        names = "checkpoints"
    assert main(["train", str(project / "recipe.yaml"), "--output", str(run)]) == 2
    assert names in one_error(capsys)
    assert not any(run.glob("eval/*")) and not any(run.glob("rollouts/*"))
    assert what == "folder" or not (run / "checkpoints").exists()


# --- nobody reads ------------------------------------------------------------------------------


def shell(project: Path, command: str) -> int:
    environment = {**os.environ, "R1LAB": f"{sys.executable} -m r1lab"}
    line = f"set -o pipefail; {command}"
    done = subprocess.run(["bash", "-c", line], cwd=project, env=environment, capture_output=True)
    assert b"Traceback" not in done.stderr
    return done.returncode


@pytest.mark.parametrize(
    "unread",
    ["| head -1", "2>&1 | true", ">&-", "2>&-", ">&- 2>&- <&-", ">/dev/full 2>/dev/full"],
)
def test_training_does_not_depend_on_being_read(project, unread):
    shutil.rmtree(project / "runs")
    reward = project / "rewards/mine.py"  # and what a reward prints is nobody's score
    reward.write_text(REWARD.replace("    return", "    print('x' * 5000, flush=True)\n    return"))
    assert shell(project, f"$R1LAB train recipe.yaml --rewards.0.isolate true {unread}") == 0
    (row,) = RunFolder(project / "runs/moved").metrics()
    assert row["step"] == 1 and row["faults"] == 0
    assert (project / "runs/moved/summary.json").is_file()


@pytest.mark.parametrize("unread", ["| head -1", ">&- 2>&-"])
def test_the_exit_code_of_a_failed_training_does_not_depend_on_it_either(project, unread):
    assert shell(project, f"$R1LAB train recipe.yaml {unread}") == 2  # it holds a run already


@pytest.mark.parametrize(
    ("command", "code"),
    [
        ("show runs/moved | true", 0),
        ("train --keys | head -1", 0),
        ("--help | true", 0),
        ("show runs/moved >/dev/full", 2),
        ("show runs/none | true", 2),
    ],
)
def test_commands_for_a_reader_end_quietly(project, command, code):
    assert shell(project, f"$R1LAB {command}") == code
