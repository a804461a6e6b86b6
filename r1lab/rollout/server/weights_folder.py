"""Weights through a folder shared by the trainer and its samplers, written atomically.

    FOLDER/RUN/version-N/
        weights-00000.safetensors ...   tensors by checkpoint name, at most `SHARD_BYTES` a file
        manifest.json                   run, version, and the size of each file above

RUN is a random token that a trainer creates at its start, so that equal version numbers of two runs
are never mistaken for the same weights. A version is written under another name, synced and
renamed: a folder with the final name is complete. A reader on another machine may see it late, or
in part while a network file system catches up; the manifest detects this.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from r1lab.types import R1labError, RecipeError

if TYPE_CHECKING:
    import torch

SHARD_BYTES = 2 * 2**30
_MANIFEST = "manifest.json"
_RUN = re.compile(r"[0-9a-f]{16}")
_SECONDS_TO_APPEAR = 10.0


class WeightsFolder:
    """The trainer's side: one run's versions in a shared folder."""

    def __init__(self, root: str | Path, run: str) -> None:
        """Raises RecipeError if `root` is not writable (`checks` tests it earlier)."""
        self.root, self.run = Path(root), run
        try:
            self._own.mkdir(exist_ok=True)
        except OSError as error:
            raise RecipeError(
                f"sampling.weights_folder: nothing can be written to {str(root)!r} "
                f"({error.strerror}); give a folder that this machine and the servers share"
            ) from None

    @property
    def _own(self) -> Path:
        return self.root / self.run

    def write_note(self) -> str:
        """Write a note for servers to read back, which proves that they see this folder."""
        word = secrets.token_hex(8)
        (self._own / "note").write_text(word)
        return word

    def write(self, weights: Iterable[tuple[str, torch.Tensor]], version: int) -> Path:
        """Write a version atomically; older ones stay until `drop_before`."""
        target, temporary = self._own / f"version-{version}", self._own / "being-written"
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        files = {path.name: path.stat().st_size for path in _write_shards(weights, temporary)}
        manifest = {"run": self.run, "version": version, "files": files}
        (temporary / _MANIFEST).write_text(json.dumps(manifest) + "\n")
        for path in (*temporary.iterdir(), temporary):
            _sync(path)
        if target.exists():  # from before the run returned to an earlier step
            shutil.rmtree(target)
        temporary.rename(target)
        _sync(self._own)
        return target

    def drop_before(self, version: int) -> None:
        """Delete the versions before this one, once no server needs them."""
        for path in self._own.glob("version-*"):
            if int(path.name.removeprefix("version-")) < version:
                shutil.rmtree(path)

    def remove(self) -> None:
        """Delete everything of this run."""
        shutil.rmtree(self._own, ignore_errors=True)


def new_run() -> str:
    """Return a token for a run; it does not affect what the run computes."""
    return secrets.token_hex(8)


def check_run_token(run: object) -> str:
    """Return the token if it is valid, as it becomes part of a path. Raises R1labError."""
    if not isinstance(run, str) or not _RUN.fullmatch(run):
        raise R1labError(f"{run!r:.40} is not the token of a run")
    return run


def read_note(root: Path, run: str) -> str | None:
    """Return the note that the trainer of `run` left in the folder, or None if not visible."""
    note = root / check_run_token(run) / "note"
    return _appeared(lambda: note.read_text() if note.is_file() else None)


def find_version(root: Path, run: str, version: int) -> Path:
    """Return the folder of a version, once it is completely visible here. Raises R1labError."""
    folder = root / check_run_token(run) / f"version-{int(version)}"
    if _appeared(lambda: folder if _is_whole(folder) else None) is None:
        raise R1labError(
            f"weights of version {version} are not seen, or not whole, in {folder}; is it the "
            "folder that the trainer writes to (sampling.weights_folder)?"
        )
    return folder


def read_weights(folder: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield (checkpoint name, tensor on the CPU) of a version, file by file."""
    from safetensors import safe_open

    for name in _manifest(folder)["files"]:
        with safe_open(folder / name, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118 (not a dict)
                yield key, file.get_tensor(key)


def _write_shards(weights: Iterable[tuple[str, torch.Tensor]], folder: Path) -> Iterator[Path]:
    from safetensors.torch import save_file

    shard: dict[str, torch.Tensor] = {}
    held = number = 0

    def flush() -> Path:
        path = folder / f"weights-{number:05}.safetensors"
        save_file(shard, path)
        return path

    for name, tensor in weights:
        # A copy: expert weights are views of one tensor, and safetensors refuses shared memory.
        shard[name] = tensor.detach().to("cpu", copy=True).contiguous()
        held += shard[name].nbytes
        if held >= SHARD_BYTES:
            yield flush()
            shard, held, number = {}, 0, number + 1
    if shard:
        yield flush()


def _manifest(folder: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((folder / _MANIFEST).read_text())
    return values


def _is_whole(folder: Path) -> bool:
    try:
        files = _manifest(folder)["files"]
        return all((folder / name).stat().st_size == size for name, size in files.items())
    except (OSError, ValueError, KeyError):
        return False


def _appeared(look: Any, seconds: float | None = None) -> Any:
    """Return the result of `look` once it is not None; network folders can appear late."""
    until = time.monotonic() + (_SECONDS_TO_APPEAR if seconds is None else seconds)
    while (result := look()) is None and time.monotonic() < until:
        time.sleep(0.2)
    return result


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
