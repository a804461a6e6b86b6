"""SHA-256 of models and datasets, kept in the cache folder while files stay the same; and of
everything that a recipe names, so that a run is not resumed on other inputs."""

from __future__ import annotations

import ast
import contextlib
import hashlib
import importlib.util
import json
import os
import sysconfig
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import BaseModel

from r1lab.config.algorithm import AdvantageName, LossName
from r1lab.config.reading import names_a_path
from r1lab.hints import missing
from r1lab.model.load import cache_folder, resolve_folder
from r1lab.problems.registry import PROBLEM_VERIFIER, find, shipped
from r1lab.problems.registry import ExtensionKind as NamedKind
from r1lab.problems.tables import TABLES
from r1lab.types import R1labError

HashedKind = Literal["model", "dataset"]

# What makes a model: its weights, its configuration and its tokenizer. The cards do not.
_MODEL_FILES = (
    "*.safetensors", "*.safetensors.index.json", "*.bin", "*.gguf", "config.json",
    "adapter_config.json", "tokenizer*", "special_tokens_map.json", "added_tokens.json",
    "chat_template*", "vocab.*", "merges.txt", "*.model",
)  # fmt: skip
# Records of lineage lie in or beside an artefact, and are no part of it.
RECORD = "lineage.json"

Inputs = dict[str, dict[str, str]]  # key of the recipe -> file below what it names -> digest
_WHOLE = 2**30  # bytes of an input that are hashed whole
_ENDS = 2**20  # of a larger file, bytes at its beginning and its end


def kind_of(path: Path) -> HashedKind:
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


# --- what a recipe names ---------------------------------------------------------------------


_SHIPPED = {*get_args(LossName), *get_args(AdvantageName)}


def input_digests(recipe: BaseModel, verifiers: Iterable[str] = ()) -> Inputs:
    """Digests of the files that the keys of a recipe name: code, tables, models.

    Code counts with the files beside it that it imports, at any remove; `verifiers` are those that
    problems name. Up to 1 GiB contents are hashed whole; of a larger model or file its safetensors
    headers, sizes, and the revision of a hub's snapshot. Nothing that r1lab ships itself is in it
    but its bases.
    """
    values = recipe.model_dump(mode="json")
    found: Inputs = {}
    for key, text in _strings(values):
        if key in ("model.path", "teacher.path"):
            gguf = values[key.partition(".")[0]]["gguf_file"]
            folder = resolve_folder(text)
            found[key] = _digests_of([folder / gguf] if gguf else _files_of(folder), folder)
        elif names_a_path(key) and key != "sampling.weights_folder":
            found[key] = _named(text, _kind_of_key(key), is_place=".options." in key)
    for name in sorted(set(verifiers)):
        files = _named(name, "reward")
        found.setdefault("problems.verifier", {}).update(files)
    return {key: files for key, files in found.items() if files}


def changed_inputs(before: Inputs, now: Inputs) -> list[str]:
    """What differs among the inputs that both know, a phrase for each file."""
    said = []
    for key in sorted(before.keys() & now.keys()):
        for name in sorted(before[key].keys() | now[key].keys()):
            old, new = before[key].get(name), now[key].get(name)
            if old != new:
                became = "has changed" if old and new else "is gone" if old else "is new"
                said.append(f"{key}: {name} {became}")
    return said


def _strings(node: Any, key: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(node, str):
        yield key, node
    elif isinstance(node, dict | list):
        for name, below in node.items() if isinstance(node, dict) else enumerate(node):
            yield from _strings(below, f"{key}.{name}" if key else str(name))


def _kind_of_key(key: str) -> NamedKind:
    if key == "algorithm.loss":
        return "loss"
    if key == "algorithm.advantage":
        return "advantage"
    return "reward" if key.endswith((".reward", ".verifier")) else "source"


def _named(text: str, kind: NamedKind, *, is_place: bool = False) -> dict[str, str]:
    """Digests of what a reference or (`is_place`) a path names; empty for what ships."""
    path = Path(os.path.expanduser(text))
    if is_place or text.endswith(TABLES):
        if path.is_dir():
            return _digests_of(_files_of(path), path)
        return _digests_of([path], path.parent) if path.is_file() else {}
    if text == PROBLEM_VERIFIER or text in shipped(kind) or text in _SHIPPED:
        return {}
    try:
        reference = find(text, kind)
        spec = None if reference.path else importlib.util.find_spec(reference.module)
    except (R1labError, ImportError, ValueError):  # refused, in its own words, where it is used
        return {}
    place = reference.path or (spec.origin if spec else None)
    ships = reference.path is None and reference.module.startswith("r1lab.")
    if place is None or not place.endswith(".py") or ships:
        return {}
    top, root, within = Path(place), Path(place).parent, None
    if reference.path is None:
        depth = reference.module.count(".") + (top.name == "__init__.py")
        root = top.parents[depth]
        if str(root) in sysconfig.get_paths().values():  # of what is installed, its own package
            within = reference.module.partition(".")[0]
    return _digests_of(_code(top, root, within), root)


def _code(top: Path, root: Path, within: str | None) -> list[Path]:
    """A file of code and those below `root` that it imports; of the package `within` alone."""
    found, left = [top], [top]
    while left:
        file = left.pop()
        try:
            tree = ast.parse(file.read_bytes())
        except (SyntaxError, ValueError):  # told by who imports it
            continue
        for other in _imported(tree, file, root, within):
            if other not in found:
                found.append(other)
                left.append(other)
    return found


def _imported(tree: ast.AST, file: Path, root: Path, within: str | None) -> Iterator[Path]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            modules = [(root, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = file.parents[node.level - 1] if node.level else root
            prefix = f"{node.module}." if node.module else ""
            modules = [(base, f"{prefix}{alias.name}") for alias in node.names]
        else:
            continue
        for base, name in modules:
            parts = name.split(".")
            if base == root and within not in (None, parts[0]):
                continue
            for depth in range(1, len(parts) + 1):
                place = base.joinpath(*parts[:depth])
                files = (place.with_name(f"{place.name}.py"), place / "__init__.py")
                yield from (one for one in files if one.is_file())


def _digests_of(files: Iterable[Path], root: Path) -> dict[str, str]:
    """By path as seen from `root`, so that a folder may move."""
    files = [file for file in files if file.is_file()]
    whole = sum(file.stat().st_size for file in files) < _WHOLE
    found = {os.path.relpath(file, root): _digest(file, whole=whole) for file in files}
    if not whole and root.resolve().parent.name == "snapshots":  # of the hub's cache
        found["revision"] = root.resolve().name
    return found


def _digest(file: Path, *, whole: bool) -> str:
    size = file.stat().st_size
    if whole or size <= 2 * _ENDS:
        return file_sha256(file)
    with file.open("rb") as opened:
        beginning = opened.read(8)
        header = int.from_bytes(beginning, "little") if file.suffix == ".safetensors" else _ENDS
        beginning += opened.read(min(header, 100 * _ENDS))
        opened.seek(size - _ENDS)
        end = b"" if file.suffix == ".safetensors" else opened.read()
    return hashlib.sha256(beginning + end + str(size).encode()).hexdigest()
