"""The pages under docs/howto/ do what they say: files are written, `sh` blocks run as they stand.

`console` blocks are for machines that a test has not: their recipes, keys, configurations of the
launcher and scripts are looked up. Commands run in this process, in a folder with the page's files.
"""

from __future__ import annotations

import os
import re
import runpy
import shlex
import subprocess
import sys
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path

import pytest

from r1lab.cli.app import main
from r1lab.config.keys import describe
from r1lab.config.reading import load_recipe, parse_overrides
from r1lab.config.recipe import TrainRecipe

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted((ROOT / "docs/howto").glob("*.md"))
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def blocks(page: Path, kind: str) -> list[str]:
    found = BLOCK.findall(page.read_text(encoding="utf-8"))
    return [text for of_kind, text in found if of_kind == kind]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty current folder, a page's files written into it by the call."""

    def fill(page: Path) -> Path:
        for kind, text in BLOCK.findall(page.read_text(encoding="utf-8")):
            if kind in ("python", "yaml", "jsonl"):
                first, _, rest = text.partition("\n")
                assert re.fullmatch(r"# \w+\.\w+", first), (
                    f"{page.name}: name the file, not {first}"
                )
                (tmp_path / first.removeprefix("# ")).write_text(rest)
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("COLUMNS", "100")
        return tmp_path

    return fill


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_commands_run(page, folder, capsys):
    folder(page)
    for line in "".join(blocks(page, "sh")).splitlines():
        words = shlex.split(line)
        if words[0] == "python":
            runpy.run_path(words[1])
        else:
            assert words[0] == "r1lab", line
            assert main(words[1:]) == 0, (line, capsys.readouterr().err)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_commands_for_other_machines_name_what_is_there(page, folder):
    written = folder(page)
    for line in "".join(blocks(page, "console")).splitlines():
        words = shlex.split(line)
        for option, value in pairwise(words):
            if option == "--config_file":
                assert (ROOT / value).is_file(), line
        for word in words:
            if word.startswith("scripts/"):
                assert (ROOT / word).is_file(), line
        recipes = [
            n for n, word in enumerate(words) if word.endswith(".yaml") and "accelerate" not in word
        ]
        for place in recipes:
            name = words[place]
            path = written / name if (written / name).is_file() else ROOT / name
            rest = [w for w in words[place + 1 :] if w not in ("--dry-run", "--preflight")]
            if "--gpus" in rest:
                del rest[rest.index("--gpus") : rest.index("--gpus") + 2]
            load_recipe(path, parse_overrides(rest))


def test_the_table_of_trl_names_what_trl_has():
    source = Path(find_spec("trl").origin).parent / "trainer/grpo_config.py"
    there = set(re.findall(r"^    (\w+): ", source.read_text(), re.MULTILINE))
    inherited = {
        "max_steps",
        "per_device_train_batch_size",
        "gradient_accumulation_steps",
        "eval_steps",
    }
    of_peft = {"use_peft"}
    (table,) = re.findall(
        r"\| GRPOConfig.*?\n\n", (ROOT / "docs/howto/from-trl.md").read_text(), re.DOTALL
    )
    rows = [row.split("|")[1:3] for row in table.splitlines()[2:] if row]
    assert len(rows) > 12
    named = {n for left, _ in rows for n in re.findall(r"`(\w+)[^`]*`", left)} - {"LoraConfig"}
    values = {
        "grpo",
        "dr_grpo",
        "dapo",
        "bnpo",
        "cispo",
        "sapo",
        "luspo",
        "vespo",
        "group",
        "none",
        "batch",
    }
    assert named - values - inherited - of_peft <= there
    keys = {row.key.split(".")[-1] for row in describe(TrainRecipe)}
    ours = {n.split(".")[-1] for _, right in rows for n in re.findall(r"`([a-z_.]+)[^`]*`", right)}
    choices = {"gspo", "token_mean", "dapo", "group_std", "mean_only", "batch_std", "loss"}
    assert ours - choices <= keys


@pytest.mark.long
def test_trl_trains_a_step_on_these_rewards(folder):
    written = folder(ROOT / "docs/howto/rewards-in-trl.md")
    done = subprocess.run(
        [sys.executable, "train_with_trl.py"], cwd=written, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    for name in ("rewards/math/mean", "rewards/format/mean", "math/faults"):
        assert name in done.stdout, done.stdout
