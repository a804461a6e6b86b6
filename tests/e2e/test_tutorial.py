"""docs/tutorial.md from its own text: files are written and commands run in the order of the page.

With the small numbers that the page itself names (ARGS and EVAL); `long`: as it stands, to the end.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from io import StringIO
from pathlib import Path
from unittest.mock import patch

import pytest

from r1lab.cli.app import main

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs/tutorial.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", TEXT, re.DOTALL | re.MULTILINE)


def follow(folder: Path, settings: dict[str, str]) -> list[str]:
    """Do what the page says, in `folder`, which is the current one; the commands that were run."""
    done = []
    for kind, block in BLOCKS:
        if kind in ("python", "yaml"):
            first, _, rest = block.partition("\n")
            (folder / first.removeprefix("# ")).write_text(rest)
        if kind == "sh":
            for line in block.splitlines():
                words = shlex.split(re.sub(r"\$(\w+)", lambda name: settings[name[1]], line))
                given = sys.stdin
                if words[0] == "echo":  # WORDS | r1lab ...
                    pipe = words.index("|")
                    given, words = StringIO(" ".join(words[1:pipe]) + "\n"), words[pipe + 1 :]
                if words[0] == "python":
                    subprocess.run([sys.executable, *words[1:]], check=True, cwd=folder)
                else:
                    with patch.object(sys, "stdin", given):
                        assert words[0] == "r1lab" and main(words[1:]) in _allowed(words), line
                done.append(line)
    return done


def _allowed(words: list[str]) -> tuple[int, ...]:
    """Exit codes: 16 responses may by chance be all wrong, and a preflight then says so."""
    return (0, 4) if "--preflight" in words and "--steps" in words else (0,)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    for name in ("OMP_WAIT_POLICY", "KMP_BLOCKTIME"):
        monkeypatch.setenv(name, os.environ.get(name, ""))
    return tmp_path


def test_the_page_from_its_text(folder, capsys):
    (small,) = (block for kind, block in BLOCKS if kind == "bash")
    settings = dict(re.findall(r'^export (\w+)="(.*)"$', small.replace("\\\n", ""), re.MULTILINE))
    assert set(settings) == {"ARGS", "EVAL"}
    done = follow(folder, settings)
    assert len(done) == 13 and sum("$" in line for line in done) == 4
    said = capsys.readouterr().out
    assert {"red", "blue", "green"} & set(said.splitlines()[-1].split())  # what the model answered
    assert "hostile" in said  # the table of verify
    assert "would train nano for 30 steps" in said
    assert len((folder / "runs/swaps/metrics.jsonl").read_text().splitlines()) == 2
    assert (folder / "runs/swaps/report.html").stat().st_size > 100_000
    metrics = json.loads((folder / "runs/swaps/metrics.jsonl").read_text().splitlines()[0])
    assert 0 <= metrics["swaps_reward.in_place"] <= 1
    assert len(list(folder.glob("evals/*/*.json"))) == 4
    assert said.count("swaps against nano") == 2
    assert len(re.findall(r"pass_at_1 .* -> .* \[.*\], p = ", said)) == 2


@pytest.mark.long
def test_the_model_learns_the_puzzle(folder):
    follow(folder, {"ARGS": "", "EVAL": ""})
    before = json.loads((folder / "runs/swaps/eval/step-000000.json").read_text())["overall"]
    after = json.loads((folder / "runs/swaps/eval/step-000030.json").read_text())["overall"]
    assert before["pass_at_1"]["value"] < 0.35 and after["pass_at_1"]["value"] > 0.7
