"""What a recipe names, by its contents: what counts as changed, and what as only moved."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest

from r1lab import hashing as digests
from r1lab.config.diff import check_changes
from r1lab.config.recipe import (
    ModelSettings,
    ProblemSettings,
    RewardSettings,
    SourceSettings,
    TrainRecipe,
)
from r1lab.config.stages import RowsSettings, SftRecipe
from r1lab.hashing import changed_inputs, input_digests
from r1lab.types import RecipeError

FILES = {
    "mine.py": "import json\nfrom helper import a\nimport pack.deep\n\ndef reward(): import late\n",
    "helper.py": "from pack import sibling\n",
    "late.py": "",
    "json.py": "",  # named like the standard library's
    "pack/__init__.py": "",
    "pack/deep.py": "from . import sibling\nfrom .other import b\n",
    "pack/sibling.py": "",
    "pack/other.py": "",
    "unrelated.py": "",
}


@pytest.fixture
def code(tmp_path: Path) -> Path:
    for name, text in FILES.items():
        path = tmp_path / "code" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path / "code"


def recipe(reward: str = "format", base: str = "nano", source: str = "boxes") -> TrainRecipe:
    return TrainRecipe(
        name="x",
        model=ModelSettings(path=base),
        problems=ProblemSettings(sources=(SourceSettings(source=source),)),
        rewards=(RewardSettings(reward=reward), RewardSettings(reward="problem")),
    )


@pytest.mark.parametrize("name", sorted(FILES))
def test_code_counts_with_the_files_beside_it_that_it_imports(code, name):
    mine = recipe(f"{code / 'mine.py'}:reward")
    before = input_digests(mine)
    (code / name).write_text(FILES[name] + "# changed\n")
    changed = changed_inputs(before, input_digests(mine))
    expected = [] if name == "unrelated.py" else [f"rewards.0.reward: {name} has changed"]
    assert changed == expected


def test_a_verifier_that_problems_name_counts(code):
    before = input_digests(recipe(), {str(code / "mine.py"), "math"})
    assert "helper.py" in before["problems.verifier"]
    (code / "helper.py").unlink()
    now = input_digests(recipe(), {str(code / "mine.py"), "math"})
    (said,) = changed_inputs(before, now)
    assert "helper.py" in said


def test_what_ships_is_no_input_but_its_base():
    assert set(input_digests(recipe())) == {"model.path"}


def test_a_path_to_the_same_contents_is_no_change(code, tmp_path):
    (tmp_path / "rows.jsonl").write_text("{}\n")
    before = recipe(str(code / "mine.py"), source=str(tmp_path / "rows.jsonl"))
    then = input_digests(before)
    code.rename(tmp_path / "moved")
    (tmp_path / "moved/rows.jsonl").write_text("{}\n")
    now = recipe(str(tmp_path / "moved/mine.py"), source=str(tmp_path / "moved/rows.jsonl"))
    inputs = (then, input_digests(now))
    assert check_changes(before.model_dump(mode="json"), now, force=False, inputs=inputs) == []
    other = recipe(f"{tmp_path / 'moved/mine.py'}:other", source=now.problems.sources[0].source)
    with pytest.raises(RecipeError, match=r"rewards\.0\.reward"):
        check_changes(before.model_dump(mode="json"), other, force=False, inputs=inputs)


def test_a_change_is_refused_and_forced(code):
    mine = recipe(str(code / "mine.py"))
    before = input_digests(mine)
    (code / "helper.py").write_text("a = 2\n")
    inputs = (before, input_digests(mine))
    dumped = mine.model_dump(mode="json")
    with pytest.raises(RecipeError, match=r"helper\.py"):
        check_changes(dumped, mine, force=False, inputs=inputs)
    assert any(
        "helper.py" in said for said in check_changes(dumped, mine, force=True, inputs=inputs)
    )


def test_checkpoints_without_digests_and_with_relative_paths_are_resumed(tmp_path):
    now = recipe(base=str(tmp_path / "models/base"))
    before = recipe(base="models/base").model_dump(mode="json")
    now_inputs = {"model.path": {"config.json": "1"}}
    assert check_changes(before, now, force=False, inputs=({}, now_inputs)) == []
    with pytest.raises(RecipeError, match=r"model\.path"):
        other = recipe(base="models/other").model_dump(mode="json")
        check_changes(other, now, force=False, inputs=({}, now_inputs))


def _safetensors(path: Path, values: list[float], name: str = "w") -> None:
    data = struct.pack(f"{len(values)}f", *values)
    header = json.dumps({name: {"dtype": "F32", "shape": [len(values)],
                                "data_offsets": [0, len(data)]}}).encode()  # fmt: skip
    path.write_bytes(struct.pack("<Q", len(header)) + header + data)


def test_a_large_base_counts_by_headers_sizes_and_revision(tmp_path, monkeypatch):
    monkeypatch.setattr(digests, "_WHOLE", 64)
    monkeypatch.setattr(digests, "_ENDS", 16)
    base = tmp_path / "snapshots/first"
    base.mkdir(parents=True)
    (base / "config.json").write_text("{}")
    _safetensors(base / "model.safetensors", [1.0] * 100)
    mine = recipe(base=str(base))
    before = input_digests(mine)
    _safetensors(base / "model.safetensors", [2.0] * 100)
    assert changed_inputs(before, input_digests(mine)) == []  # said in the docs: not read whole
    _safetensors(base / "model.safetensors", [1.0] * 100, "v")
    assert len(changed_inputs(before, input_digests(mine))) == 1
    _safetensors(base / "model.safetensors", [1.0] * 101)
    assert len(changed_inputs(before, input_digests(mine))) == 1
    _safetensors(base / "model.safetensors", [1.0] * 100)
    second = base.rename(base.with_name("second"))
    (said,) = changed_inputs(before, input_digests(recipe(base=str(second))))
    assert "revision" in said


def test_a_stage_is_not_resumed_on_other_rows(tmp_path):
    from r1lab.stages.supervised import open_stage

    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "a", "completion": "b"}\n')
    stage = SftRecipe(
        name="x", output=str(tmp_path / "stage"), rows=(RowsSettings(path=str(rows)),)
    )
    open_stage(stage)
    open_stage(stage)
    rows.write_text('{"prompt": "a", "completion": "c"}\n')
    with pytest.raises(RecipeError, match=r"rows\.jsonl"):
        open_stage(stage)


@pytest.mark.parametrize(
    ("values", "kept"),
    [
        ({"temperature": 0.9, "top_p": 0.6}, {"do_sample": True, "temperature": 0.9, "top_p": 0.6}),
        ({"do_sample": False, "temperature": 0.7}, {"do_sample": True, "temperature": 0.7}),
        ({"top_k": 20}, {"do_sample": True, "top_k": 20}),
        ({"min_p": 0.1}, {"do_sample": True, "min_p": 0.1}),
        ({"typical_p": 0.9}, {"do_sample": True, "typical_p": 0.9}),
        ({"temperature": 0.0}, {}),  # greedy decoding, and no sampling
        ({"num_beams": 1, "early_stopping": True, "length_penalty": 0.5}, {"num_beams": 1}),
        ({"pad_token_id": -1}, {}),
        ({"use_cache": False, "cache_implementation": "static"}, {"use_cache": False}),
        ({"output_scores": True}, {}),
        ({"do_sample": True, "temperature": 0.6}, {"do_sample": True, "temperature": 0.6}),
    ],
)
def test_generation_settings_that_transformers_refuses_are_put_right(values, kept, tmp_path):
    from transformers import GenerationConfig

    from r1lab.model.files import make_saveable

    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": 2, **values}))
    config = GenerationConfig.from_pretrained(tmp_path)
    make_saveable(config)
    config.save_pretrained(tmp_path / "saved")
    saved = json.loads((tmp_path / "saved/generation_config.json").read_text())
    saved.pop("transformers_version")
    assert saved == {"eos_token_id": 2, **kept}
