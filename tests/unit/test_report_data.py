"""What the report is made from: panels, facts and packed transcripts, without a browser."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
import shutil
import zlib
from pathlib import Path
from typing import Any

import pytest
from runs import HOSTILE, make_run

from r1lab.cli.app import main
from r1lab.report.facts import accuracy_part, cost_of, facts_of, figure_of, stopped_by
from r1lab.report.html import labels_of, write_report
from r1lab.report.panels import panels_of, reward_parts
from r1lab.report.transcripts import (
    CUT_OFF,
    FAULT,
    GREEDY,
    HELD_OUT,
    NO_ANSWER,
    RIGHT,
    SUITE,
    TRAINING,
    WRONG,
    Unit,
    pack,
    thin,
)  # fmt: skip
from r1lab.run_folder import RunFolder
from r1lab.types import R1labError

ASSETS = Path(__file__).resolve().parents[2] / "r1lab" / "report" / "assets"


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> RunFolder:
    return make_run(tmp_path_factory.mktemp("made") / "run", hostile=True)


def unpacked(page: str) -> dict[str, Any]:
    """The data blocks of a page, by name."""
    blocks = re.findall(
        r'<script type="application/octet-stream;base64" id="([^"]+)">([^<]*)</script>', page
    )
    return {name: json.loads(zlib.decompress(base64.b64decode(packed))) for name, packed in blocks}


@pytest.fixture(scope="module")
def page(run: RunFolder) -> str:
    return write_report([run]).read_text()


# ----------------------------------------------------------------------------------- panels


def test_panels_hold_what_the_files_say(run: RunFolder) -> None:
    metrics, timings, evals = run.metrics(), run.timings(), run.evals()
    panels = {p.id: p for p in panels_of(metrics, timings, evals, accuracy="accuracy")}
    pass_at_1, cons, greedy, training, graded = panels["accuracy"].series
    assert list(pass_at_1.x) == [0, 3, 6]
    assert pass_at_1.y == [row["overall"]["pass_at_1"]["value"] for row in evals]
    assert pass_at_1.low == [row["overall"]["pass_at_1"]["low"] for row in evals]
    assert (cons.label, list(greedy.x), greedy.line) == ("cons@4", [0], False)
    assert training.y == [row["accuracy"] for row in metrics] and not graded.x
    wrong = panels["length_training"].series[2]
    assert list(wrong.x) == [1, 2, 3, 4, 5]  # none was wrong in the last step
    assert panels["agreement"].log and panels["time"].stacked
    assert [series.label for series in panels["pass_at_k"].series] == ["step 0", "step 6"]
    assert list(panels["pass_at_k"].series[0].x) == [1, 4]
    extra = [panel.title for panel in panels.values() if panel.extra]
    assert extra == ["responses", "grad_norm", "learning_rate"]


def test_a_young_run_has_the_panels_it_can() -> None:
    assert panels_of([], [], [], accuracy="accuracy") == []
    metrics = [{"step": 1, "reward": 0.5, "entropy": None}]
    assert [p.id for p in panels_of(metrics, [], [], accuracy="accuracy")] == ["reward"]


def test_dynamic_sampling_has_a_panel_where_it_did_something() -> None:
    names = ("groups", "groups_thrown_away", "groups_waiting")
    full = [{"step": 1, **dict(zip(names, (8.0, 0.0, 0.0), strict=True))}]
    assert panels_of(full, [], [], accuracy="accuracy") == []
    refilled = [*full, {"step": 2, **dict(zip(names, (13.0, 4.0, 1.0), strict=True))}]
    (panel,) = panels_of(refilled, [], [], accuracy="accuracy")
    assert [list(series.y) for series in panel.series] == [[8, 13], [0, 4], [0, 1]]
    assert [series.label for series in panel.series] == ["sampled", "thrown away", "waiting"]


def test_a_reward_with_the_name_of_a_figure_is_found() -> None:
    evals = [{"overall": {}, "problems": [{"samples": [{"parts": {"length": 1.0, "mine": 0.0}}]}]}]
    metrics = [{"step": 1, "length": 20.0, "length_reward": 0.5, "mine": 0.25}]
    assert figure_of("length") == "length_reward"
    assert reward_parts(metrics, evals) == ["length", "mine"]


# ------------------------------------------------------------------------------------ facts


def test_cost() -> None:
    metrics = [{"length": 10.0, "responses": 50.0}, {"length": None, "responses": 50.0}]
    timings = [{"total": 1800.0}, {"total": 900.0}]
    evals = [{"overall": {"length": {"value": 5.0}, "num_samples": 20}, "greedy": None}]
    cost = cost_of(metrics, timings, evals, {"seconds_total": 3600.0}, price=2.0, watts=500.0)
    assert (cost.hours, cost.hours_training) == (1.0, 0.75)
    assert (cost.tokens_training, cost.tokens_held_out) == (500, 100)
    assert (cost.kilowatt_hours, cost.dollars) == (0.5, 2.0)
    young = cost_of(metrics, timings, [], {})
    assert (young.hours, young.dollars, young.kilowatt_hours) == (0.75, None, None)


@pytest.mark.parametrize(
    ("rewards", "expected"),
    [
        ("[{reward: format}, {reward: problem}]", "accuracy"),
        ("[{reward: my/rewards.py}]", "rewards"),
        ("[{reward: my/rewards.py:graded}]", "graded"),
        ("[{reward: package.module:reward}]", "module"),
        ("[{reward: boxes}]", "boxes"),
    ],
)
def test_what_tells_right_from_wrong_before_the_first_evaluation(
    rewards: str, expected: str, tmp_path: Path
) -> None:
    (tmp_path / "recipe.yaml").write_text(f"rewards: {rewards}\n")
    assert accuracy_part(RunFolder(tmp_path)) == expected
    assert accuracy_part(RunFolder(tmp_path), [{"accuracy": "mine"}]) == "mine"


def test_facts(run: RunFolder) -> None:
    (run.eval_path / "suite.json").write_text('{"overall": {"num_problems": 3}, "problems": [1]}')
    (run.eval_path / "torn.json").write_text('{"overall"')
    (run.path / "faulty").mkdir()
    (run.path / "faulty" / "step-000002.pt").write_bytes(b"")
    facts = facts_of(run, price=None, watts=None)
    assert [row["file"] for row in facts["other_evals"]] == ["suite.json", "torn.json"]
    assert "problems" not in facts["other_evals"][0] and "unreadable" in facts["other_evals"][1]
    assert facts["faulty"] == ["step-000002.pt"]
    assert facts["trouble"] == [
        {"step": 2, "faults": 0.0, "skipped": 1.0}, {"step": 6, "faults": 1.0, "skipped": 0.0},
    ]  # fmt: skip
    assert facts["versions"][0].startswith("r1lab ")
    assert [event["event"] for event in facts["events"]] == ["prospects", "warning"]
    assert "points" not in facts["events"][0]
    assert facts["prospects"]["points"][0]["found"] == "all ended"
    assert facts["settings"]["sampling.group_size"] == "16"
    assert facts["settings"]["problems.sources.0.source"] == '"boxes"'
    assert all("problems" not in row for row in facts["evals"])


def test_why_a_run_stopped() -> None:
    stopped, fault = {"event": "stopped", "why": "SIGTERM"}, {"event": "fault", "text": "no disk"}
    assert stopped_by([]) is None and stopped_by([{"event": "started"}]) is None
    assert stopped_by([{"event": "started"}, stopped, {"event": "warning"}]) == "SIGTERM"
    assert stopped_by([stopped, {"event": "resumed"}]) is None
    assert stopped_by([{"event": "resumed"}, fault]) == "no disk"


def test_runs_of_one_name_are_told_apart(tmp_path: Path) -> None:
    folders = [RunFolder(tmp_path / name) for name in ("a", "b")]
    assert labels_of(folders, [{"name": "x"}, {"name": "y"}]) == ["x", "y"]
    assert labels_of(folders, [{"name": "x"}, {"name": "x"}]) == ["a", "b"]
    twice = [RunFolder(tmp_path / "a"), RunFolder(tmp_path / "c" / "a")]
    assert labels_of(twice, [{"name": "x"}, {"name": "x"}]) == ["a 1", "a 2"]


# ------------------------------------------------------------------------------ transcripts


def test_every_sample_is_packed_with_its_verdict(run: RunFolder, page: str) -> None:
    blocks = unpacked(page)
    index = blocks["index-0"]
    groups, samples = index["groups"], index["samples"]
    assert groups["step"] == sorted(groups["step"])
    assert sum(groups["size"]) == len(samples["flags"]) == 6 * 16 + 3 * 24 + 6
    start = 0
    for g, size in enumerate(groups["size"]):
        flags = samples["flags"][start : start + size]
        if groups["kind"][g] == TRAINING and groups["step"][g] == 6 and groups["place"][g] % 4 == 0:
            break
        start += size
    assert flags[:3] == [WRONG, FAULT | NO_ANSWER, WRONG | CUT_OFF | NO_ANSWER]
    question, gold, texts = blocks[f"chunk-0-{groups['chunk'][g]}"][groups["place"][g]]
    assert (question, gold) == ("<script>1</script> + 1 ?", "<em>2</em>")
    text, answer, reason, parts, fault, advantage, ended, prefix = texts[0]
    assert (text, answer, advantage, ended) == (HOSTILE, "<b>7</b>", 0.5, "stop")
    assert "another" in reason and parts == {"accuracy": 0.0, "format": 1.0} and fault is None
    assert index["prefixes"][prefix] == "<think>"
    assert texts[1][4] == "timeout: math: <u>5 s</u>"
    greedy = [flag for flag in samples["flags"] if flag & GREEDY]
    assert len(greedy) == 6 and all(flag & (RIGHT | WRONG) for flag in greedy)


def test_no_text_of_a_model_stands_in_the_page_as_it_is(page: str) -> None:
    assert HOSTILE[:20] not in page and "<em>2</em>" not in page


def test_the_samples_of_a_suite_stand_behind_those_of_the_run(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", steps=2, every=2)
    shutil.copy(run.eval_path / "step-000002.json", run.eval_path / "gsm8k-0123abcd.json")
    (run.eval_path / "torn.json").write_text("{")
    (run.eval_path / "odd.json").write_text("[1]")
    index = unpacked(write_report([run]).read_text())["index-0"]
    assert index["suites"] == ["gsm8k-0123abcd", "odd", "torn"]
    assert index["groups"]["kind"][-6:] == [SUITE] * 6 and index["groups"]["step"][-1] == 2


def test_too_many_samples_leave_out_whole_steps_evenly() -> None:
    units = [Unit(TRAINING, step, 100, 1000) for step in range(1, 10)]
    units += [Unit(HELD_OUT, step, 50, 500) for step in (0, 5, 9)]
    assert thin(units, 10_000, 10**9) == sorted(units, key=lambda unit: (unit.step, unit.kind))
    kept = thin(units, 700, 10**9)
    assert [unit.step for unit in kept if unit.kind == TRAINING] == [1, 3, 5, 7, 9]
    assert [unit.step for unit in kept if unit.kind == HELD_OUT] == [0, 9]
    assert len(thin(units, 10_000, 3000)) < len(units)
    assert thin(units, 0, 10**9) == [] and thin([], 10, 10) == []


def test_samples_can_be_left_out(run: RunFolder, tmp_path: Path) -> None:
    page = write_report([run], tmp_path / "small.html", max_samples=0).read_text()
    index = unpacked(page)["index-0"]
    assert index["groups"]["step"] == [] and len(index["left_out"]) == 9


def test_pack_keeps_any_text() -> None:
    odd = "\ud800</script>\u2028"
    text = zlib.decompress(base64.b64decode(pack([odd])))
    assert json.loads(text) == ["?</script>\u2028"]


# ------------------------------------------------------------------------------------- page


def test_the_page_asks_for_nothing_and_lets_only_its_own_scripts_run(page: str) -> None:
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', page)
    assert policy is not None and "default-src &#x27;none&#x27;" in policy[1]
    assert "unsafe" not in policy[1] and "http" not in policy[1]
    scripts = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    assert len(scripts) == 7
    for script in scripts:
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        assert digest in policy[1]
    assert not re.search(r'(?:src|href)="(?:https?:)?//', page)


def test_the_title_is_escaped(run: RunFolder, tmp_path: Path) -> None:
    for name in ("<img src=x>", "{style}{policy}"):
        folder = RunFolder.create(tmp_path / name)
        folder.log_metrics(1, {"reward": 0.5})
        page = write_report([folder]).read_text()
        assert f"<title>{html.escape(name)} · r1lab report</title>" in page


def test_what_was_vendored_is_what_it_says() -> None:
    about = json.loads((ASSETS / "uplot" / "vendored.json").read_text())
    for name, digest in about["sha256"].items():
        content = (ASSETS / "uplot" / name).read_bytes()
        assert hashlib.sha256(content).hexdigest() == digest, name
    assert about["version"] in (ASSETS / "uplot" / "uPlot.iife.min.js").read_text()[:100]


def test_the_command_says_what_is_wrong_in_one_line(run: RunFolder, tmp_path: Path, capsys) -> None:
    (tmp_path / "recipe.yaml").write_text("name: young\n")
    for arguments, said in (
        ([str(tmp_path / "nowhere")], "no run folder"),
        ([str(tmp_path)], "neither metrics nor evaluations"),
    ):
        assert main(["report", *arguments]) == 2
        error = capsys.readouterr().err
        assert said in error and error.count("\n") == 1
    for option in ("--price", "--watts", "--samples"):
        with pytest.raises(SystemExit):
            main(["report", str(run.path), option, "-1"])
        assert f"{option}: -1" in capsys.readouterr().err
    with pytest.raises(R1labError):
        write_report([tmp_path])
