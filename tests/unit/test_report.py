"""The run folder, the terminal view and the curves."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path

import pytest
from records import completion, problem
from rich.console import Console

from r1lab.config.reading import dump_resolved
from r1lab.config.recipe import ProblemSettings, SourceSettings, TrainRecipe
from r1lab.report.curves import draw_curves, running_mean
from r1lab.report.show import show
from r1lab.report.text import printable
from r1lab.run_folder import RunFolder
from r1lab.types import R1labError, Rollout, ScoredGroup, ScoringFailure, Verdict

RECIPE = TrainRecipe(
    name="tiny", problems=ProblemSettings(sources=(SourceSettings(source="boxes"),))
)


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    folder = RunFolder.create(tmp_path / "run")
    folder.recipe_path.write_text(dump_resolved(RECIPE))
    return folder


def group(*texts: str, question: str = "1 + 1", fault: bool = False) -> ScoredGroup:
    completions = tuple(completion(text) for text in texts)
    outcomes = [Verdict(float(i), f"reason {i}", {"accuracy": float(i)}) for i in range(len(texts))]
    if fault:
        outcomes[-1] = ScoringFailure("timeout", "5 s")  # type: ignore[call-overload]
    asked = problem(0, question=question)
    return ScoredGroup(Rollout(asked, (1,), completions), tuple(outcomes))


def estimate(value: float) -> dict[str, float]:
    return {"value": value, "low": value - 0.05, "high": value + 0.05}


def evaluation(step: int, value: float) -> dict[str, object]:
    names = ("pass_at_1", "cons_at_k", "length", "format", "unanswered", "reward")
    return {
        "step": step, "k": 16, "temperature": 1.0,
        "overall": {"num_problems": 8, **{name: estimate(value) for name in names}},
        "greedy": {"pass_at_1": estimate(value)} if step == 0 else None,
    }  # fmt: skip


# ------------------------------------------------------------------------------ run folder


def test_what_is_written_is_read(run: RunFolder) -> None:
    run.log_metrics(1, {"reward": 0.1 + 0.2, "sync_kl": None, "nan": math.nan, "inf": math.inf})
    run.log_timings(1, {"seconds": 2.5})
    run.write_eval(0, evaluation(0, 0.2))
    run.write_summary({"pass_at_1_after": 0.9})
    again = RunFolder.open(run.path)
    assert again.metrics() == [
        {"step": 1, "reward": 0.1 + 0.2, "sync_kl": None, "nan": None, "inf": None}
    ]
    assert again.timings() == [{"step": 1, "seconds": 2.5}]
    assert again.evals() == [evaluation(0, 0.2)]
    assert again.summary() == {"pass_at_1_after": 0.9}
    assert again.recipe()["name"] == "tiny"
    assert TrainRecipe.model_validate(again.recipe()) == RECIPE


def test_tensors_are_numbers(run: RunFolder) -> None:
    import numpy as np

    run.log_metrics(1, {"a": np.float32(0.5), "b": np.int64(3), "c": {"d": (np.float64("nan"),)}})
    assert run.metrics() == [{"step": 1, "a": 0.5, "b": 3, "c": {"d": [None]}}]


def test_rollouts(run: RunFolder) -> None:
    scored = [group("a \ud800 </think> <answer> 1 </answer>", "b", fault=True), group("c")]
    run.write_rollouts(3, scored, [[0.5, None], [0.0]])
    assert run.rollout_steps() == [3]
    first, faulted, second = run.rollouts(3)
    assert first["text"] == "a ? </think> <answer> 1 </answer>"
    assert (first["answer"], first["thinking"], first["gold"]) == ("1", "a ?", "1")
    assert (first["score"], first["parts"], first["reason"]) == (0.0, {"accuracy": 0.0}, "reason 0")
    assert (first["advantage"], first["length"], first["token_ids"]) == (0.5, 3, [5, 6, 7])
    assert (faulted["score"], faulted["fault"], faulted["parts"]) == (None, "timeout: 5 s", {})
    assert faulted["advantage"] is None
    assert [row["group"] for row in (first, faulted, second)] == [0, 0, 1]
    with pytest.raises(R1labError, match="no rollouts of step 4; kept: 3 to 3"):
        run.rollouts(4)


def test_truncate_takes_back_what_came_later(run: RunFolder) -> None:
    for step in range(1, 5):
        run.log_metrics(step, {"reward": step / 10})
        run.log_timings(step, {"seconds": 1.0})
        run.write_rollouts(step, [group("a")])
    for step in (0, 2, 4):
        run.write_eval(step, evaluation(step, 0.5))
    run.write_summary({"done": True})
    (run.rollouts_path / "step-000009.tmp").write_bytes(b"half")
    with run.metrics_path.open("a") as file:
        file.write('{"step": 5, "rew')  # killed while writing
    assert [row["step"] for row in run.metrics()] == [1, 2, 3, 4]
    run.truncate(2)
    assert [row["step"] for row in run.metrics()] == [1, 2]
    assert [row["step"] for row in run.timings()] == [1, 2]
    assert run.rollout_steps() == [1, 2]
    assert [row["step"] for row in run.evals()] == [0, 2]
    assert run.summary() == {}
    assert sorted(path.name for path in run.rollouts_path.iterdir()) == [
        "step-000001.parquet", "step-000002.parquet",
    ]  # fmt: skip
    run.log_metrics(3, {"reward": 0.3})
    assert run.metrics_path.read_text().count("\n") == 3


def test_metrics_of_a_resumed_run_equal_byte_for_byte(tmp_path: Path) -> None:
    values = {1: 0.1, 2: 1 / 3, 3: 2e-17}
    straight, resumed = RunFolder.create(tmp_path / "a"), RunFolder.create(tmp_path / "b")
    for folder in (straight, resumed):
        for step, value in values.items():
            folder.log_metrics(step, {"reward": value, "none": None})
    resumed.truncate(1)
    for step in (2, 3):
        resumed.log_metrics(step, {"reward": values[step], "none": None})
    assert resumed.metrics_path.read_bytes() == straight.metrics_path.read_bytes()


def test_no_run_folder(tmp_path: Path) -> None:
    with pytest.raises(R1labError, match="no run folder"):
        RunFolder.open(tmp_path / "nowhere")
    with pytest.raises(R1labError, match="is no run folder"):
        RunFolder.open(tmp_path)


# -------------------------------------------------------------------------------- terminal


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain\ntext\t.", "plain\ntext\t."),
        ("\x1b[31mred\x1b]0;title\x07", "␛[31mred␛]0;title␇"),
        ("\x9b31m\x7f\r", "\ufffd31m␡␍"),
        ("a\u202eb\u2066c", "a\ufffdb\ufffdc"),
        ("\ud800", "\ufffd"),
        ("ünïcode 数", "ünïcode 数"),
    ],
)
def test_printable(text: str, expected: str) -> None:
    assert printable(text) == expected


def shown(run: RunFolder, **options: object) -> str:
    out = io.StringIO()
    console = Console(file=out, width=100, force_terminal=True, color_system="standard")
    show(str(run.path), console=console, **options)  # type: ignore[arg-type]
    return out.getvalue()


def test_show(run: RunFolder) -> None:
    run.write_rollouts(1, [group("old")])
    right = "work it out </think> <answer> 2 </answer>"
    run.write_rollouts(2, [group("wrong </think> <answer> 3 </answer>", right), group("x", "y")])
    text = shown(run, num=1)
    assert "step 2 of 2" in text
    assert "\x1b[2m<think>work it out </think>\x1b[0m" in text  # dimmed
    assert "+ score 1   accuracy 1" in text
    assert "x score 0   accuracy 0" in text
    assert "reason 1" in text
    assert text.index("score 1 ") < text.index("score 0 ")  # the best first
    assert "1 more groups" in text
    assert "old" in shown(run, step=1)
    assert "2 responses" in shown(run, problem="p0")


def test_show_tells_right_from_wrong_by_the_part_that_the_run_does(run: RunFolder) -> None:
    """A reward of one's own, whose score is not 1 for a right answer, and a fault beside it."""
    run.recipe_path.write_text("name: own\nrewards: [{reward: mine.py}, {reward: format}]\n")
    parts: tuple[dict[str, float], ...] = ({"mine": 1.0, "format": 0.0}, {"mine": 0.5}, {})
    outcomes = [
        Verdict(0.7, "a", parts[0]),
        Verdict(1.2, "b", parts[1]),
        ScoringFailure("memory", "64 MiB"),
    ]
    completions = tuple(completion(text) for text in ("x", "y", "z"))
    run.write_rollouts(1, [ScoredGroup(Rollout(problem(0), (1,), completions), tuple(outcomes))])
    text = shown(run, problem="p0")
    assert "+ score 0.7" in text and "x score 1.2" in text
    assert "mean score 0.95, without 1 that faulted" in text


def test_show_faults_and_markup(run: RunFolder) -> None:
    run.write_rollouts(1, [group("[bold]not markup[/bold] \x1b[2J", "z", fault=True)])
    text = shown(run, problem="p0")
    assert "[bold]not markup[/bold] ␛[2J" in text
    assert "\x1b[2J" not in text
    assert "! timeout: 5 s" in text


def test_show_says_what_is_missing(run: RunFolder) -> None:
    with pytest.raises(R1labError, match="has no rollouts yet"):
        shown(run)
    run.write_rollouts(1, [group("a")])
    with pytest.raises(R1labError, match="no rollouts of step 7"):
        shown(run, step=7)
    with pytest.raises(R1labError, match="asked no problem 'p9'"):
        shown(run, problem="p9")


# ---------------------------------------------------------------------------------- curves


def test_running_mean() -> None:
    assert running_mean([1.0, 2.0, 6.0], 3) == [1.5, 3.0, 4.0]
    assert running_mean([], 3) == []


def test_curves_of_a_whole_run_and_of_a_young_one(run: RunFolder) -> None:
    with pytest.raises(R1labError, match="neither metrics nor evaluations"):
        draw_curves(run.path)
    run.write_eval(0, evaluation(0, 0.2))
    assert draw_curves(run.path) == run.curves_path
    for step in range(1, 4):
        run.log_metrics(step, {
            "accuracy": 0.1 * step, "reward": 0.1, "format": 0.9, "length_right": None,
            "length_wrong": 9.0, "sync_kl": 1e-4, "zero_variance": 0.1, "truncated": 0.0,
        })  # fmt: skip
    run.write_eval(3, evaluation(3, 0.6))
    picture = draw_curves(run.path)
    assert picture.read_bytes().startswith(b"\x89PNG")
    first = picture.read_bytes()
    assert draw_curves(run).read_bytes() == first  # the same run, the same picture


def test_eval_json_has_no_nan(run: RunFolder) -> None:
    path = run.write_eval(1, {"step": 1, "x": math.nan})
    assert json.loads(path.read_text(), parse_constant=pytest.fail) == {"step": 1, "x": None}
