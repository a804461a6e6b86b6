"""What users type is pinned in tests/data/interface.json: changing it is a decision.

Every command with its options, and every key of every kind of recipe. After a change that is meant:

    R1LAB_REWRITE_PINS=1 python -m pytest tests/unit/test_pinned_interface.py

and commit the file with the change. Wording of help is not pinned.
"""

from __future__ import annotations

import argparse
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

PINS = Path(__file__).parents[1] / "data" / "interface.json"
# Commands that take a recipe.
RECIPES = ("train", "pretrain", "sft", "sample", "reward-model", "distil", "pipeline")


def command_line() -> dict[str, Any]:
    """By command, its options (all spellings): what they take, choices, default."""
    from r1lab.cli.app import build_parser

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
    """What one option takes; what is left out is false or null."""
    default = None if action.default is argparse.SUPPRESS else action.default
    found = {
        "takes_value": action.nargs != 0,
        "number": action.nargs if isinstance(action.nargs, str) else None,  # `+`, `*` and `?`
        "repeated": isinstance(action, argparse._AppendAction),
        "choices": None if action.choices is None else [str(choice) for choice in action.choices],
        "default": default if isinstance(default, str | int | float | list) else None,
    }
    return {name: value for name, value in found.items() if value not in (None, False)}


def recipe_schemas() -> dict[str, Any]:
    """By command, the keys of its recipe with default, type and bounds."""
    from r1lab.cli.stages import COMMANDS, schema_of
    from r1lab.config.recipe import PretrainRecipe, TrainRecipe

    schemas: dict[str, Any] = {"train": TrainRecipe, "pretrain": PretrainRecipe}
    schemas |= {name: schema_of(name) for name in (*COMMANDS, "pipeline")}
    assert set(schemas) == set(RECIPES)
    trees = {name: schema.model_json_schema() for name, schema in schemas.items()}
    return {name: dict(_keys(tree, tree.get("$defs", {}))) for name, tree in trees.items()}


def _keys(
    section: dict[str, Any], defs: dict[str, Any], prefix: str = "", given: Any = None
) -> Iterator[tuple[str, dict[str, Any]]]:
    """The keys of a section of a JSON schema; those of the sections in it follow a point.

    `given`: what the section above sets as its default, which goes before the key's own.
    """
    for name, schema in section["properties"].items():
        key, found = f"{prefix}{name}", _without_words(schema)
        if isinstance(given, dict) and name in given:
            found["default"] = given[name]
        below = re.search(r'"\$ref": "#/\$defs/(\w+)"', json.dumps(schema))
        if below:
            # Sections are pinned by their keys, not by what the class is called.
            found = json.loads(json.dumps(found).replace(below[0], '"type": "section"'))
            entry = {"array": "0.", "object": "NAME."}.get(schema.get("type", ""), "")
            default = found.get("default")
            if isinstance(default, dict):
                del found["default"]
            yield from _keys(defs[below[1]], defs, f"{key}.{entry}", default)
        yield key, found | ({"required": True} if name in section.get("required", ()) else {})


def _without_words(value: Any) -> Any:
    """The schema of a key without its description, which may be said better at any time."""
    if isinstance(value, dict):
        left_out = ("title", "description", "examples")
        return {key: _without_words(inner) for key, inner in value.items() if key not in left_out}
    return [_without_words(inner) for inner in value] if isinstance(value, list) else value


def as_text(value: Any, depth: int = 3, indent: str = "") -> str:
    """JSON with a line for each option and key, so that a change is read in the diff."""
    if not depth:
        return json.dumps(value)
    lines = [f"{indent} {json.dumps(name)}: {as_text(inner, depth - 1, indent + ' ')}"
             for name, inner in value.items()]  # fmt: skip
    return "{\n" + ",\n".join(lines) + f"\n{indent}}}"


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
        PINS.write_text(as_text(pins) + "\n")
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
    other["recipes"]["train"]["seed"]["default"] = 1
    found = [line.partition(":")[0] for line in differences(pinned, other)]
    assert found == [
        "/commands/train/--force/takes_value", "/recipes/train/seed/default",
        "/recipes/train/steps",
    ]  # fmt: skip
