"""Experiments: their figures worked by hand, records of real run folders, processes that go on."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from runs import make_run

from r1lab.cli.app import main
from r1lab.jobs import Task, check_failed, run_tasks
from r1lab.problems.registry import resolve
from r1lab.prompts import TEMPLATES
from r1lab.reproduce.campaign import Campaign
from r1lab.reproduce.draw import draw_experiment
from r1lab.reproduce.experiment import Criterion, experiment_names, load_experiment
from r1lab.reproduce.measure import FIGURES, outcome_of
from r1lab.reproduce.record import RunRecord, read_records, run_record
from r1lab.types import Completion, RecipeError, RunStopped


def record(seed: int = 0, end: float = 0.8, **more) -> RunRecord:
    """A made-up run of 20 steps, evaluated every 5."""
    held_out = {
        "pass_at_1": [(0, 0.2), (5, 0.5), (10, 0.7), (15, 0.79), (20, end)],
        "cons_at_k": [(0, 0.5), (5, 0.7), (10, 0.75), (15, 0.9), (20, 0.95)],
        "format": [(0, 0.6), (5, 1.0), (10, 1.0), (15, 1.0), (20, 1.0)],
        "length": [(0, 10.0), (20, 25.0)],
    }
    training = {"length": [(step, 10.0 + step) for step in range(1, 21)]}
    return RunRecord("zero", seed, 20, 100, 16, held_out, training, **more)


def figure(name: str, of: str, **more) -> float:
    criterion = Criterion(says="x", arm="zero", figure=name, of=of, **more)
    return FIGURES[name](record(), criterion)


@pytest.mark.parametrize(
    ("name", "of", "more", "expected"),
    [
        ("at", "pass_at_1", {}, 0.8),
        ("at", "pass_at_1", {"at": 0.5}, 0.7),
        ("change", "pass_at_1", {}, 0.6),
        ("growth", "length", {}, 2.5),
        ("best", "pass_at_1", {}, 4.0),
        ("kept", "format", {}, 1.0),
        ("gap", "cons_at_k", {"beside": "pass_at_1"}, 0.05),
        ("apart", "cons_at_k", {"beside": "pass_at_1", "at": 0.0}, 0.3),
        # Form has come .9 of .4 at step 4.5, accuracy .9 of .6 (.74) at step 10 + 5 * .04 / .09.
        ("lead", "format", {"beside": "pass_at_1"}, (10 + 5 * 0.04 / 0.09 - 4.5) / 20),
        ("mean", "train.length", {"at": 0.9, "to": 1.0}, 29.0),  # steps 18 to 20
        ("at", "train.length", {}, 28.0),  # the last five steps
        ("early", "train.length", {}, 14.0 / 11.0),
    ],
)
def test_figures_by_hand(name, of, more, expected):
    assert figure(name, of, **more) == pytest.approx(expected)


def test_a_suite_is_the_trained_model_less_its_base():
    one = record(suites={"boxes": {"1": 0.9}}, base_suites={"boxes": {"1": 0.3}})
    criterion = Criterion(says="x", arm="zero", figure="suite", of="boxes@1")
    assert FIGURES["suite"](one, criterion) == pytest.approx(0.6)
    with pytest.raises(Exception, match="pass@2 of boxes was not measured"):
        FIGURES["suite"](one, criterion.model_copy(update={"of": "boxes@2"}))


@pytest.mark.parametrize(
    ("ends", "verdict"),
    [
        ((0.80, 0.81, 0.82), "reproduced"),
        ((0.50, 0.70, 0.90), "reproduced in the mean"),  # the interval reaches below the threshold
        ((0.30, 0.31, 0.32), "not reproduced"),
        ((0.80,), "reproduced"),
    ],
)
def test_a_verdict_rests_on_the_interval_over_seeds(ends, verdict):
    experiment = load_experiment("accuracy")
    criteria = (
        Criterion(says="gained", arm="zero", figure="change", of="pass_at_1", at_least=0.4),
        Criterion(says="before", arm="zero", figure="at", of="pass_at_1", at=0.0),
    )
    experiment = experiment.model_copy(update={"criteria": criteria})
    records = {"zero": [record(seed, end) for seed, end in enumerate(ends)]}
    outcome = outcome_of(experiment, records)
    assert outcome.verdict == verdict and outcome.seeds == tuple(range(len(ends)))
    assert outcome.findings[1].met == "reported"
    assert (outcome.findings[0].low is None) == (len(ends) == 1)


def test_a_record_of_a_run_reads_back_and_is_drawn(tmp_path):
    run = make_run(tmp_path / "run", steps=6, every=3)
    made = run_record(run, arm="zero", seed=0)
    assert made.steps == 6
    assert [step for step, _ in made.curve("pass_at_1")] == [0, 3, 6]
    assert len(made.curve("train.checking")) == len(made.curve("train.length")) == 6
    plain = json.loads(json.dumps(made.as_dict()))
    assert RunRecord.from_dict(plain).as_dict() == plain
    picture = draw_experiment(
        load_experiment("accuracy"), {"zero": [made, made]}, tmp_path / "picture.png"
    )
    assert picture.read_bytes().startswith(b"\x89PNG")


# --- the campaign ------------------------------------------------------------------------------


def task(folder: Path, name: str, code: str, needs: tuple[Path, ...] = ()) -> Task:
    done = folder / name
    return Task(name, (sys.executable, "-c", code), done, folder / f"{name}.log", needs)


def touch(path: Path) -> str:
    return f"import pathlib; pathlib.Path({str(path)!r}).write_text('x')"


def test_tasks_run_in_their_order_and_failures_stop_only_what_needs_them(tmp_path):
    base = task(tmp_path, "base", touch(tmp_path / "base"))
    run = task(tmp_path, "run", f"assert open({str(tmp_path / 'base')!r})\n"
               + touch(tmp_path / "run"), (base.done,))  # fmt: skip
    broken = task(tmp_path, "broken", "raise SystemExit('no disk left')")
    after = task(tmp_path, "after", touch(tmp_path / "after"), (broken.done,))
    said: list[str] = []
    failed = run_tasks([run, broken, after, base], jobs=2, threads=1, say=said.append)
    assert {one.label for one in failed} == {"broken", "after"}
    assert run.is_done and any("no disk left" in line for line in said)
    with pytest.raises(RunStopped, match=r"2 of 4 .*broken"):
        check_failed(failed, 4)
    assert run_tasks([run, base], jobs=1, threads=1, say=said.append) == []


def test_tasks_bring_others_and_the_lowest_order_goes_first(tmp_path):
    def ordered(name: str, order: int) -> Task:
        done = tmp_path / name
        return Task(name, (sys.executable, "-c", touch(done)), done, tmp_path / "log", order=order)

    first, late, soon = ordered("first", 0), ordered("late", 9), ordered("soon", 1)
    said: list[str] = []
    failed = run_tasks(
        [late, first], jobs=1, threads=1, say=said.append,
        then=lambda done: [soon, first] if done is first else [],
    )  # fmt: skip
    assert failed == []
    assert [line.split(":")[0] for line in said if line.endswith("started")] == [
        "first", "soon", "late",
    ]  # fmt: skip


def test_an_interrupted_campaign_ends_its_processes(tmp_path):
    code = f"""
import sys
from r1lab.jobs import Task, run_tasks
from pathlib import Path
folder = Path({str(tmp_path)!r})
sleeper = "import time, os; open('started', 'w').write(str(os.getpid())); time.sleep(600)"
task = Task("sleeper", (sys.executable, "-c", sleeper), folder / "done", folder / "log")
run_tasks([task], jobs=1, threads=1, say=print)
"""
    driver = subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, stderr=subprocess.DEVNULL)
    started = tmp_path / "started"
    while not (started.exists() and started.read_text()):
        time.sleep(0.05)
    driver.send_signal(signal.SIGTERM)  # SIGINT is ignored by what a shell runs in the background
    assert driver.wait(60) != 0
    child = Path(f"/proc/{started.read_text()}")
    assert not child.exists() or "Z" in (child / "stat").read_text()


def test_shared_arms_are_run_once(tmp_path):
    names = experiment_names()
    assert names[0] == "accuracy" and len(names) == 9
    campaign = Campaign(tmp_path, [load_experiment(name) for name in names], range(2))
    tasks = campaign.tasks()
    assert len({one.done for one in tasks}) == len(tasks)
    assert sum(one.label == "zero, seed 0" for one in tasks) == 1
    places = {one.done: index for index, one in enumerate(tasks)}
    assert all(places[path] < places[one.done] for one in tasks for path in one.needs)


def test_the_command_names_the_nine_and_refuses_others(capsys, tmp_path):
    assert main(["reproduce", "--list"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 9
    assert main(["reproduce", "acuracy"]) == 2
    assert "did you mean 'accuracy'?" in capsys.readouterr().err
    assert main(["reproduce", "accuracy", "--dry-run", "--out", str(tmp_path)]) == 0
    assert "3 of 3 runs to do" in capsys.readouterr().out
    with pytest.raises(RecipeError):
        load_experiment("nothing")


# --- what the experiments need -----------------------------------------------------------------


def test_the_coin_falls_as_often_as_it_is_told_and_always_the_same():
    coin = resolve("coin", "reward", key="rewards.0")
    problem = load_mixture_of("boxes", "train")[0]
    responses = [Completion((n,), "x", "stop", 0) for n in range(400)]
    scores = [coin(problem, response, chance=0.25).score for response in responses]
    assert 60 < sum(scores) < 140
    assert scores == [coin(problem, response, chance=0.25).score for response in responses]
    with pytest.raises(ValueError, match="between 0 and 1"):
        coin(problem, responses[0], chance=2)


def load_mixture_of(source: str, split: str, **options):
    return resolve(source, "source", key="problems")(split, **options)


def test_shuffled_answers_are_the_neighbours_in_training_and_true_when_held_out():
    plain, shuffled = load_mixture_of("boxes", "train"), load_mixture_of("shuffled", "train")
    assert shuffled[4].question == plain[4].question and shuffled[4].answer == plain[5].answer
    assert shuffled[5].answer == plain[4].answer
    held_out, true = load_mixture_of("shuffled", "test")[3], load_mixture_of("boxes", "test")[3]
    assert (held_out.question, held_out.answer) == (true.question, true.answer)


def test_the_corpus_of_parities_is_right_and_keeps_its_share():
    corpus = resolve("r1lab.data.parity:documents", "source", key="corpus")(long=0.3)
    documents = [corpus[i] for i in range(500)]
    long = [one for one in documents if one.kind == "full"]
    assert 100 < len(long) < 200
    for one in documents[:50]:
        bits = one.prompt.split()[1]
        answer = str(bits.count("1") % 2)
        assert f"<answer> {answer} </answer>" in one.response
        if one.kind == "full":
            assert one.response.split()[0][-1] == answer
    assert TEMPLATES["compact"].prompt("x").startswith("User:")


def test_the_committed_verdicts_follow_from_the_committed_records():
    """docs/reproduction.json and docs/reproduction.md say what docs/reproduction/ holds."""
    docs = Path(__file__).resolve().parents[2] / "docs"
    known = read_records(docs / "reproduction" / "records.json")
    claims = json.loads((docs / "reproduction.json").read_text())["claims"]
    assert claims
    page = (docs / "reproduction.md").read_text()
    for claim in claims:
        experiment = load_experiment(claim["name"])
        campaign = Campaign(Path("nowhere"), [experiment], claim["seeds"], known=known)
        assert campaign.tasks() == []
        outcome = outcome_of(experiment, campaign.records(experiment))
        assert json.loads(json.dumps(outcome.as_dict())) == claim
        assert f"**{claim['verdict'].capitalize()}.**" in page
        assert (docs / "reproduction" / f"{claim['name']}.png").exists()


def test_runs_whose_records_were_kept_are_not_made_again(tmp_path, capsys):
    """But a run whose model an evaluation needs is."""
    kept = tmp_path / "records.json"
    kept.write_text(json.dumps({"records": {"zero/0": record().as_dict()}}))
    assert (
        main(["reproduce", "accuracy", "passk", "--seeds", "1", "--dry-run", "--out",
              str(tmp_path), "--records", str(kept)])
        == 0
    )  # fmt: skip
    assert "to do  zero, seed 0:" in capsys.readouterr().out
    assert (
        main(["reproduce", "accuracy", "format", "--seeds", "1", "--dry-run", "--out",
              str(tmp_path), "--records", str(kept)])
        == 0
    )  # fmt: skip
    assert "0 of 0 runs to do" in capsys.readouterr().out
    kept.write_text("{}")
    assert main(["reproduce", "accuracy", "--records", str(kept), "--dry-run"]) == 2
    assert "not a file of run records" in capsys.readouterr().err
