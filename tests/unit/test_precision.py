"""What `model.dtype: auto` becomes, on machines that this one is not."""

import subprocess
import sys
from pathlib import Path

import pytest

from r1lab.cli.app import build_parser
from r1lab.config.recipe import ModelSettings
from r1lab.precision import fast_precision

SCRIPTS = Path(__file__).parents[2] / "scripts"


def machine(tmp_path, flags, name="flags", gpu=False):
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/cpuinfo").write_text(f"processor : 0\n{name}\t: {flags}\n\nprocessor : 1\n")
    if gpu:
        (tmp_path / "proc/driver/nvidia").mkdir(parents=True)
        (tmp_path / "proc/driver/nvidia/version").write_text("NVRM")
    return tmp_path


@pytest.mark.parametrize(
    ("flags", "name", "expected"),
    [
        ("fpu avx2 fma", "flags", "float32"),
        ("fpu avx512f avx512bw", "flags", "float32"),  # multiplies in float32, with conversions
        ("fpu avx512f avx512_bf16", "flags", "bfloat16"),
        ("fpu amx_bf16 amx_tile", "flags", "bfloat16"),
        ("fp asimd bf16", "Features", "bfloat16"),
        ("", "model name", "float32"),
    ],
)
def test_the_precision_a_cpu_is_fast_in(tmp_path, flags, name, expected):
    assert fast_precision(machine(tmp_path, flags, name)) == expected


def test_a_gpu_that_may_be_used_decides(tmp_path, monkeypatch):
    root = machine(tmp_path, "avx2", gpu=True)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert fast_precision(root) == "bfloat16"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert fast_precision(root) == "float32"


def test_auto_is_settled_when_a_recipe_is_read():
    assert ModelSettings().dtype == ModelSettings(dtype="auto").dtype == fast_precision()
    assert ModelSettings(dtype="bfloat16").dtype == "bfloat16"


def test_every_command_that_computes_takes_auto():
    commands = build_parser()._subparsers._group_actions[0].choices
    with_dtype = {
        name: action
        for name, command in commands.items()
        for action in command._actions
        if "--dtype" in action.option_strings
    }
    assert set(with_dtype) == {"eval", "export", "serve", "chat", "serve-sampler"}
    for name, action in with_dtype.items():
        settled = action.type("auto") if action.type else "auto"
        assert "auto" in action.choices and settled in action.choices, name


@pytest.mark.parametrize(
    "script", [path.stem for path in sorted(SCRIPTS.glob("*.py")) if "--dtype" in path.read_text()]
)
def test_every_script_takes_auto(script):
    asked = [sys.executable, SCRIPTS / f"{script}.py", "--dtype", "auto", "--no-such-option"]
    done = subprocess.run(asked, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "--no-such-option" in done.stderr, done.stderr[-500:]


def test_no_signature_computes_in_bfloat16_unasked():
    """A machine that lacks it takes dozens of times as long: only `auto` is a default."""
    package = Path(__file__).parents[2] / "r1lab"
    found = [
        str(path)
        for path in (*package.rglob("*.py"), *SCRIPTS.glob("*.py"))
        if 'str = "bfloat16"' in path.read_text() or 'default="bfloat16"' in path.read_text()
    ]
    assert not found
