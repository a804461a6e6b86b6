"""docs/r1-pipeline.md says what docs/r1-pipeline.json holds, and how the script gathers that."""

import json
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    import write_pipeline

    return write_pipeline


def test_the_committed_page_follows_from_the_committed_record(script):
    record = json.loads((ROOT / "docs/r1-pipeline.json").read_text())
    page = (ROOT / "docs/r1-pipeline.md").read_text()
    assert script.tables_of(record) in page
    assert [stage["name"] for stage in record["stages"]] == ["zero", "dev1", "dev2", "dev3", "r1"]
    for student in record["students"]:
        assert 0 <= student["distilled"] <= 1 and 0 <= student["rl_only"] <= 1


def seed_folder(folder: Path, gain: float) -> Path:
    for place, name in enumerate(("base", "zero", "dev1", "dev2", "dev3", "r1")):
        suite = {"pass_at_1": 0.5, "reward": 0.4}
        figures = {
            "pass_at_1": 0.1 * place + gain, "cons_at_k": 0.9, "language": None, "format": 1.0,
            "length": 30.0, "suites": {"boxes": suite, "everyday": suite},
        }  # fmt: skip
        if name == "dev3":
            continue
        (folder / name).mkdir(parents=True)
        (folder / name / "evaluation.json").write_text(json.dumps(figures))
    return folder


def test_a_pipeline_without_all_its_stages_is_refused_by_name(script, tmp_path):
    with pytest.raises(SystemExit, match="dev3 has no evaluation"):
        script.read_seed(seed_folder(tmp_path / "a", 0.0))


def test_means_are_over_seeds_and_a_figure_that_one_lacks_has_none(script, tmp_path, monkeypatch):
    seeds = []
    for name, gain in (("a", 0.0), ("b", 0.2)):
        folder = seed_folder(tmp_path / name, gain)
        found = json.loads((folder / "dev2/evaluation.json").read_text())
        (folder / "dev3").mkdir()
        (folder / "dev3/evaluation.json").write_text(json.dumps(found | {"language": 0.5}))
        seeds.append(script.read_seed(folder))
    monkeypatch.setattr(script, "STEPS", (("Dev2 less Dev1", "pass_at_1", "dev2", "dev1"),))
    record = script.record_of(seeds)
    zero = record["stages"][0]
    assert zero["accuracy"] == pytest.approx(0.2)
    assert zero["accuracy_by_seed"] == pytest.approx([0.1, 0.3])
    assert zero["language"] is None and record["stages"][3]["language"] == 0.5
    assert record["differences"][0]["value"] == pytest.approx(0.1)
    assert record["students"] == []
    assert "| zero | 0.200 [" in script.tables_of(record)
