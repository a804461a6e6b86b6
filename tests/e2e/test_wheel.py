"""The wheel works outside the checkout: the command, the recipes and the base that ship with it.

It is installed without its dependencies into a fresh environment, which sees those of the one that
runs the tests through a .pth file. Editable installs do not reach through such a file, so the
checkout is out of sight.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

PARTS = ("pyproject.toml", "README.md", "LICENSE", "r1lab", "rewards", "data", "recipes")


def run(*arguments: object, **keywords) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        list(map(str, arguments)), capture_output=True, text=True, timeout=600, **keywords
    )
    assert done.returncode == 0, f"{arguments}: {done.stdout}\n{done.stderr}"
    return done


@pytest.fixture(scope="module")
def wheel(tmp_path_factory, repository: Path) -> Path:
    """Built from a copy, so that the checkout is not littered and an old build/ cannot slip in."""
    folder = tmp_path_factory.mktemp("wheel")
    for part in PARTS:
        copy = shutil.copytree if (repository / part).is_dir() else shutil.copy
        copy(repository / part, folder / part)
    run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation",
        "--wheel-dir", folder / "dist", folder)  # fmt: skip
    (found,) = (folder / "dist").glob("r1lab-*.whl")
    return found


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory) -> Path:
    """The bin folder of a fresh environment with the wheel in it."""
    folder = tmp_path_factory.mktemp("fresh")
    run(sys.executable, "-m", "venv", "--without-pip", folder)
    python = folder / "bin" / "python"
    run(sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", wheel)
    site = Path(
        run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").stdout.strip()
    )
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder / "bin"


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory) -> dict[str, object]:
    """Where commands are run: an empty folder, and no import path from outside."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    return {"cwd": tmp_path_factory.mktemp("elsewhere"), "env": environment}


def test_the_wheel_holds_what_the_checkout_has(wheel, repository):
    names = set(zipfile.ZipFile(wheel).namelist())
    for folder, inside in (("r1lab", "r1lab"), ("rewards", "r1lab/rewards"), ("data", "r1lab/data"),
                           ("recipes", "r1lab/recipes")):  # fmt: skip
        for path in (repository / folder).rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                expected = f"{inside}/{path.relative_to(repository / folder).as_posix()}"
                assert expected in names, f"{expected} is not in the wheel: see pyproject.toml"
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"r1lab"}


def test_it_is_the_wheel_that_runs(installed, elsewhere, repository):
    code = "import r1lab, r1lab.rewards, r1lab.data; print(r1lab.__file__, *r1lab.data.__path__)"
    out = run(installed / "python", "-c", code, **elsewhere).stdout
    assert str(repository) + "/r1lab" not in out and str(repository) + "/data" not in out
    assert out.count(str(installed.parent)) == 2


def test_the_command_and_the_recipes_that_ship(installed, elsewhere):
    assert "train" in run(installed / "r1lab", "--help", **elsewhere).stdout
    out = run(installed / "r1lab", "train", "quickstart", "--dry-run", **elsewhere).stdout
    assert "name: quickstart" in out and "would train nano" in out


def test_it_trains_two_steps(installed, elsewhere):
    run(
        installed / "r1lab", "quickstart", "--steps", 2,
        "--sampling.questions_per_step", 4, "--sampling.group_size", 4,
        "--evaluation.num_problems", 4, "--evaluation.num_samples", 2, "--evaluation.every", 0,
        **elsewhere,
    )  # fmt: skip
    folder = Path(str(elsewhere["cwd"])) / "runs" / "quickstart"
    assert len((folder / "metrics.jsonl").read_text().splitlines()) >= 2
    assert (folder / "summary.json").exists()
