"""Measure the house: how large its rooms are, and which old words are left.

    python scripts/house.py [--top 5]

Prints the worst offenders of each measure, then one line of JSON. Only source text is read: nothing
of the library is imported, so a tree that does not run can be measured too.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from statistics import median
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
WORDS = "tests/data/old_words.yaml"
PACKAGE = "r1lab"
# Top-level folders of the checkout that are packages of r1lab once installed.
MOVED = ("rewards", "data")
SMALL = 120  # lines
KINDS = ("identifier", "module", "local", "recipe_key", "metric", "phrase")


@dataclass(frozen=True)
class Module:
    """One Python file: `path` from the root with forward slashes, `name` as it is imported."""

    path: str
    name: str
    text: str

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.text, self.path)

    @property
    def stem(self) -> str:
        return self.path.rpartition("/")[2].removesuffix(".py")

    @property
    def package(self) -> str:
        """The package that holds the file; for an `__init__` that is the package itself."""
        return self.name if self.stem == "__init__" else self.name.rpartition(".")[0]

    @property
    def num_lines(self) -> int:
        return len(self.text.splitlines())

    @property
    def is_empty(self) -> bool:
        """Whether this is an `__init__` with a docstring at most."""
        return self.stem == "__init__" and all(
            isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
            for node in self.tree.body
        )


@dataclass(frozen=True)
class Use:
    """One use of an old word; `context` is the text around it, in code the name itself."""

    word: str
    path: str
    line: int
    context: str


@dataclass
class House:
    """The measures of a tree: the numbers, and lines that name the offenders."""

    numbers: dict[str, float] = field(default_factory=dict)
    offenders: dict[str, list[str]] = field(default_factory=dict)


# --- Reading a tree ---------------------------------------------------------------------------


def files(folder: Path, suffix: str) -> Iterator[Path]:
    """Files below a folder in a fixed order. Links are not followed: r1lab/data may be one."""
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith((".", "__pycache__")))
        yield from (Path(place, name) for name in sorted(names) if name.endswith(suffix))


def modules(root: Path, *folders: str) -> list[Module]:
    """The Python files of the package and of the folders that are moved into it."""
    found = []
    for folder in folders or (PACKAGE, *MOVED):
        for path in files(root / folder, ".py"):
            place = path.relative_to(root).as_posix()
            parts = place.removesuffix(".py").split("/")
            parts = parts[:-1] if parts[-1] == "__init__" else parts
            name = ".".join(parts if parts[0] == PACKAGE else [PACKAGE, *parts])
            found.append(Module(place, name, path.read_text(encoding="utf-8")))
    return found


def functions(module: Module) -> Iterator[tuple[str, int]]:
    """(name, lines) of every function and method, from `def` to the last line of its body."""
    for node in ast.walk(module.tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            yield node.name, node.end_lineno - node.lineno + 1


# --- Rooms ------------------------------------------------------------------------------------


def importers(tree: Sequence[Module]) -> dict[str, set[str]]:
    """For each module's name, the names of the modules that import it, anywhere in their text."""
    names = {module.name for module in tree}
    found: dict[str, set[str]] = {name: set() for name in names}
    for module in tree:
        for node in ast.walk(module.tree):
            for target in _imported(node, module, names):
                if target != module.name:
                    found[target].add(module.name)
    return found


def _imported(node: ast.AST, module: Module, names: set[str]) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names if alias.name in names)
    elif isinstance(node, ast.ImportFrom):
        base = node.module or ""
        if node.level:
            above = module.package.split(".")[: len(module.package.split(".")) - node.level + 1]
            base = ".".join([*above, *([node.module] if node.module else [])])
        for alias in node.names:
            inner = f"{base}.{alias.name}"
            if inner in names:  # from package import module
                yield inner
            elif base in names:
                yield base


def single_importer_small(tree: Sequence[Module]) -> list[str]:
    """Files below `SMALL` lines that exactly one module imports, one of their own package."""
    package_of = {module.name: module.package for module in tree}
    users = importers(tree)
    return sorted(
        f"{module.path} ({module.num_lines} lines, imported by {next(iter(users[module.name]))})"
        for module in tree
        if module.stem != "__init__"
        and module.num_lines < SMALL
        and [package_of[user] for user in users[module.name]] == [module.package]
    )


def loose(tree: Sequence[Module]) -> list[str]:
    """Modules directly in r1lab/, but for __init__ and __main__."""
    return [
        module.path
        for module in tree
        if module.path.startswith(f"{PACKAGE}/")
        and module.path.count("/") == 1
        and module.stem not in ("__init__", "__main__")
    ]


def duplicate_class_names(tree: Iterable[Module]) -> dict[str, list[str]]:
    """Names of top-level classes and type aliases with more than one definition: name -> files."""
    places: dict[str, list[str]] = defaultdict(list)
    for module in tree:
        for name in {name for node in module.tree.body for name in _types_defined(node)}:
            places[name].append(module.path)
    return {name: paths for name, paths in sorted(places.items()) if len(paths) > 1}


def _types_defined(node: ast.stmt) -> Iterator[str]:
    """Classes and aliases that a statement at the top of a module defines, also inside `if`."""
    if isinstance(node, ast.If | ast.Try):
        for inner in (*node.body, *node.orelse):
            yield from _types_defined(inner)
    elif isinstance(node, ast.ClassDef):
        yield node.name
    elif type(node).__name__ == "TypeAlias":  # `type X = ...`, which Python 3.11 does not parse
        yield node.name.id  # type: ignore[attr-defined]
    elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
        if "TypeAlias" in ast.unparse(node.annotation):
            yield node.target.id
    elif isinstance(node, ast.Assign) and _is_type(node.value):
        yield from (target.id for target in node.targets if isinstance(target, ast.Name))


_TYPE_MAKERS = {"NewType", "TypeVar", "ParamSpec", "NamedTuple", "namedtuple", "TypedDict", "Enum"}
_BUILT_IN = {"list", "dict", "tuple", "set", "frozenset", "type"}


def _is_type(value: ast.expr) -> bool:
    """Whether an expression is a type: Literal[...], Callable[...], A | B, NewType(...)."""
    match value:
        case ast.Name(id="Any"):
            return True
        case ast.Subscript(value=ast.Name(id=name) | ast.Attribute(attr=name)):
            # A constant that is looked up in a table, X = TABLE["x"], is no type.
            return (name[:1].isupper() and not name.isupper()) or name in _BUILT_IN
        case ast.BinOp(op=ast.BitOr()):
            return all(_may_be_type(side) for side in (value.left, value.right))
        case ast.Call(func=ast.Name(id=name) | ast.Attribute(attr=name)):
            return name in _TYPE_MAKERS
    return False


def _may_be_type(side: ast.expr) -> bool:
    if isinstance(side, ast.Constant):
        return side.value is None or isinstance(side.value, str)
    if isinstance(side, ast.Name | ast.Attribute):
        name = side.id if isinstance(side, ast.Name) else side.attr
        return not name.isupper() or name in ("A", "B")
    return _is_type(side)


# --- Old words --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Entry:
    """One old word: see the head of `old_words.yaml`."""

    kind: str
    word: str
    in_: str = "everywhere"
    under: tuple[str, ...] = ()
    not_under: tuple[str, ...] = ()
    of: tuple[str, ...] = ()
    receivers: tuple[str, ...] = ()
    not_before: tuple[str, ...] = ()
    only: str = ""

    def covers(self, path: str) -> bool:
        """Whether the entry counts in the file at `path`."""
        below = not self.under or path.startswith(self.under)
        return below and not path.startswith(self.not_under or ("\0",))

    @cached_property
    def name(self) -> re.Pattern[str]:
        """Matches a whole identifier."""
        return re.compile(re.escape(self.word).replace(r"\*", r"\w*"))

    @cached_property
    def in_text(self) -> re.Pattern[str] | None:
        """Finds the word in text; None: it does not count there."""
        pattern = re.escape(self.word).replace(r"\*", r"\w*")
        whole = rf"(?<!\w){pattern}(?!\w)"
        match self.kind:
            case "phrase":
                spaced = r"[\s>#*_`]+".join(re.escape(part) for part in self.word.split())
                after = rf"(?!\s+(?:{'|'.join(self.not_before)})\b)" if self.not_before else ""
                return re.compile(rf"(?<!\w){spaced}(?!\w){after}", re.IGNORECASE)
            case "identifier" if self.in_ == "everywhere":
                return re.compile(whole)
            case "identifier" if not self.of:
                return re.compile(rf"(?<=`){pattern}(?=`)")
            case "metric":
                return re.compile(rf"\A(?:\w+/)?{pattern}\Z|(?<=`){pattern}(?=`)")
            case "recipe_key" if "_" in self.word:
                return re.compile(whole)
            case "recipe_key":
                key = rf"(?m)^\s*(?:- )?\{{?{pattern}(?=:\s)|(?<=`){pattern}(?=[`:])"
                return re.compile(
                    rf"{key}|(?<=[a-z]\.){pattern}(?!\w)|(?<=reward: ){pattern}(?!\w)"
                )
        return None


@dataclass(frozen=True)
class Words:
    """The list of old words with its exemptions."""

    entries: tuple[Entry, ...]
    exempt_paths: tuple[str, ...]
    exempt: tuple[tuple[str, str, str], ...]  # path, word, what its context says

    @classmethod
    def read(cls, path: Path) -> Words:
        """Read `old_words.yaml`; ValueError for an entry that would count nothing."""
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
        entries = []
        for row in raw["words"]:
            options = {("in_" if key == "in" else key): _tuple(value) for key, value in row.items()}
            entry = Entry(**options)
            if entry.kind not in KINDS:
                raise ValueError(f"{path}: {entry.word!r}: unknown kind {entry.kind!r}")
            entries.append(entry)
        rows = raw.get("exempt") or ()
        exempt = tuple((row["path"], row["word"], row["context"]) for row in rows)
        return cls(tuple(entries), tuple(raw.get("exempt_paths") or ()), exempt)

    def allows(self, use: Use) -> bool:
        """Whether the list exempts this use."""
        return use.path in self.exempt_paths or any(
            (use.path, use.word) == (path, word) and context in use.context
            for path, word, context in self.exempt
        )


def _tuple(value: Any) -> Any:
    return tuple(map(str, value)) if isinstance(value, list) else str(value)


@dataclass(frozen=True)
class Name:
    """An identifier in code. `receiver` is x of `x.name`; `owner` the class that defines it."""

    name: str
    line: int
    receiver: str | None = None
    owner: str | None = None
    is_local: bool = False


def names_in(module: Module) -> Iterator[Name]:
    """Every identifier of a file: uses, definitions, attributes, arguments, keywords, imports."""
    yield from _names(module.tree, None, in_function=False)


def _names(node: ast.AST, owner: str | None, *, in_function: bool) -> Iterator[Name]:
    line = getattr(node, "lineno", 0)
    match node:
        case ast.Name(id=name):
            yield Name(name, line, owner=None if in_function else owner, is_local=True)
        case ast.Attribute(attr=name, value=value):
            yield Name(name, line, receiver=_last_name(value))
        case ast.ClassDef(name=name):
            yield Name(name, line)
            owner, in_function = name, False
        case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
            yield Name(name, line, owner=None if in_function else owner)
            in_function = True
        case ast.Lambda():
            in_function = True
        case ast.arg(arg=name):
            yield Name(name, line, is_local=True)
        case ast.keyword(arg=str(name)):
            yield Name(name, line)
        case ast.alias(name=name, asname=alias):
            for part in (*name.split("."), *([alias] if alias else [])):
                yield Name(part, line)
        case ast.ExceptHandler(name=str(name)) | ast.MatchAs(name=str(name)):
            yield Name(name, line, is_local=True)
        case ast.ImportFrom(module=str(name)):
            yield from (Name(part, line) for part in name.split("."))
        case ast.Global(names=several) | ast.Nonlocal(names=several):
            yield from (Name(name, line) for name in several)
    for child in ast.iter_child_nodes(node):
        yield from _names(child, owner, in_function=in_function)


def _last_name(value: ast.expr) -> str | None:
    match value:
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return name
    return None


def texts_in(module: Module) -> Iterator[tuple[str, int, str]]:
    """(kind, line, text) of the strings that a reader meets: docstring, description or string.

    Problem sources (`data/`) hold what models read, which is data and not prose: of those only the
    docstrings and the messages of errors count.
    """
    yield from _texts(module.tree, "string", prose_only=module.path.startswith("data/"))


def _texts(node: ast.AST, kind: str, *, prose_only: bool) -> Iterator[tuple[str, int, str]]:
    line = getattr(node, "lineno", 1)
    match node:
        case ast.JoinedStr(values=values):
            # The parts of an f-string are one sentence; {} stands for what is filled in.
            text = "".join(v.value if isinstance(v, ast.Constant) else "{}" for v in values)
            if kind == "error" or not prose_only:
                yield kind, line, text
            for value in values:
                if isinstance(value, ast.FormattedValue):
                    yield from _texts(value.value, kind, prose_only=prose_only)
            return
        case ast.Constant(value=str(text)):
            if kind in ("docstring", "error") or not prose_only:
                yield kind, line, text
            return
        case ast.Expr(value=ast.Constant(value=str())):
            kind = "docstring"
        case ast.Raise():
            kind = "error"
        case ast.keyword(arg="description"):
            kind = "description"
    for child in ast.iter_child_nodes(node):
        yield from _texts(child, kind, prose_only=prose_only)


def documents(root: Path) -> Iterator[tuple[str, str]]:
    """(path, text) of README, CONTRIBUTING, docs and recipes.

    Tables of docs/experiments.md are records of what was measured: they stay as they are.
    """
    paths = [root / "README.md", root / "CONTRIBUTING.md"]
    paths += [*files(root / "docs", ".md"), *files(root / "recipes", ".yaml")]
    for path in paths:
        if path.is_file():
            place, text = path.relative_to(root).as_posix(), path.read_text(encoding="utf-8")
            if place == "docs/experiments.md":
                text = re.sub(r"(?m)^\s*\|.*$", "", text)
            yield place, text


def old_words(root: Path, words: Words, tree: Sequence[Module] | None = None) -> list[Use]:
    """Every use of an old word in names and strings of the library and examples, and in docs."""
    tree = [*(modules(root) if tree is None else tree), *modules(root, "examples")]
    found = [use for module in tree for use in _uses_in_code(module, words.entries)]
    found += [
        use
        for path, text in documents(root)
        for entry in words.entries
        if entry.only != "descriptions" and entry.covers(path)
        for use in _uses_in_text(entry, path, 1, text)
    ]
    return [use for use in found if not words.allows(use)]


def _uses_in_text(entry: Entry, path: str, line: int, text: str) -> Iterator[Use]:
    for match in entry.in_text.finditer(text) if entry.in_text else ():
        context = " ".join(text[max(0, match.start() - 40) : match.end() + 40].split())
        yield Use(entry.word, path, line + text.count("\n", 0, match.start()), context)


def _uses_in_code(module: Module, entries: Sequence[Entry]) -> Iterator[Use]:
    entries = [entry for entry in entries if entry.covers(module.path)]
    stem = module.stem if module.stem != "__init__" else module.package.rpartition(".")[2]
    for entry in entries:
        if entry.kind == "module" and entry.name.fullmatch(stem):
            yield Use(entry.word, module.path, 1, stem)
    by_name = _NameTable(entries)
    for name in names_in(module):
        for entry in by_name.matching(name):
            yield Use(entry.word, module.path, name.line, name.name)
    for kind, line, text in texts_in(module):
        for entry in entries:
            if entry.only == "descriptions" and kind != "description":
                continue
            yield from _uses_in_text(entry, module.path, line, text)


class _NameTable:
    """Entries that count identifiers, by word: there are a hundred thousand names to look up."""

    def __init__(self, entries: Iterable[Entry]) -> None:
        self._exact: dict[str, list[Entry]] = defaultdict(list)
        self._wild: list[Entry] = []
        for entry in entries:
            if entry.kind in ("identifier", "local", "recipe_key"):
                (self._wild if "*" in entry.word else self._exact[entry.word]).append(entry)

    def matching(self, name: Name) -> Iterator[Entry]:
        wild = (entry for entry in self._wild if entry.name.fullmatch(name.name))
        for entry in (*self._exact.get(name.name, ()), *wild):
            if entry.kind == "local" and not name.is_local:
                continue
            if entry.of and name.owner not in entry.of and name.receiver not in entry.receivers:
                continue
            is_variable = name.is_local and name.owner is None
            if entry.kind == "recipe_key" and "_" not in entry.word and is_variable:
                continue  # an ordinary word, and no field of a settings class
            yield entry


# --- The house --------------------------------------------------------------------------------


def measure(root: Path, words: Words | None = None) -> House:
    """All measures of the tree below `root`."""
    words = words or Words.read(root / WORDS)
    tree = modules(root)
    own = [module for module in tree if module.path.startswith(f"{PACKAGE}/")]
    counted = [module for module in own if not module.is_empty]
    lengths = sorted(
        ((lines, f"{module.path}:{name}") for module in own for name, lines in functions(module)),
        reverse=True,
    )
    by_size = sorted(((module.num_lines, module.path) for module in own), reverse=True)
    steps = [lines for lines, place in lengths if place.endswith(":rl_step")]
    small, at_top = single_importer_small(tree), loose(tree)
    small = [line for line in small if line.startswith(f"{PACKAGE}/")]
    duplicates, uses = duplicate_class_names(tree), old_words(root, words, tree)
    places: dict[str, Counter[str]] = defaultdict(Counter)
    for use in uses:
        places[use.word][use.path] += 1
    common = sorted(places.items(), key=lambda item: (-item[1].total(), item[0]))
    return House(
        {
            "modules": len(counted),
            "lines": sum(module.num_lines for module in own),
            "loose": len(at_top),
            "median_function": median([lines for lines, _ in lengths] or [0]),
            "longest_function": lengths[0][0] if lengths else 0,
            "longest_file": by_size[0][0] if by_size else 0,
            "rl_step_lines": max(steps, default=0),
            "single_importer_small": len(small),
            "old_words": len(uses),
            "duplicate_class_names": len(duplicates),
        },
        {
            "longest_function": [f"{place} ({lines} lines)" for lines, place in lengths],
            "longest_file": [f"{path} ({lines} lines)" for lines, path in by_size],
            "loose": at_top,
            "single_importer_small": small,
            "duplicate_class_names": [
                f"{name}: {', '.join(paths)}" for name, paths in duplicates.items()
            ],
            "old_words": [
                f"{word!r}: {where.total()} in "
                + ", ".join(f"{path} ({count})" for path, count in where.most_common(3))
                for word, where in common
            ],
        },
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the offenders of each measure, then the numbers as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--top", type=int, default=5, help="offenders shown of each measure")
    parser.add_argument("--word", help="list every use of this old word")
    options = parser.parse_args(arguments)
    if options.word:
        for use in old_words(ROOT, Words.read(ROOT / WORDS)):
            if use.word == options.word:
                print(f"{use.path}:{use.line}: {use.context}")
        return
    house = measure(ROOT)
    for name, value in house.numbers.items():
        print(f"{name}: {value:g}")
        lines = house.offenders.get(name, [])
        for line in lines[: options.top]:
            print(f"    {line}")
        if len(lines) > options.top:
            print(f"    ... and {len(lines) - options.top} more")
    print(json.dumps(house.numbers))


if __name__ == "__main__":
    main()
