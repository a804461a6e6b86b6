"""Runs whose sampling is ahead of training, in one process."""

from __future__ import annotations

from pathlib import Path

import pytest

from r1lab.config.reading import load_recipe, parse_overrides
from r1lab.config.recipe import TrainRecipe
from r1lab.grpo import trainer
from r1lab.run_folder import RunFolder

SHORT = (
    "--sampling.engine=transformers", "--model.dtype=float32", "--sampling.questions_per_step=4",
    "--sampling.group_size=8", "--sampling.max_tokens=32", "--evaluation.num_problems=4",
    "--evaluation.num_samples=2", "--evaluation.every=0", "--evaluation.greedy=false",
    "--problems.check_gold=0", "--tracking.trackers=[]", "--checkpoints.every=1",
    "--optimizer.schedule=constant", "--algorithm.correction=token_truncate",
)  # fmt: skip


def train(folder: Path, steps: int, lag: int, *, resume: bool = False) -> RunFolder:
    given = (f"--output={folder}", f"--steps={steps}", f"--sampling.max_lag={lag}")
    recipe = load_recipe("quickstart", parse_overrides([*SHORT, *given]), schema=TrainRecipe)
    trainer.train(recipe, resume=resume)
    return RunFolder(folder)


@pytest.mark.parametrize("lag", [pytest.param(1, marks=pytest.mark.long), 2])
def test_a_run_with_a_lag_and_the_same_interrupted(tmp_path, lag):
    whole = train(tmp_path / "whole", 4, lag).metrics()
    assert [line["lag_max"] for line in whole] == [min(lag, step) for step in range(4)]
    assert all(line["lag"] == line["lag_max"] for line in whole)
    # The check of weight sync is on a probe, under one and the same weights: rounding alone.
    measured = [line["sync_kl"] for line in whole]
    assert all((kl is not None) == (step % lag == 0) for step, kl in enumerate(measured))
    assert all(kl < 1e-6 for kl in measured if kl is not None)
    assert all(line["sync_kl_tokens"] > 0 for line in whole if line["sync_kl"] is not None)
    # The policy has moved since it was sampled from, and the correction weighs it.
    assert whole[0]["correction"] == pytest.approx(1, abs=1e-5)
    assert max(abs(line["correction"] - 1) for line in whole[1:]) > 1e-5
    assert all(line["clipped_low"] == line["clipped_high"] == 0 for line in whole)
    # The same seed gives the same run, also when it is stopped with batches ahead.
    train(tmp_path / "part", 2, lag)
    assert train(tmp_path / "part", 4, lag, resume=True).metrics() == whole
