"""The rows of a recipe's keys: complete, and in words."""

from __future__ import annotations

import pytest

from r1lab.config.keys import describe
from r1lab.config.recipe import PretrainRecipe, TrainRecipe


@pytest.mark.parametrize("schema", [TrainRecipe, PretrainRecipe])
def test_every_key_has_a_type_and_a_meaning(schema):
    rows = describe(schema)
    assert len(rows) > 20
    assert [row.key for row in rows if not row.meaning] == []
    assert [row.key for row in rows if not row.type or "typing" in row.type] == []


@pytest.mark.parametrize(
    ("key", "default", "kind"),
    [
        ("sampling.group_size", "16", "whole number from 2 to 10,000"),
        ("reward_workers", "null", "whole number above 0 to 1,024 or null"),
        ("optimizer.beta1", "0.9", "number from 0 below 1"),
        ("algorithm.importance_level", "null", "token, sequence or null"),
        ("checkpoints.keep", "2", "whole number above 0"),
        ("evaluation.greedy", "true", "true or false"),
        ("problems.sources", "required", "list of sections"),
        ("problems.sources.0.options", "{}", "mapping"),
        ("model.lora", "null", "section or null"),
        ("tracking.trackers", "['tensorboard']", "list of text"),
        ("output", "null", "text or null"),
    ],
)
def test_a_row(key, default, kind):
    (row,) = (row for row in describe(TrainRecipe) if row.key == key)
    assert (row.default, row.type) == (default, kind)


def test_the_losses_are_all_named():
    from r1lab.grpo.loss import LOSSES

    (row,) = (row for row in describe(TrainRecipe) if row.key == "algorithm.loss")
    assert all(name in row.type for name in (*LOSSES, "file.py:function"))
