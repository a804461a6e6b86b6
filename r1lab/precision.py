"""Which working precision this machine computes fast in: what `model.dtype: auto` becomes.

bfloat16 halves memory, but a CPU without instructions for it does each product dozens of times
slower than in float32 (0.01 to 0.06 times as fast with AVX2 alone; docs/experiments.md). No torch
here.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

Precision = Literal["bfloat16", "float32"]

CHOICES = ("auto", "bfloat16", "float32")  # of every --dtype and model.dtype

# As /proc/cpuinfo names them, on x86 and ARM.
_BFLOAT16_CPUS = frozenset({"avx512_bf16", "amx_bf16", "bf16"})
_GPU_DRIVERS = ("proc/driver/nvidia/version", "sys/class/kfd")


def fast_precision(root: Path = Path("/")) -> Precision:
    """bfloat16 where a GPU, or instructions of the CPU, multiply in it; else float32.

    `root` is where /proc and /sys are looked for (for tests). Whether an old GPU lacks bfloat16 is
    not asked, which would need torch: `r1lab doctor` says so.
    """
    if sees_gpu(root):
        return "bfloat16"
    return "bfloat16" if _BFLOAT16_CPUS & cpu_flags(root) else "float32"


def settled(name: str) -> str:
    """A precision as it is computed in: `auto` is the one that this machine is fast in."""
    return fast_precision() if name == "auto" else name


def sees_gpu(root: Path = Path("/")) -> bool:
    """Whether a GPU's driver is loaded and its devices are not hidden from this process."""
    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return False
    return any((root / driver).exists() for driver in _GPU_DRIVERS)


def cpu_flags(root: Path = Path("/")) -> frozenset[str]:
    """The features of the first processor, as /proc/cpuinfo names them; empty where unknown."""
    path = root / "proc/cpuinfo"
    if not path.is_file():
        return frozenset()
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        name, _, value = line.partition(":")
        if name.strip() in ("flags", "Features"):  # x86, ARM
            return frozenset(value.split())
    return frozenset()
