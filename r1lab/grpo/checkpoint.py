"""Checkpoints of a run: everything that decides its future, written whole or not at all."""

from __future__ import annotations

import os
import random
import re
import shutil
from pathlib import Path
from typing import Any

import torch

_NAME = re.compile(r"step-(\d+)")


def save_checkpoint(
    folder: Path, step: int, state: dict[str, Any], *, rank: int, keep: int
) -> Path:
    """Write one process's state of `step`; the main process (rank 0) also clears old checkpoints.

    Each process writes its own file under a temporary name, synced and then renamed, so that a
    file of the final name is always whole.
    """
    target = folder / f"step-{step}"
    target.mkdir(parents=True, exist_ok=True)
    path = target / f"rank-{rank}.pt"
    temporary = path.with_suffix(".tmp")
    with temporary.open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    if rank == 0:
        for old in list_checkpoints(folder)[:-keep]:
            shutil.rmtree(old)
    return target


def list_checkpoints(folder: Path) -> list[Path]:
    """All checkpoints, oldest first."""
    found = [(int(m[1]), p) for p in folder.glob("step-*") if (m := _NAME.fullmatch(p.name))]
    return [path for _, path in sorted(found)]


def newest_checkpoint(folder: Path, num_processes: int) -> tuple[int, Path] | None:
    """(step, folder) of the newest checkpoint that every process has written, or None."""
    for path in reversed(list_checkpoints(folder)):
        if all((path / f"rank-{rank}.pt").exists() for rank in range(num_processes)):
            return int(path.name.removeprefix("step-")), path
    return None


def random_states() -> dict[str, Any]:
    """The states of the random generators that training may draw from."""
    import numpy

    return {
        "python": random.getstate(),
        "numpy": numpy.random.get_state(),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def set_random_states(states: dict[str, Any]) -> None:
    """Put the random generators back to where `random_states` found them."""
    import numpy

    random.setstate(states["python"])
    numpy.random.set_state(states["numpy"])
    torch.set_rng_state(states["torch"])
    if states["cuda"]:
        torch.cuda.set_rng_state_all(states["cuda"])
