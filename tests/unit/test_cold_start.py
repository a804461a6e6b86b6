"""scripts/cold_start.py: its examples are of the train split, and its loss is on answers alone."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import cold_start
import pytest
import tiny
import torch

from r1lab.config.reading import load_recipe
from r1lab.problems.registry import load_mixture
from r1lab.rollout.source import encode_prompt

RECIPE = """
name: cold
template: plain
problems:
  sources: [{source: task.py, options: {kind: a}}, {source: task.py, options: {kind: b}}]
"""
TASK = """
from r1lab.types import Problem

def load(split, *, kind):
    first = 0 if split == "train" else 50
    words = {"a": "w100", "b": "w101"}
    return [
        Problem(f"{split}-{kind}-{i}", f"w{first + i} w3", words[kind], "boxes")
        for i in range(40)
    ]
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    (tmp_path / "task.py").write_text(TASK)
    (tmp_path / "cold.yaml").write_text(RECIPE)
    return tmp_path / "cold.yaml"


def test_examples_are_of_the_train_split_and_of_the_sources_named(recipe: Path) -> None:
    loaded = load_recipe(recipe)
    both = cold_start.examples(loaded, 40, None)
    assert {problem.id.rpartition("-")[0] for problem in both} == {"train-a", "train-b"}
    some = cold_start.examples(loaded, 40, [1])
    assert {problem.answer for problem in some} == {"w101"}
    mixture = load_mixture(loaded.problems, "train")
    assert both[:5] == [mixture[cold_start.FIRST + i] for i in range(5)]


def test_the_loss_is_on_the_answer_and_the_end_alone(recipe: Path) -> None:
    loaded, tokenizer = load_recipe(recipe), tiny.tokenizer()
    (problem,) = cold_start.examples(loaded, 1, [0])
    row, given = cold_start.row_of(problem, loaded, tokenizer)
    assert tuple(row[:given]) == encode_prompt(tokenizer, f"{problem.question}\n")
    assert row[given:] == [*tokenizer("w100")["input_ids"], tokenizer.eos_token_id]
    model = tiny.LlamaForCausalLM(tiny.llama_config(hidden_size=32, num_hidden_layers=1))
    logits = model(input_ids=torch.tensor([row])).logits[0].detach().log_softmax(-1)
    expected = -sum(float(logits[i - 1, row[i]]) for i in range(given, len(row)))
    short = (row[: given - 1] + row[given:], given - 1)  # padded beside the other
    losses = cold_start.train(model, [(row, given)], batch=1, rate=1e-9)
    assert losses == [pytest.approx(expected / (len(row) - given), rel=1e-5)]
    one = cold_start.train(model, [short], batch=1, rate=1e-9)
    both = cold_start.train(model, [(row, given), short], batch=2, rate=1e-9)
    assert both == [pytest.approx((losses[0] + one[0]) / 2, rel=1e-4)]


def test_the_command_leaves_a_base_that_answers(recipe: Path, tmp_path: Path, monkeypatch, capsys):
    base = tiny.save(
        tiny.LlamaForCausalLM(tiny.llama_config(hidden_size=64, num_hidden_layers=1)),
        tmp_path / "base",
    )
    arguments = [str(recipe), str(base), str(tmp_path / "cold"), "--num", "400", "--rate", "1e-2"]
    monkeypatch.setattr(sys, "argv", ["cold_start.py", *arguments, "--sources", "1"])
    cold_start.main()
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert figures["examples"] == 400 and figures["updates"] == 100
    assert figures["loss_last"] < 0.2 < figures["loss_first"]
    model = tiny.LlamaForCausalLM.from_pretrained(tmp_path / "cold")
    tokenizer = tiny.tokenizer()
    ids = torch.tensor([encode_prompt(tokenizer, "w77 w3\n")])  # not among the examples
    answer = model(input_ids=ids).logits[0, -1].argmax()
    assert tokenizer.decode(answer) == "w101"
    with pytest.raises(SystemExit, match="exists already"):
        cold_start.main()
