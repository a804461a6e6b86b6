"""First contact: the welcome text of `r1lab`, thread settings and shell completion."""

from __future__ import annotations

import argparse
import importlib.util
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from r1lab.types import R1labError

if TYPE_CHECKING:
    from pydantic import BaseModel

SHELLS = ("bash", "zsh", "tcsh")

_WELCOME = """\
r1lab: reasoning reinforcement learning on your own problems and your own hardware.

  r1lab doctor                          diagnose this machine
  r1lab quickstart                      train the shipped small model: 6 minutes on two cores
  r1lab new reward my_reward            create your own reward and its test
  r1lab verify my_reward.py --problems boxes
  r1lab train RECIPE --dry-run          check a recipe; --preflight: can this run learn?
{newest}
Train on your own puzzle in 20 minutes: docs/tutorial.md. All commands: r1lab --help.
Shell completion of commands and keys: source <(r1lab completion bash)
"""


def welcome(folder: Path) -> str:
    """Return the welcome text, including the newest run in `folder` if there is one."""
    runs = sorted(
        folder.glob("runs/*/recipe.yaml"), key=lambda path: path.stat().st_mtime, reverse=True
    )
    newest = ""
    if runs:
        run = runs[0].parent.relative_to(folder)
        newest = (
            f"\n  r1lab report {run!s:24}  report of your newest run; r1lab show: its samples\n"
        )
    return _WELCOME.format(newest=newest)


def let_threads_sleep(threads: int) -> None:
    """Set the number of threads per process, and make idle threads sleep instead of spin.

    Spinning threads slow a small model down as soon as the cores have other work. Call it before
    torch is imported. Variables that are already set are kept.
    """
    for name, value in (
        ("OMP_NUM_THREADS", str(threads)), ("OMP_WAIT_POLICY", "PASSIVE"), ("KMP_BLOCKTIME", "0"),
    ):  # fmt: skip
        os.environ.setdefault(name, value)


def add_completion_options(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `r1lab completion`."""
    parser.set_defaults(takes_overrides=False)
    parser.add_argument("shell", metavar="SHELL", choices=SHELLS, help=", ".join(SHELLS))
    parser.epilog = (
        "  source <(r1lab completion bash)                  # now\n"
        "  r1lab completion bash > ~/.local/share/bash-completion/completions/r1lab"
    )


def completion_script(parser: argparse.ArgumentParser, shell: str) -> str:
    """Return a script that completes commands, options, recipe keys and their values."""
    if importlib.util.find_spec("shtab") is None:
        raise R1labError("shtab is not installed here; pip install shtab")
    import shtab

    from r1lab.config.recipe import PretrainRecipe, TrainRecipe

    commands = next(a for a in parser._actions if isinstance(a, argparse._SubParsersAction)).choices
    for name, command in commands.items():
        for action in command._actions:
            if not action.option_strings and action.metavar in ("RECIPE", "RUN", "MODEL", "REWARD"):
                action.complete = shtab.FILE
        if name in ("train", "quickstart", "estimate", "pretrain"):
            _add_keys(command, PretrainRecipe if name == "pretrain" else TrainRecipe)
    script: str = shtab.complete(parser, shell=shell)
    return script


def _add_keys(command: argparse.ArgumentParser, schema: type[BaseModel]) -> None:
    from r1lab.config.keys import describe

    taken = {option for action in command._actions for option in action.option_strings}
    for row in describe(schema):
        if f"--{row.key}" in taken:
            continue
        words = [word.strip() for word in row.type.removesuffix(" or null").split(",")]
        settings: dict[str, Any] = {"help": row.meaning.replace("%", "%%")}
        if row.type == "true or false":
            settings["choices"] = ["true", "false"]
        elif len(words) > 1 and "number" not in row.type:
            settings["choices"] = [word for word in words if "/" not in word]
        command.add_argument(f"--{row.key}", **settings)
