"""Write docs/reference/recipe.md and docs/reference/commands.md from the schema and the parser.

    python scripts/write_reference.py            # after a change of either; a test compares
    python scripts/write_reference.py --check    # say what differs, and leave with 1

What `r1lab train --keys` and `r1lab COMMAND --help` print, as tables.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from r1lab.cli.app import build_parser
from r1lab.config.keys import KeyRow, describe
from r1lab.config.recipe import PretrainRecipe, TrainRecipe

FOLDER = Path(__file__).resolve().parents[1] / "docs/reference"

_RECIPE = """\
# Keys of a recipe

<!-- Written by scripts/write_reference.py from the schema: edit r1lab/recipe*.py instead. -->

Every key, as `r1lab train --keys` prints them too. In a file sections are nested; on the command
line they are joined by points: `--sampling.group_size 8`, `--problems.sources.0.weight 2`. `0`
stands for an entry's number in a list. Defaults < the recipe that `extends` names < the recipe <
the command line. *null* is what a recipe writes for "none". A key that a recipe does not know is
refused with the nearest match.
"""
_PRETRAIN = """\
## Pre-training a base

The keys of `r1lab pretrain RECIPE`, which makes a small base from nothing.
"""
_COMMANDS = """\
# Commands

<!-- Written by scripts/write_reference.py from the parser: edit r1lab/cli*.py instead. -->

`r1lab COMMAND --help` says the same. Every command takes `--debug`, which shows the traceback of
an error. Exit codes: 0 done, or saved after a signal; 2 bad input; 3 a reward that failed its
check; 4 a run that stopped itself or cannot learn; 5 a machine that gave way; 130 interrupted.
"""


def recipe_page() -> str:
    """The keys of both kinds of recipe."""
    text = _RECIPE
    sections: dict[str, list[KeyRow]] = {"": []}
    for row in describe(TrainRecipe):
        sections.setdefault(_section(row), []).append(row)
    for section, rows in sections.items():
        title = section or "The run"
        text += f"\n## {title}\n\n{_table(rows)}"
    return f"{text}\n{_PRETRAIN}\n{_table(describe(PretrainRecipe))}"


def commands_page() -> str:
    """Every command with its options."""
    text = _COMMANDS
    parser = build_parser()
    (commands,) = (
        action for action in parser._actions if isinstance(action, argparse._SubParsersAction)
    )
    for name, command in commands.choices.items():
        usage = [action.metavar or "" for action in command._actions if not action.option_strings]
        text += f"\n## r1lab {name}\n\n{command.description}\n\n"
        if usage:
            text += f"`r1lab {name} {' '.join(map(str, usage))}`\n\n"
        text += "| argument | meaning |\n|---|---|\n"
        for action in command._actions:
            if action.help and action.dest not in ("help", "debug"):
                text += f"| {_option(action)} | {_cell(action.help)} |\n"
    return text


def _section(row: KeyRow) -> str:
    return row.key.split(".")[0] if "." in row.key or row.key == "rewards" else ""


def _table(rows: Sequence[KeyRow]) -> str:
    text = "| key | default | type | meaning |\n|---|---|---|---|\n"
    for row in rows:
        default = row.default if row.default == "required" else f"`{row.default}`"
        text += f"| `{row.key}` | {_cell(default)} | {_cell(row.type)} | {_cell(row.meaning)} |\n"
    return text


def _option(action: argparse.Action) -> str:
    names = ", ".join(f"`{name}`" for name in action.option_strings) or f"`{action.metavar}`"
    if action.choices is not None:
        return f"{names} {', '.join(map(str, action.choices))}"
    if action.option_strings and action.nargs != 0:
        return f"{names} {action.metavar or 'N'}"
    return names


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;").replace("%%", "%")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    wrong = 0
    for name, text in (("recipe.md", recipe_page()), ("commands.md", commands_page())):
        path = FOLDER / name
        if path.is_file() and path.read_text(encoding="utf-8") == text:
            continue
        wrong += 1
        if check:
            print(f"{path.name} is not what the code says: python scripts/write_reference.py")
        else:
            path.write_text(text, encoding="utf-8")
            print(f"wrote {path}")
    return int(check and wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
