"""What scripts/compare_commits.py calls equal; its runs of two commits take minutes."""

from __future__ import annotations

import json

import compare_commits
import pytest
import torch
from safetensors.torch import save_file

LINE = {"step": 1, "accuracy": 0.5, "length_right": None}


@pytest.fixture
def run(tmp_path):
    def make(name, line, weights):
        model = tmp_path / name / "checkpoints/step-1/model"
        model.mkdir(parents=True)
        save_file(weights, model / "model.safetensors")
        (tmp_path / name / "metrics.jsonl").write_text(json.dumps(line) + "\n")
        return tmp_path / name

    return make


def test_one_bit_of_a_tensor_its_dtype_and_its_name_count(run):
    weights = {"a": torch.ones(2, 2), "b": torch.zeros(3)}
    moved = torch.ones(2, 2)
    moved[1, 1] = torch.nextafter(moved[1, 1], torch.tensor(2.0))
    first = run("first", LINE, weights)
    assert compare_commits.weight_differences(first, run("same", LINE, weights)) == []
    for number, other in enumerate((
        weights | {"a": moved}, weights | {"a": torch.ones(4)},
        weights | {"b": torch.zeros(3, dtype=torch.int32)}, {"a": weights["a"]},
    )):  # fmt: skip
        second = run(f"other-{number}", LINE, other)
        assert len(compare_commits.weight_differences(first, second)) == 1


def test_metrics_are_compared_under_their_new_names(run):
    weights = {"a": torch.ones(1)}
    first = run("first", LINE, weights)
    second = run("second", {"step": 1, "reward/accuracy": 0.5, "length_right": None}, weights)
    names = {"accuracy": "reward/accuracy"}
    assert compare_commits.metric_differences(first, second, names) == []
    assert len(compare_commits.metric_differences(first, second, {})) == 2
    for number, line in enumerate((
        {"step": 1, "accuracy": 0.5000001, "length_right": None},
        {"step": 1, "accuracy": 0.5},
    )):  # fmt: skip
        other = run(f"other-{number}", line, weights)
        assert len(compare_commits.metric_differences(first, other, {})) == 1


def test_a_table_of_metrics_alone_or_with_keys_is_read(tmp_path):
    file, none = tmp_path / "renames.json", tmp_path / "no-checkout"
    file.write_text(json.dumps({"accuracy": "reward/accuracy"}))
    assert compare_commits.renames(str(file), none) == ({"accuracy": "reward/accuracy"}, {})
    file.write_text(json.dumps({"keys": {"max_lag": "max_staleness"}}))
    assert compare_commits.renames(str(file), none) == ({}, {"max_lag": "max_staleness"})
    assert compare_commits.renames(None, none) == ({}, {})
