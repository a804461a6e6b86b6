"""What users type is pinned in tests/data/interface.json: changing it is a decision.

Every command with its options, and every key of every kind of recipe. After a change that is meant:

    R1LAB_REWRITE_PINS=1 python -m pytest tests/unit/test_pinned_interface.py

and commit the file with the change. Wording of help is not pinned.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

import pytest

PINS = Path(__file__).parents[1] / "data" / "interface.json"
# The pages of `r1lab COMMAND --keys`.
RECIPES = ("train", "pretrain", "sft", "sample", "reward-model", "distil", "pipeline")


def command_line() -> dict[str, Any]:
    """By command, its options (all spellings): what they take, choices, default."""
    from r1lab.cli import build_parser

    (commands,) = (
        action for action in build_parser()._actions
        if isinstance(action, argparse._SubParsersAction)
    )  # fmt: skip
    return {
        name: {
            " ".join(action.option_strings) or str(action.metavar): _argument(action)
            for action in command._actions
        }
        for name, command in sorted(commands.choices.items())
    }


def _argument(action: argparse.Action) -> dict[str, Any]:
    default = None if action.default is argparse.SUPPRESS else action.default
    return {
        "takes_value": action.nargs != 0,
        # `+`, `*` and `?`; an option that may be given several times appends.
        "number": action.nargs if isinstance(action.nargs, str) else None,
        "repeated": isinstance(action, argparse._AppendAction),
        "choices": None if action.choices is None else [str(choice) for choice in action.choices],
        "default": default if isinstance(default, str | int | float | list) else None,
    }


def recipe_schemas() -> dict[str, Any]:
    """By command, its recipe's keys with default and type, as `--keys` lists them."""
    from r1lab.cli_stages import COMMANDS, schema_of
    from r1lab.recipe import PretrainRecipe, TrainRecipe
    from r1lab.recipe_keys import describe

    schemas = {"train": TrainRecipe, "pretrain": PretrainRecipe}
    schemas |= {name: schema_of(name) for name in (*COMMANDS, "pipeline")}
    assert set(schemas) == set(RECIPES)
    return {
        name: {row.key: {"default": row.default, "type": row.type} for row in describe(schema)}
        for name, schema in schemas.items()
    }


def differences(pinned: Any, now: Any, place: str = "") -> list[str]:
    """Where two trees of pins differ, in words."""
    if isinstance(pinned, dict) and isinstance(now, dict):
        found = []
        for name in sorted({*pinned, *now}):
            found += differences(pinned.get(name), now.get(name), f"{place}/{name}")
        return found
    return [] if pinned == now else [f"{place}: {pinned} -> {now}"]


@pytest.fixture(scope="module")
def pinned() -> dict[str, Any]:
    """The committed pins, written anew first where the environment asks for it."""
    if os.environ.get("R1LAB_REWRITE_PINS", "0") not in ("", "0"):
        pins = {"commands": command_line(), "recipes": recipe_schemas()}
        PINS.write_text(json.dumps(pins, indent=1, sort_keys=True) + "\n")
    pins: dict[str, Any] = json.loads(PINS.read_text())
    return pins


def test_commands_and_options_are_as_pinned(pinned):
    # Through JSON, as the file went.
    now = json.loads(json.dumps(command_line()))
    assert differences(pinned["commands"], now, "commands") == []


@pytest.mark.parametrize("name", RECIPES)
def test_recipe_keys_are_as_pinned(pinned, name):
    assert differences(pinned["recipes"][name], recipe_schemas()[name], f"recipes/{name}") == []


def test_a_change_is_found(pinned):
    other = json.loads(json.dumps(pinned))
    other["commands"]["train"]["--force"]["takes_value"] = True
    del other["recipes"]["train"]["steps"]
    other["recipes"]["train"]["seed"]["default"] = "1"
    found = [line.partition(":")[0] for line in differences(pinned, other)]
    assert found == [
        "/commands/train/--force/takes_value", "/recipes/train/seed/default",
        "/recipes/train/steps",
    ]  # fmt: skip
