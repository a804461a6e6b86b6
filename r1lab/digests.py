"""SHA-256 of models and datasets, kept in the cache folder while files stay the same."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from pathlib import Path
from typing import Any, Literal

from r1lab.hints import missing
from r1lab.model.load import cache_folder
from r1lab.types import R1labError

Kind = Literal["model", "dataset"]

# What makes a model: its weights, its configuration and its tokenizer. The cards do not.
_MODEL_FILES = (
    "*.safetensors", "*.safetensors.index.json", "*.bin", "*.gguf", "config.json",
    "adapter_config.json", "tokenizer*", "special_tokens_map.json", "added_tokens.json",
    "chat_template*", "vocab.*", "merges.txt", "*.model",
)  # fmt: skip
# Records of lineage lie in or beside an artefact, and are no part of it.
RECORD = "lineage.json"


def kind_of(path: Path) -> Kind:
    """A folder with a configuration is a model, everything else a dataset."""
    names = ("config.json", "adapter_config.json")
    return "model" if any((path / name).is_file() for name in names) else "dataset"


def artefact_sha256(path: str | Path) -> str:
    """SHA-256 over the names and digests of an artefact's files, in order; of a file, its own.

    Of a model, its weights, configuration and tokenizer. Digests of files are kept in the cache
    folder by size and time of the last change. Raises R1labError where there is nothing.
    """
    place = Path(path)
    if place.is_file():
        return file_sha256(place)
    if not place.is_dir():
        raise R1labError(missing(place, what="model or dataset"))
    known = _Digests()
    total = hashlib.sha256()
    for file in _files_of(place):
        total.update(f"{file.relative_to(place).as_posix()}\0{known.of(file)}\n".encode())
    known.keep()
    return total.hexdigest()


def file_sha256(path: Path) -> str:
    """Hex digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _files_of(folder: Path) -> list[Path]:
    if kind_of(folder) == "model":
        found = {file for pattern in _MODEL_FILES for file in folder.glob(pattern)}
    else:
        found = set(folder.rglob("*"))
    return sorted(f for f in found if f.is_file() and not f.name.endswith((RECORD, ".tmp")))


class _Digests:
    """Digests of files, kept from one call to the next while size and time stay the same."""

    def __init__(self) -> None:
        self._path = cache_folder() / "sha256.json"
        self._known: dict[str, Any] = {}
        self._fresh: dict[str, list[Any]] = {}
        # A cache that cannot be read is one that is empty.
        with contextlib.suppress(OSError, ValueError):
            self._known = dict(json.loads(self._path.read_text(encoding="utf-8")))

    def of(self, file: Path) -> str:
        stat, key = file.stat(), str(file.resolve())
        mark = [stat.st_size, stat.st_mtime_ns]
        known = self._known.get(key)
        if isinstance(known, list) and known[:2] == mark and len(known) == 3:
            return str(known[2])
        digest = file_sha256(file)
        self._fresh[key] = [*mark, digest]
        return digest

    def keep(self) -> None:
        if not self._fresh:
            return
        # Of files that are gone nothing needs to be known.
        kept = {key: mark for key, mark in self._known.items() if os.path.exists(key)}
        temporary = self._path.with_name(f"{self._path.name}.{os.getpid()}")
        with contextlib.suppress(OSError):  # a cache that cannot be written costs time alone
            self._path.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_text(json.dumps(kept | self._fresh), encoding="utf-8")
            os.replace(temporary, self._path)
