"""The shipped pipeline in its quick form, from the command line, from end to end.

About 30 processes, most of whose time goes into imports: `long`.
"""

import json
from pathlib import Path

import pytest

from r1lab.cli.app import main

pytestmark = pytest.mark.long
NANO = str(Path(__file__).resolve().parents[2] / "recipes/r1/nano.yaml")
STAGES = [
    "base", "zero", "chains", "dev1", "dev2", "samples", "dev3", "preferences", "rules", "r1",
    "answers", "student", "small", "distilled", "distilled_small", "on_policy", "rl_only",
    "rl_only_small",
]  # fmt: skip
NOT_EVALUATED = {"chains", "samples", "preferences", "rules", "answers"}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(where it was run, its folder), everything done once."""
    place = tmp_path_factory.mktemp("pipeline")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        assert main(["pipeline", NANO, "--quick"]) == 0
    return place, place / "runs/r1/nano-quick"


def said_of(made, capsys, *options):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(made[0])
        assert main(["pipeline", NANO, "--quick", *options]) == 0
    return capsys.readouterr().out


def test_every_stage_is_made_and_every_model_evaluated(made):
    place, folder = made
    shared = {"base", "student", "small"}
    for name in STAGES:
        where = place / f"runs/r1/{name}-quick" if name in shared else folder / name
        record = json.loads((where / "stage.json").read_text())
        assert record["sha256"] and record["questions_checked"] > 0, name
        evaluated = (folder / name / "evaluation.json").exists()  # also of shared stages
        assert evaluated == (name not in NOT_EVALUATED), name
    figures = json.loads((folder / "r1" / "evaluation.json").read_text())
    assert set(figures["suites"]) == {"boxes", "division", "derivations", "everyday"}
    assert 0 <= figures["pass_at_1"] <= 1 and "language" in figures


def test_what_is_done_is_not_done_again(made, capsys):
    said = said_of(made, capsys)
    assert "started" not in said
    assert [line.split()[1] for line in said.splitlines() if line.startswith("| ")][1:] == [
        name for name in STAGES if name not in NOT_EVALUATED
    ]


def test_a_model_says_what_it_was_made_from(made, capsys):
    _, folder = made
    assert main(["lineage", str(folder / "distilled" / "model")]) == 0
    said = capsys.readouterr().out
    for name in ("answers", "r1", "rules", "dev3", "samples", "dev2", "dev1", "zero", "base"):
        assert f"r1-nano-{name}" in said, name
    (sft,) = (line for line in said.splitlines() if "r1-nano-dev3 (sft)" in line)
    assert "boxes" in sft and "derivations" in sft  # what the pipeline measured of it


def test_a_stage_is_made_anew_with_all_that_take_anything_of_it(made, capsys):
    _, folder = made
    before = {name: (folder / name / "stage.json").stat().st_mtime_ns for name in ("r1", "answers")}
    said = said_of(made, capsys, "--from", "on_policy")
    assert "on_policy: it was to be run again; what it made before lies in" in said
    assert [line for line in said.splitlines() if line.endswith("started")] == [
        "on_policy: started", "on_policy, evaluation: started",
    ]  # fmt: skip
    assert (folder / "on_policy.old-1" / "stage.json").exists()
    for name, changed in before.items():
        assert (folder / name / "stage.json").stat().st_mtime_ns == changed
