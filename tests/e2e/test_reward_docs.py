"""docs/rewards.md does what it says: its files are written, its commands run, its tests exist."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs/rewards.md").read_text(encoding="utf-8")
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", TEXT, re.DOTALL | re.MULTILINE)
COMMANDS = [line for kind, block in BLOCKS if kind == "sh" for line in block.splitlines()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Every file of the page."""
    folder = tmp_path_factory.mktemp("docs")
    for kind, block in BLOCKS:
        if kind != "sh":
            first, _, rest = block.partition("\n")
            (folder / first.removeprefix("# ")).write_text(rest)
    return folder


def run(folder: Path, command: str) -> subprocess.CompletedProcess[str]:
    words = shlex.split(command)
    words = [sys.executable, *(["-m", "r1lab"] if words[0] == "r1lab" else []), *words[1:]]
    return subprocess.run(words, cwd=folder, capture_output=True, text=True)


def test_the_commands_run_in_their_order(folder):
    assert len(COMMANDS) > 4 and all(line.startswith(("r1lab ", "python ")) for line in COMMANDS)
    for command in COMMANDS:
        done = run(folder, command)
        assert done.returncode == 0, (command, done.stdout, done.stderr)


def test_the_reward_of_the_readme_passes(tmp_path):
    (block,) = re.findall(
        r"^```python\n# my_reward.py\n(.*?)^```$", README, re.DOTALL | re.MULTILINE
    )
    (tmp_path / "my_reward.py").write_text(block)
    done = run(tmp_path, "r1lab verify my_reward.py --problems boxes --num 20")
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_recipe_can_be_trained(folder):
    done = run(folder, "r1lab train capitals.yaml --dry-run")
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_rewards_of_the_page_add_up(folder, monkeypatch):
    from r1lab.config.reading import load_recipe
    from r1lab.problems.registry import load_mixture
    from r1lab.prompts import TEMPLATES
    from r1lab.types import Rollout, Verdict
    from r1lab.verify import Verifiers
    from r1lab.verify.check import as_written

    monkeypatch.chdir(folder)
    recipe, template = load_recipe(folder / "capitals.yaml"), TEMPLATES["r1-zero"]
    verifiers = Verifiers(recipe.rewards, template=template)
    assert verifiers.figures == ("accuracy", "names_the_country", "format")
    (paris,) = (p for p in load_mixture(recipe.problems, "train").distinct(3) if "Fr" in p.question)
    texts = ("So France</think><answer>Paris</answer>", "So</think><answer>paris</answer>", "Lima")
    (scored,) = verifiers.score(
        [Rollout(paris, (1,), tuple(as_written(template, text) for text in texts))]
    )
    assert all(isinstance(outcome, Verdict) for outcome in scored.outcomes)
    named = 0.5 * 2.0  # its weight times its option
    assert [outcome.score for outcome in scored.outcomes] == pytest.approx(
        [1.0 + named + 0.2, 1.0 + 0.2, 0.0]
    )
    assert [outcome.parts.get("names_the_country") for outcome in scored.outcomes] == [
        2,
        None,
        None,
    ]
    assert verifiers.reported([scored])["names_the_country.named"] == pytest.approx(1 / 3)


def test_every_test_that_the_page_names_is_there():
    section = TEXT[TEXT.index("## The firewall") :]
    named = set(re.findall(r"`(test_\w+)`", section))
    there = {
        name
        for path in (ROOT / "tests").rglob("test_*.py")
        for name in re.findall(r"^def (test_\w+)", path.read_text(), re.MULTILINE)
    }
    assert len(named) > 10 and named <= there, named - there


def test_every_reward_that_ships_is_named():
    from r1lab.problems.registry import shipped

    assert all(f"`{name}`" in TEXT for name in shipped("reward"))
