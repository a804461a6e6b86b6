"""The one-file loop runs as its docstring says, and stays one short file."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "examples/minimal_loop.py"


def test_two_steps_of_the_minimal_loop():
    assert len(SCRIPT.read_text(encoding="utf-8").splitlines()) <= 200
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--steps", "2", "--seed", "0"],
        capture_output=True, text=True, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    *_, first, second, last = done.stdout.splitlines()
    assert first.startswith("step 1 ") and second.startswith("step 2 ")
    result = json.loads(last)
    assert result["seed"] == 0 and [row["step"] for row in result["steps"]] == [1, 2]
    for row in result["steps"]:
        # The second step samples under weights that were sent: a KL below the bound says they
        # arrived. The base itself answers a part of the problems, and not all.
        assert 0 <= row["mismatch_kl"] <= row["mismatch_kl_bound"]
        assert 0 < row["accuracy"] < 1 and 0 < row["format"] <= 1 and row["length"] > 1
        assert math.isfinite(row["loss"]) and row["loss"] != 0
    assert result["accuracy_last"] == sum(row["accuracy"] for row in result["steps"]) / 2
