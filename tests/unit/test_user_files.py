"""A user's file sees its own folder first, and no other folder sees its siblings."""

from __future__ import annotations

import importlib
import json
import pickle
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

from r1lab.problems.registry import find, resolve
from r1lab.types import Completion, Problem, Verdict
from r1lab.verify import InProcessRunner, IsolatedRunner, RewardCall, load_reward

REWARD = "def reward(problem, completion):\n    return value()\n"
ITEM = RewardCall(Problem("p", "?", "1", "math"), Completion((1,), "1", "stop", 0), "?")


@pytest.fixture(params=["isolated", "in process"])
def runner(request):
    if request.param == "in process":
        yield InProcessRunner()
    else:
        with IsolatedRunner(1) as isolated:
            yield isolated


def write(folder: Path, **files: str) -> Path:
    for name, text in files.items():
        path = folder / f"{name.replace('__in__', '/')}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder / "mine.py"


def score(runner, path: Path) -> float | None:
    (outcome,) = runner.run(load_reward(str(path)), [ITEM])
    assert isinstance(outcome, Verdict), outcome
    return outcome.score


IMPORTS = {
    "absolute": "from helper import value\n" + REWARD,
    "as a name": "import helper as h\nvalue = lambda: h.value()\n" + REWARD,
    "relative": "from .helper import value\n" + REWARD,
    "relative module": "from . import helper\nvalue = lambda: helper.value()\n" + REWARD,
    "later": "def value():\n    import helper\n    return helper.value()\n" + REWARD,
    "through a sibling": "from common import value\n" + REWARD,
    "package": "import pack.inner\nvalue = lambda: pack.inner.value()\n" + REWARD,
    "folder above": "from ..top import value\n" + REWARD,
}


@pytest.mark.parametrize("mine", IMPORTS.values(), ids=IMPORTS)
def test_each_folder_has_its_own_siblings(tmp_path, runner, mine):
    paths = []
    for number in (1, 2):
        value = f"def value():\n    return {number}.0\n"
        folder = tmp_path / str(number) / "rewards"
        write(folder.parent, top=value)
        paths.append(
            write(folder, mine=mine, helper=value, common="from helper import value\n",
                  pack__in____init__="", pack__in__inner="from helper import value\n")
        )  # fmt: skip
    assert [score(runner, path) for path in paths] == [1.0, 2.0]


@pytest.mark.parametrize("name", ["statistics", "random", "yaml", "json", "pytest"])
def test_siblings_named_like_other_modules(tmp_path, runner, name):
    before = importlib.import_module(name)
    path = write(
        tmp_path,
        mine=f"from {name} import value\n" + REWARD,
        **{
            name: f"import {name} as other\ndef value():\n    return float(hasattr(other, 'value'))"
        },
    )
    assert score(runner, path) == 0.0  # its own name is the module that was there before
    assert sys.modules.get(name) is before
    assert statistics.fmean([1.0]) == 1.0


def test_modules_that_are_no_siblings(tmp_path, runner):
    (tmp_path / "numpy").mkdir()  # without __init__.py: a folder of arrays
    path = write(
        tmp_path,
        mine="import r1lab.types, numpy, os.path\nfrom concurrent import futures\n"
        "def value():\n    return r1lab.types.Verdict(float(numpy.float64(1.0)))\n" + REWARD,
        r1lab="raise ImportError('not this one')\n",
    )
    assert score(runner, path) == 1.0


def test_names_of_the_folders_init(tmp_path, runner):
    path = write(
        tmp_path,
        mine="from . import value\n" + REWARD,
        __init__="from .helper import value\n",
        helper="def value():\n    return 1.0\n",
    )
    assert score(runner, path) == 1.0


@pytest.mark.parametrize("name", ["my.reward", "my-reward", "50%"])
def test_odd_names_of_files(tmp_path, runner, name):
    folder = tmp_path / "v1.2 50%25"
    write(folder, helper="def value():\n    return 1.0\n")
    path = folder / f"{name}.py"
    path.write_text("from helper import value\n" + REWARD)
    assert score(runner, path) == 1.0


def test_sources_and_losses_likewise(tmp_path):
    for number in (1, 2):
        write(
            tmp_path / str(number),
            helper=f"number = {number}\n",
            mine="import helper\ndef load(split):\n    return helper.number\nloss = load\n",
        )
        for kind in ("source", "loss"):
            assert resolve(str(tmp_path / str(number) / "mine.py"), kind)("train") == number


def test_objects_travel_to_workers_and_other_processes(tmp_path):
    path = write(
        tmp_path,
        kinds="from __future__ import annotations\nimport dataclasses\n"
        "@dataclasses.dataclass\nclass Kind:\n    size: float\n",
        mine="from kinds import Kind\ndef load(split):\n    return Kind(2.0)\n"
        "def reward(problem, completion):\n    kind = problem.metadata['kind']\n"
        "    return kind.size if isinstance(kind, Kind) else 0.0\n",
    )
    kind = resolve(str(path), "source")("train")
    item = RewardCall(Problem("p", "?", "1", "math", metadata={"kind": kind}), ITEM.completion, "?")
    with IsolatedRunner(1) as isolated:
        (outcome,) = isolated.run(load_reward(str(path)), [item])
    assert isinstance(outcome, Verdict) and outcome.score == 2.0
    read = "import pickle, sys; print(pickle.loads(bytes.fromhex(sys.argv[1])).size)"
    done = subprocess.run(
        [sys.executable, "-c", read, pickle.dumps(kind).hex()], capture_output=True, text=True
    )
    assert done.stdout.strip() == "2.0", done.stderr


def test_the_current_folder_does_not_win(tmp_path):
    write(tmp_path / "here", helper="def value():\n    return 1.0\n")
    path = write(
        tmp_path / "there",
        helper="def value():\n    return 2.0\n",
        mine="from helper import value\n" + REWARD,
    )
    (tmp_path / "here" / "rows.jsonl").write_text('{"question": "?", "answer": "1"}\n')
    done = subprocess.run(
        [sys.executable, "-m", "r1lab", "verify", str(path), "--problems", "rows.jsonl",
         "--full", "2", "--json", "report.json"],
        capture_output=True, text=True, cwd=tmp_path / "here",
    )  # fmt: skip
    assert "'gold'" not in done.stderr
    report = json.loads((tmp_path / "here" / "report.json").read_text())
    assert report["checks"]["gold"]["passed"] == report["checks"]["gold"]["responses"] > 0


def test_the_reference_does_not_depend_on_the_current_folder(tmp_path, monkeypatch):
    write(tmp_path, mine=REWARD)
    monkeypatch.chdir(tmp_path)
    relative = find("mine.py", "reward")
    assert relative.module == find(str(tmp_path / "mine.py"), "reward").module
