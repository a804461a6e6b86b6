"""What `model.dtype: auto` becomes, on machines that this one is not."""

import pytest

from r1lab.precision import fast_precision
from r1lab.recipe import ModelSettings


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
