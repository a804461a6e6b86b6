"""What a run records of a step is what the step trained on: advantages and the optimiser's numbers.

A real run on a small model, with the batches of its updates looked at as they pass.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch

from r1lab.config.recipe import TrainRecipe
from r1lab.grpo.policy import Policy
from r1lab.grpo.trainer import train
from r1lab.run_folder import RunFolder
from r1lab.types import Batch

# Half of the questions are always right; on the others the score is 0, 0.1, ... by the tokens.
TASK = """
from r1lab.types import Problem

def load(split):
    start = 0 if split == "train" else 500
    numbers = range(start, start + 200)
    return [Problem(str(i), f"w{i % 90} w{(i + 1) % 90}", "", "none") for i in numbers]

def reward(problem, completion):
    if int(problem.id) % 2:
        return 1.0
    return (sum(completion.token_ids) % 7) / 10 * (sum(completion.token_ids) % 2)
"""


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    model = tiny.LlamaForCausalLM(tiny.llama_config(hidden_size=32, num_hidden_layers=1))
    return tiny.save(model, tmp_path_factory.mktemp("base"))


@pytest.fixture
def packed(monkeypatch: pytest.MonkeyPatch) -> list[Batch]:
    """The batch of each step, as the policy gets it."""
    batches: list[Batch] = []
    with_old_and_ref_logprobs = Policy.with_old_and_ref_logprobs

    def spy(self: Policy, batch: Batch, algorithm: Any) -> Batch:
        batches.append(batch)
        return with_old_and_ref_logprobs(self, batch, algorithm)

    monkeypatch.setattr(Policy, "with_old_and_ref_logprobs", spy)
    return batches


def run(folder: Path, base: Path, algorithm: Mapping[str, Any], **changes: Any) -> RunFolder:
    task = folder / "task.py"
    task.write_text(TASK)
    values: dict[str, Any] = {
        "name": "record", "steps": 4, "output": str(folder), "template": "plain",
        "model": {"path": str(base), "dtype": "float32"},
        "problems": {"sources": [{"source": f"{task}:load"}]},
        "rewards": [{"reward": f"{task}:reward", "isolate": False}],
        "sampling": {"engine": "transformers", "questions_per_step": 4, "group_size": 4,
                     "max_tokens": 4},
        "optimizer": {"learning_rate": 1e-3, "warmup_steps": 10},
        "algorithm": dict(algorithm),
        "evaluation": {"num_problems": 1, "num_samples": 1, "greedy": False},
    }  # fmt: skip
    recipe = TrainRecipe.model_validate({**values, **changes})
    return RunFolder.open(train(recipe).folder)


def trained(batch: Batch) -> Counter[tuple[tuple[int, ...], float]]:
    """(completion tokens, advantage) of the sequences of a batch."""
    rows = torch.split(batch.token_ids, batch.lengths.tolist())
    return Counter(
        (tuple(row[start:].tolist()), advantage)
        for row, start, advantage in zip(
            rows, batch.prompt_lens.tolist(), batch.advantages.tolist(), strict=True
        )
    )


def recorded(rows: list[dict[str, Any]]) -> Counter[tuple[tuple[int, ...], float]]:
    """The same of a step's rows; as in the batch in float32, and without zeros."""
    return Counter(
        (tuple(row["token_ids"]), float(torch.tensor(row["advantage"])))
        for row in rows
        if row["advantage"]
    )


@pytest.mark.parametrize("advantage", ["batch_std", "reinforce_pp"])
def test_every_trained_advantage_is_in_the_record_of_its_step(
    advantage: str, base: Path, packed: list[Batch], tmp_path: Path
) -> None:
    folder = run(tmp_path, base, {"dynamic_sampling": True, "advantage": advantage})
    steps = [folder.rollouts(step) for step in folder.rollout_steps()]
    assert [recorded(rows) for rows in steps] == [trained(batch) for batch in packed]
    metrics = folder.metrics()
    assert sum(row["groups_waiting"] for row in metrics), "no group was carried over; other seed"
    sampled = [[row for row in rows if not row["carried_over"]] for rows in steps]
    assert [len(rows) for rows in sampled] == [row["responses"] for row in metrics]
    # A group is trained on once, and a carried-over one has been recorded where it was sampled.
    groups = Counter(
        row["problem_id"] for rows in steps for row in rows if row["advantage"] is not None
    )
    assert set(groups.values()) == {4}
    for before, rows in itertools.pairwise(steps):
        kept = {row["problem_id"] for row in rows if row["carried_over"]}
        earlier = [row for row in before if row["problem_id"] in kept]
        assert len(earlier) == 4 * len(kept)
        assert all(row["advantage"] is None for row in earlier)


def test_what_the_loss_leaves_out_has_no_advantage(
    base: Path, packed: list[Batch], tmp_path: Path
) -> None:
    folder = run(tmp_path, base, {"overlong_filter": True}, steps=2)
    steps = [folder.rollouts(step) for step in folder.rollout_steps()]
    assert [recorded(rows) for rows in steps] == [trained(batch) for batch in packed]
    cut_off = [row["advantage"] for rows in steps for row in rows if row["finish_reason"] != "stop"]
    assert cut_off and set(cut_off) == {None}


def test_the_optimisers_numbers_are_of_all_updates(
    base: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    updates: list[dict[str, float]] = []
    optimizer_step = Policy.optimizer_step

    def spy(self: Policy, **options: Any) -> dict[str, float]:
        updates.append(optimizer_step(self, **options))
        return updates[-1]

    monkeypatch.setattr(Policy, "optimizer_step", spy)
    folder = run(tmp_path, base, {"num_minibatches": 2, "num_epochs": 2}, steps=2)
    assert len(updates) == 8 and all(update["grad_norm"] > 0 for update in updates)
    for of_step, row in zip((updates[:4], updates[4:]), folder.metrics(), strict=True):
        for name in ("grad_norm", "learning_rate"):
            values = [update[name] for update in of_step]
            assert len(set(values)) > 1
            assert row[name] == pytest.approx(sum(values) / 4, rel=1e-12)
