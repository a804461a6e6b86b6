"""scripts/bench_step.py runs: both sides on the same small work, without the slow parts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "bench_step.py"


@pytest.mark.long
def test_both_sides_on_small_work() -> None:
    command = [sys.executable, str(SCRIPT), "--quick", "--base", "nano", "--tail", "long_tailed"]
    command += ["--parts", "end_to_end", "update", "gradient", "sampling"]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    figures = json.loads(done.stdout.strip().splitlines()[-1])
    assert figures["gradient_cosine"] >= 0.9999
    assert figures["gradient_norm_ratio"] == pytest.approx(1.0, abs=1e-4)
    assert figures["sequences"] == 8
    for side in ("ours", "trl"):
        assert figures[side]["step"] > figures[side]["update"] > 0
        assert 1 <= figures[side]["mean_length"] <= 32
    assert figures["ratio_end_to_end"] > 0 and figures["ratio_update"] > 0
    assert figures["rollout_vs_plain_vllm"] > 0
