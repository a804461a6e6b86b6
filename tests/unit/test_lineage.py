"""What an artefact was made from: records, digests, and the tree, which prints without files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from r1lab.cli.app import main
from r1lab.config.reading import dump_resolved
from r1lab.config.recipe import ProblemSettings, SourceSettings, TrainRecipe
from r1lab.hashing import artefact_sha256
from r1lab.lineage import (
    Figure,
    figures_of,
    lineage_tree,
    read_lineage,
    tree_lines,
    write_lineage,
)
from r1lab.model.load import resolve_folder
from r1lab.run_folder import RunFolder
from r1lab.types import R1labError

RECIPE = TrainRecipe(
    name="zero", steps=3, problems=ProblemSettings(sources=(SourceSettings(source="boxes"),))
)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("R1LAB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def model(folder: Path, weights: bytes = b"weights") -> Path:
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(weights)
    (folder / "config.json").write_text("{}")
    (folder / "tokenizer.json").write_text("{}")
    return folder


@pytest.fixture
def chain(tmp_path: Path) -> Path:
    """nano -> zero -> chains.parquet -> dev1, which was made from nano as well; dev1's folder."""
    zero = model(tmp_path / "work/zero", b"zero")
    write_lineage(
        zero, stage="rl", parents=["nano"], recipe=RECIPE, template="compact",
        figures=[Figure("held-out", 0.9, 0.87, 0.93)],
    )  # fmt: skip
    data = tmp_path / "work/chains.parquet"
    data.write_bytes(b"rows")
    write_lineage(data, stage="cold start", parents=[zero])
    dev1 = model(tmp_path / "work/dev1", b"dev1")
    write_lineage(dev1, stage="sft", parents=["nano", data], recipe={"rate": 1e-3}, name="Dev1")
    return dev1


def states(path: Path) -> dict[str, str]:
    found: dict[str, str] = {}

    def visit(node: Any) -> None:
        found[node.record.name] = node.state
        for parent in node.parents:
            visit(parent)

    visit(lineage_tree(path))
    return found


def test_a_record_says_what_a_run_folder_says(chain: Path) -> None:
    zero = chain.parent / "zero"
    record = read_lineage(zero)
    assert record is not None
    assert (record.name, record.kind, record.stage) == ("zero", "model", "rl")
    assert record.recipe == RECIPE.model_dump(mode="json")
    assert record.versions.keys() >= {"r1lab", "torch", "numpy"}
    assert record.sha256 == artefact_sha256(zero)
    (base,) = record.parents
    assert (base.path, base.sha256) == ("nano", artefact_sha256(resolve_folder("nano")))
    assert base.lineage is not None and base.lineage.stage == "pre-training"
    data = read_lineage(chain.parent / "chains.parquet")
    assert data is not None and data.kind == "dataset"
    assert (chain.parent / "chains.parquet.lineage.json").is_file()
    assert data.parents[0].path == "zero"
    # What a parent knew travels with its children, its recipe by its digest alone.
    inner = data.parents[0].lineage
    assert inner is not None and inner.recipe is None
    assert inner.recipe_sha256 == record.recipe_sha256 is not None


def test_the_tree(chain: Path) -> None:
    lines = tree_lines(lineage_tree(chain))
    assert [line.split("  ")[0] for line in lines[:3]] == [
        "Dev1 (sft)", "├── nano (pre-training)", "└── chains.parquet (cold start)",
    ]  # fmt: skip
    assert lines[3].startswith("    └── zero (rl)  held-out 0.900 [0.870, 0.930]  ")
    assert lines[3].endswith(artefact_sha256(chain.parent / "zero")[:12])
    assert lines[4].startswith("        └── nano (pre-training)")
    assert "boxes 0.293" in lines[4]
    assert set(states(chain).values()) == {"ok"}


def test_what_changed_and_what_is_gone(chain: Path) -> None:
    before = tree_lines(lineage_tree(chain))
    (chain.parent / "zero/model.safetensors").write_bytes(b"other")
    assert states(chain)["zero"] == "changed"
    assert states(chain)["chains.parquet"] == "ok"
    changed = tree_lines(lineage_tree(chain))
    assert changed[3] == f"{before[3]}  changed since"  # of then: stage, figures and digest
    shutil.rmtree(chain.parent / "zero")
    (chain.parent / "chains.parquet").unlink()
    (chain.parent / "chains.parquet.lineage.json").unlink()
    assert states(chain) == {"Dev1": "ok", "nano": "ok", "chains.parquet": "gone", "zero": "gone"}
    gone = tree_lines(lineage_tree(chain))
    assert gone[2:4] == [f"{before[2]}  gone", f"{before[3]}  gone"]
    assert gone[4] == before[4]


def test_the_whole_may_move(chain: Path, tmp_path: Path) -> None:
    chain.parent.rename(tmp_path / "elsewhere")
    assert set(states(tmp_path / "elsewhere/dev1").values()) == {"ok"}


def test_the_digest_is_that_of_the_model_alone(tmp_path: Path, cache: Path) -> None:
    one, two = model(tmp_path / "one"), model(tmp_path / "two")
    digest = artefact_sha256(one)
    assert digest == artefact_sha256(two)
    (one / "README.md").write_text("a card")
    write_lineage(one, stage="sft")
    assert artefact_sha256(one) == digest
    for file in ("config.json", "tokenizer.json", "model.safetensors"):
        old = (one / file).read_bytes()
        (one / file).write_bytes(old + b" ")
        assert artefact_sha256(one) != digest
        (one / file).write_bytes(old)
    assert artefact_sha256(one) == digest
    assert str(one / "config.json") in json.loads((cache / "sha256.json").read_text())
    (cache / "sha256.json").write_text("torn")
    assert artefact_sha256(one) == digest


def test_a_run_is_described_by_its_own_files(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path / "mine")
    for step in (3, 6):
        about = {"value": step / 10, "low": step / 10 - 0.1, "high": step / 10 + 0.1}
        run.write_eval(step, {"suite": None, "overall": {"pass_at_1": about}})
    shutil.copytree(resolve_folder("nano"), run.checkpoints_path / "step-6/model")
    text = dump_resolved(RECIPE, versions={"r1lab": "9.9"}, commit="abc")
    run.recipe_path.write_text(text.replace("name: zero", "name: mine"))
    for path in (run.path, run.checkpoints_path / "step-6", run.checkpoints_path / "step-6/model"):
        tree = lineage_tree(path)
        assert tree.record.name == "mine step-6" and tree.record.commit == "abc"
        assert tree.record.versions["r1lab"] == "9.9"
        (figure,) = tree.record.figures
        assert figure == Figure("held-out", 0.6, 0.5, 0.7)
        assert [(p.record.name, p.state) for p in tree.parents] == [("nano", "unknown")]


def test_the_command(chain: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["lineage", str(chain)]) == 0
    assert capsys.readouterr().out.splitlines() == tree_lines(lineage_tree(chain))
    assert main(["lineage", str(chain), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["parents"][1]["parents"][0]["name"] == "zero"
    assert main(["lineage", "nano"]) == 0
    assert capsys.readouterr().out.startswith("nano (pre-training)  arithmetic 0.209")
    assert main(["lineage", str(tmp_path / "none")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    (chain / "lineage.json").write_text('{"name": 3}')
    assert main(["lineage", str(chain)]) == 2
    assert "no lineage record" in capsys.readouterr().err


def test_a_parent_has_to_be_there(tmp_path: Path) -> None:
    with pytest.raises(R1labError, match="zero"):
        write_lineage(model(tmp_path / "m"), stage="sft", parents=[tmp_path / "zero"])
    record = write_lineage(tmp_path / "m", stage="sft", parents=["owner/base"])
    assert record.parents[0].sha256 is None
    assert tree_lines(lineage_tree(tmp_path / "m"))[1] == "└── owner/base (base)"


def test_what_a_pipeline_measured_of_a_stage_stands_in_the_tree(tmp_path: Path) -> None:
    folder = model(tmp_path / "dev1/model")
    write_lineage(folder, stage="sft", parents=[], recipe=RECIPE, template="compact")
    found = {"suite": "boxes", "overall": {"pass_at_1": {"value": 0.5, "low": 0.4, "high": 0.6}}}
    (tmp_path / "dev1/suites").mkdir()
    (tmp_path / "dev1/suites/boxes-1.json").write_text(json.dumps(found))
    assert figures_of(folder) == ()  # nobody says that these are a stage's
    (tmp_path / "dev1/stage.json").write_text("{}")
    assert figures_of(folder) == (Figure("boxes", 0.5, 0.4, 0.6),)
