"""What release 0.1.0 wrote is read, resumed and continued: tests/data/released_0.1.

Everything goes through the command line and the file formats. Names of metrics may change between
releases, figures may not: where a name is gone, its value has to be there under another.
"""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

SAMPLES = Path(__file__).parents[1] / "data" / "released_0.1"
STAGES = ("samples", "sft", "rl")


@pytest.fixture
def samples(tmp_path: Path) -> Path:
    """A copy of the samples as the current folder of the `r1lab` fixture."""
    shutil.copytree(SAMPLES, tmp_path, dirs_exist_ok=True)
    # Weights are recognised by size and time, and a checkout does not keep the time.
    (evaluation,) = (tmp_path / "evaluation").glob("*.json")
    for name, _, changed in json.loads(evaluation.read_text())["plan"]["weights"]:
        model = tmp_path / "run/checkpoints/step-2/model" / name
        os.utime(model, ns=(changed, changed))
    return tmp_path


def succeed(done) -> str:
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def content(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def is_close(one: object, other: object) -> bool:
    """Equal up to what kinds of CPU differ by; float32 sums in another order."""
    if isinstance(one, float | int) and isinstance(other, float | int):
        return one == pytest.approx(other, rel=1e-3, abs=1e-6)
    return one == other


def missing_figures(released: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Metrics of a released line whose values the line of now does not have.

    But for those of the optimiser: release 0.1.0 recorded the last update of a step, and means over
    its updates are recorded since.
    """
    renamed = [value for name, value in now.items() if name not in released]
    return [
        f"{name}: {value}, now {now.get(name, 'under no other name')}"
        for name, value in released.items()
        if name not in ("grad_norm", "learning_rate")
        and not any(is_close(value, other) for other in ([now[name]] if name in now else renamed))
    ]


def numbers(value: Any) -> Iterator[float]:
    """All numbers inside plain values."""
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list):
        for entry in value:
            yield from numbers(entry)
    elif isinstance(value, float | int) and not isinstance(value, bool):
        yield float(value)


def test_two_steps_from_the_released_base_give_the_released_metrics(samples, r1lab):
    succeed(r1lab("train", "train.yaml", "--output", "again"))
    released, now = (read_lines(samples / run / "metrics.jsonl") for run in ("run", "again"))
    assert [line["step"] for line in now] == [1, 2]
    for before, after in zip(released, now, strict=True):
        assert missing_figures(before, after) == []


def test_a_released_checkpoint_is_resumed(samples, r1lab):
    """Step 3 depends on the reference, the carried-over group and the random states."""
    released = read_lines(samples / "run" / "metrics.jsonl")
    (third,) = read_lines(samples / "continued.jsonl")
    succeed(r1lab("train", "run", "--resume", "--steps", "3"))
    now = read_lines(samples / "run" / "metrics.jsonl")
    assert [line["step"] for line in now] == [1, 2, 3]
    for before, after in zip(released, now, strict=False):
        assert sorted(numbers(after)) == sorted(numbers(before))
    assert missing_figures(third, now[2]) == []


def test_another_recipe_does_not_continue_a_released_run(samples, r1lab):
    """The recipe in the checkpoint, with the keys of then, still counts."""
    refused = r1lab("train", "run", "--resume", "--steps", "3", "--optimizer.learning_rate", "2e-3")
    assert refused.returncode == 2 and "optimizer.learning_rate" in refused.stderr
    assert content(samples / "run" / "checkpoints") == content(SAMPLES / "run" / "checkpoints")


def test_the_report_shows_the_recorded_figures(samples, r1lab):
    succeed(r1lab("report", "run", "--output", "page.html"))
    packed = re.search(r'id="main">([^<]+)<', (samples / "page.html").read_text())
    assert packed is not None
    shown = set(numbers(json.loads(zlib.decompress(base64.b64decode(packed[1])))))
    for line in read_lines(samples / "run" / "metrics.jsonl"):
        names = ("reward", "accuracy", "format", "length", "length_right", "length_wrong",
                 "truncated", "entropy", "sync_kl", "grad_norm", "kl_ref")  # fmt: skip
        assert {name: line[name] for name in names if line[name] not in shown} == {}
    for step in (0, 2):
        overall = json.loads((samples / f"run/eval/step-{step:06d}.json").read_text())["overall"]
        for name in ("pass_at_1", "cons_at_k", "length"):
            assert set(overall[name].values()) <= shown, (step, name)


def test_watch_shows_the_recorded_figures(samples, r1lab):
    shown = succeed(r1lab("watch", "run", "--once", COLUMNS="160"))
    last = read_lines(samples / "run" / "metrics.jsonl")[-1]
    for figure in (f"{last['reward']:.3f}", f"{last['accuracy']:.3f}", f"{last['length']:.1f}",
                   "0.44 [0.12, 0.75]", "0.44 [0.06, 0.81]"):  # fmt: skip
        assert figure in shown, figure


@pytest.mark.parametrize("step", [1, 2])
def test_show_prints_the_recorded_samples(samples, r1lab, step):
    import pyarrow.parquet as parquet

    rows = parquet.read_table(samples / f"run/rollouts/step-{step:06d}.parquet").to_pylist()
    scores: dict[str, list[float]] = {}
    for row in rows:
        scores.setdefault(row["problem_id"], []).append(row["score"])
    problem = next(name for name, of_it in scores.items() if len(set(of_it)) > 1)
    shown = succeed(r1lab("show", "run", "--step", step, "--problem", problem, COLUMNS="200"))
    assert f"{sum(scores[problem]) / len(scores[problem]):.2f}" in shown
    for row in (row for row in rows if row["problem_id"] == problem):
        assert row["question"] in shown and f"{row['length']} tokens" in shown
        assert row["thinking"] is None or row["thinking"] in shown


def test_released_evaluations_are_compared(samples, r1lab):
    (own,) = (samples / "evaluation").glob("*.json")
    same = succeed(r1lab("compare", own, "--with", own))
    assert "0.2500" in same and "+0.0000" in same
    first, last = (samples / f"run/eval/step-{step:06d}.json" for step in (0, 2))
    shown = succeed(r1lab("compare", first, "--with", last))
    for path in (first, last):
        overall = json.loads(path.read_text())["overall"]
        assert f"{overall['pass_at_1']['value']:.4f}" in shown
        assert f"{overall['length']['value']:.1f}" in shown


def test_a_released_evaluation_is_not_made_again(samples, r1lab):
    (own,) = (samples / "evaluation").glob("*.json")
    result = json.loads(own.read_text())
    result["problems"][0]["samples"][0]["text"] += " kept"  # no model would sample it
    own.write_text(json.dumps(result))
    shown = succeed(r1lab(
        "eval", "run", "--num", "8", "--k", "2", "--greedy", "--seed", "5", "--max-tokens", "32",
        "--engine", "transformers", "--dtype", "float32", "--out", "evaluation",
    ))  # fmt: skip
    assert list((samples / "evaluation").iterdir()) == [own]
    assert "0.2500 [0.0000, 0.6250]" in shown
    now = json.loads(own.read_text())["problems"]
    assert [[sample["text"] for sample in problem["samples"]] for problem in now] == [
        [sample["text"] for sample in problem["samples"]] for problem in result["problems"]
    ]


def test_released_lineage_names_what_a_model_was_made_from(samples, r1lab):
    shown = succeed(r1lab("lineage", "pipeline/rl/checkpoints/step-1/model"))
    lines = shown.splitlines()
    assert len(lines) == 3
    for line, stage in zip(lines, reversed(STAGES), strict=True):
        record = json.loads((samples / "pipeline" / stage / "stage.json").read_text())
        assert record["sha256"][:12] in line
        # Nothing behind the digest: the bytes are still those that were recorded.
        assert line.endswith(record["sha256"][:12])
    assert "0.750 [0.500, 1.000]" in lines[0]


def test_a_run_folder_names_its_base(samples, r1lab):
    first, second = succeed(r1lab("lineage", "run")).splitlines()
    assert "released step-2" in first and "base" in second


def test_a_released_pipeline_is_up_to_date(samples, r1lab):
    def states(*options: str) -> list[str]:
        shown = succeed(r1lab("pipeline", "pipeline.yaml", "--dry-run", *options))
        words = [line.split() for line in shown.splitlines() if not line.startswith(" ")]
        return [state for state, stage, *_ in words if stage in STAGES]

    assert states() == ["done"] * 3
    assert "done" not in states("--seed", "4")
    before = content(samples / "pipeline")
    shown = succeed(r1lab("pipeline", "pipeline.yaml"))
    assert content(samples / "pipeline") == before
    for stage in ("sft", "rl"):
        figures = json.loads((samples / "pipeline" / stage / "evaluation.json").read_text())
        (row,) = (line for line in shown.splitlines() if line.startswith(f"| {stage} |"))
        assert f" {figures['pass_at_1']:.3f} " in row and f" {figures['format']:.3f} " in row
