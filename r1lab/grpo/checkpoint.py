"""Checkpoints of a run: all state that determines its continuation, written atomically.

    checkpoints/step-N/
        rank-R.pt       one process's state (`CheckpointManager.save`): plain containers and
                        tensors. The policy's is in rank 0's; of a sharded policy each
                        process has its shards in its own
        model/          the trained weights as an ordinary Hugging Face folder, adapters merged
        manifest.json   step, number of processes, and the SHA-256 of every file above

Everything is written to `step-N.tmp`, synced, and renamed at the end, so that a folder with the
final name is complete. The manifest detects later damage (a faulty disk, an incomplete copy).
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from r1lab.types import R1labError

_NAME = re.compile(r"step-(\d+)")
_MANIFEST = "manifest.json"


@dataclass(frozen=True, slots=True)
class Torn:
    """An incomplete or corrupted checkpoint."""

    name: str
    fault: str


@dataclass(frozen=True, slots=True)
class Found:
    """The checkpoint to resume from, and the newer ones that were rejected."""

    step: int
    folder: Path
    num_processes: int  # of the launch that wrote it
    passed_over: tuple[Torn, ...]


def save_checkpoint(
    folder: Path,
    step: int,
    state: dict[str, Any],
    *,
    keep: int,
    write_model: Callable[[Path], None],
    rank: int = 0,
    num_processes: int = 1,
    wait: Callable[[], None] = lambda: None,
) -> Path:
    """Write the checkpoint of `step`, with each process's state; return its folder.

    All processes call this together and `wait` for each other. `write_model` gets the model's
    folder in every process, since sharded weights are gathered from all. The main process (rank 0)
    renames the complete folder, and deletes all but the newest `keep`.
    """
    target, temporary = folder / f"step-{step}", folder / f"step-{step}.tmp"
    if rank == 0:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
    wait()
    with _state_path(temporary, rank).open("wb") as file:
        torch.save(state, file)
    write_model(temporary / "model")
    wait()
    if rank == 0:
        _write_manifest(temporary, step, num_processes)
        _sync_tree(temporary)
        if target.exists():  # left by a run that resumed from an older checkpoint
            shutil.rmtree(target)
        temporary.rename(target)
        _sync(folder)
        for old in list_checkpoints(folder)[:-keep]:
            shutil.rmtree(old)
    wait()
    return target


def list_checkpoints(folder: Path) -> list[Path]:
    """Return all checkpoints, oldest first, intact or not."""
    matches = [(int(m[1]), p) for p in folder.glob("step-*") if (m := _NAME.fullmatch(p.name))]
    return [path for _, path in sorted(matches)]


def newest_checkpoint(folder: Path) -> Found | None:
    """Return the newest intact checkpoint, or None if there is none at all.

    Incomplete or corrupted checkpoints are skipped. Raises R1labError if there are checkpoints but
    none is intact.
    """
    passed_over: list[Torn] = []
    for path in reversed(list_checkpoints(folder)):
        fault = fault_of(path)
        if fault is None:
            wrote = json.loads((path / _MANIFEST).read_text())["num_processes"]
            return Found(int(path.name.removeprefix("step-")), path, wrote, tuple(passed_over))
        passed_over.append(Torn(path.name, fault))
    if passed_over:
        faults = "; ".join(f"{torn.name}: {torn.fault}" for torn in passed_over)
        raise R1labError(
            f"output: no checkpoint in {folder} is intact ({faults}); start again in another "
            "folder with --output"
        )
    return None


def set_aside(checkpoint: Path) -> None:
    """Rename a corrupted checkpoint, so that it does not count towards `keep`."""
    aside = checkpoint.with_name(checkpoint.name + ".torn")
    shutil.rmtree(aside, ignore_errors=True)
    checkpoint.rename(aside)


def fault_of(checkpoint: Path) -> str | None:
    """Describe what is wrong with the files of a checkpoint; None if it is intact."""
    try:
        manifest = json.loads((checkpoint / _MANIFEST).read_text())
        expected_of = dict(manifest["sha256"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"{_MANIFEST} is missing or incomplete ({type(error).__name__})"
    for name, expected in expected_of.items():
        path = checkpoint / name
        if not path.exists():
            return f"{name} is missing"
        if _sha256(path) != expected:
            return f"{name} has changed since it was written (SHA-256 differs)"
    return None


def load_states(checkpoint: Path, num_processes: int) -> list[dict[str, Any]]:
    """Return the states of all processes that wrote it; unpickles only tensors and containers.

    Tensors are read from the files when used, so a process that takes its rows of a sharded tensor
    reads no others.
    """
    return [
        torch.load(_state_path(checkpoint, rank), weights_only=True, mmap=True, map_location="cpu")
        for rank in range(num_processes)
    ]


def random_states() -> dict[str, Any]:
    """Return the states of the random generators that training may use."""
    import numpy

    kind, keys, *rest = numpy.random.get_state(legacy=True)
    return {
        "python": random.getstate(),
        "numpy": (kind, torch.tensor(numpy.asarray(keys, dtype="int64")), *rest),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def set_random_states(states: dict[str, Any]) -> None:
    """Restore the random generators to what `random_states` returned."""
    import numpy

    random.setstate(states["python"])
    kind, keys, *rest = states["numpy"]
    numpy.random.set_state((kind, keys.numpy().astype("uint32"), *rest))
    torch.set_rng_state(states["torch"])
    if states["cuda"]:
        torch.cuda.set_rng_state_all(states["cuda"])


def _state_path(checkpoint: Path, rank: int) -> Path:
    return checkpoint / f"rank-{rank}.pt"


def _write_manifest(checkpoint: Path, step: int, num_processes: int) -> None:
    files = sorted(path for path in checkpoint.rglob("*") if path.is_file())
    manifest = {
        "step": step,
        "num_processes": num_processes,
        "sha256": {str(path.relative_to(checkpoint)): _sha256(path) for path in files},
    }
    (checkpoint / _MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync_tree(folder: Path) -> None:
    for path in [*folder.rglob("*"), folder]:
        _sync(path)


def _sync(path: Path) -> None:
    """Flush a file, or the names in a folder, to disk before anything relies on it."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
