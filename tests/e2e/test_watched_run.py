"""Real short runs under watch: what is said, what stops, and that watching changes nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from r1lab.monitor.second_grader import FIGURES
from r1lab.verify.verifiers import RESERVED_METRICS

ROOT = Path(__file__).parents[2]
SHORT = (
    "--steps=3", "--sampling.questions_per_step=4", "--sampling.group_size=4",
    "--evaluation.num_problems=4", "--evaluation.num_samples=4", "--evaluation.every=0",
    "--evaluation.greedy=false", "--checkpoints.every=0", "--tracking.trackers=[]",
)  # fmt: skip
# The trainer with nobody on the lookout.
BLIND = """
import sys
from r1lab.cli.app import main
from r1lab.monitor.run_monitor import RunMonitor
RunMonitor.at_start = RunMonitor.see = lambda self, what: None
RunMonitor.grade = lambda self, scored: {}
sys.exit(main())
"""


def train(folder, *changes, code=None):
    start = ["-m", "r1lab"] if code is None else ["-c", code]
    return subprocess.run(
        [sys.executable, *start, "train", "quickstart", f"--output={folder}", *SHORT, *changes],
        capture_output=True, text=True, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def lines(folder, name="metrics.jsonl"):
    return [json.loads(line) for line in (Path(folder) / name).read_text().splitlines()]


def events(folder, kind):
    return [event for event in lines(folder, "events.jsonl") if event["event"] == kind]


@pytest.mark.long
def test_watching_and_grading_change_nothing(tmp_path):
    """metrics.jsonl bit for bit, but for the grader's own figures."""
    watched = train(
        tmp_path / "watched", "--watch.grader.reward=problem", "--watch.grader.responses=8",
        "--watch.truncation={steps: 1, above: 0.0}", "--sampling.max_tokens=24",
    )  # fmt: skip
    assert watched.returncode == 0, watched.stderr[-3000:]
    assert "this run can learn" in watched.stdout + watched.stderr
    blind = train(tmp_path / "blind", "--sampling.max_tokens=24", code=BLIND)
    assert blind.returncode == 0, blind.stderr[-3000:]
    seen = lines(tmp_path / "watched")
    graded = [{name: line.pop(name) for name in FIGURES} for line in seen]
    assert seen == lines(tmp_path / "blind")
    # Problems name the very verifier that trains: the two cannot differ.
    assert all(line["grader_gap"] == 0 and line["grader_responses"] == 8 for line in graded)
    assert set(FIGURES) <= RESERVED_METRICS
    (prospects,) = events(tmp_path / "watched", "prospects")
    assert prospects["can_learn"] and prospects["figures"]["responses"] == 16


@pytest.mark.long
def test_an_alarm_stops_a_run_which_can_go_on(tmp_path):
    settings = (
        "--sampling.max_tokens=6", "--watch.truncation={steps: 2, stop: true}",
        "--sampling.engine=transformers",
    )  # fmt: skip
    stopped = train(tmp_path / "run", *settings)
    assert stopped.returncode == 4, stopped.stderr[-3000:]
    (said,) = [line for line in stopped.stderr.splitlines() if "r1lab: error" in line]
    assert "too many truncated responses" in said and "raise sampling.max_tokens" in said
    assert "Traceback" not in stopped.stderr
    assert "warning: " in stopped.stdout + stopped.stderr, "the prospects of it were told at once"
    (warning,) = events(tmp_path / "run", "warning")
    assert (warning["step"], warning["alarm"], warning["stop"]) == (2, "truncation", True)
    assert [line["step"] for line in lines(tmp_path / "run")] == [1, 2]

    # Who goes on has been told, and is not told again.
    resumed = train(tmp_path / "run", *settings, "--resume")
    assert resumed.returncode == 0, resumed.stderr[-3000:]
    assert [line["step"] for line in lines(tmp_path / "run")] == [1, 2, 3]
    assert len(events(tmp_path / "run", "warning")) == 1
