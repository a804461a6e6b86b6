"""From a name in a recipe to the code and the problems it stands for.

A reward, a problem source or a loss is named in one of these ways, the first that fits:
    boxes                      shipped: r1lab.rewards.boxes:reward, r1lab.data.boxes:load
    path/to/file.py:function   any file, beside the recipe that names it or else from the current
                               folder; `file.py` alone means `reward`, `load` or `loss`
    package.module:function    anything importable; without `:function`, likewise
    path/to/problems.jsonl     (or .parquet) problems as rows, see `FileProblems`

Nothing here imports torch, and nothing is imported before it is asked for. Every fault is a
`RecipeError` of one line that names the recipe's key, what is wrong and what would be right.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from r1lab.config.recipe import ProblemSettings, SourceSettings
from r1lab.hints import missing, nearest, raised
from r1lab.problems.curriculum import Curriculum
from r1lab.problems.mixture import (
    FileProblems,
    ProblemMixture,
    ProblemStream,
    ReplayedProblems,
    ShuffledProblems,
    Split,
    TableRows,
)
from r1lab.problems.tables import TABLES, no_table
from r1lab.problems.user_files import module_name
from r1lab.types import Problem, R1labError, RecipeError

ExtensionKind = Literal["reward", "source", "loss", "advantage"]

# Losses and advantages that ship are tables (LOSSES, ADVANTAGES), which are looked up first.
_PACKAGE = {"reward": "r1lab.rewards", "source": "r1lab.data"}
_FUNCTION = {"reward": "reward", "source": "load", "loss": "loss", "advantage": "advantage"}

# What tables come in that are not read here.
_OTHER_TABLES = (".csv", ".tsv", ".json", ".txt", ".gz", ".zst", ".arrow", ".xlsx")

# The reward of a recipe that stands for the verifier that each problem names.
PROBLEM_VERIFIER = "problem"


@dataclass(frozen=True, slots=True)
class FunctionReference:
    """Where a named function lives: `function` in `module`, or in the file `path`.

    Picklable, and it does not depend on the current folder, so a worker process can `load()` it
    again. `text` is what the recipe says.
    """

    text: str
    function: str
    module: str
    path: str | None = None

    def load(self, *, key: str = "") -> Callable[..., Any]:
        """Import the module (once per process) and return the function."""
        module = self._module(key)
        found = getattr(module, self.function, None)
        if found is None:
            names = _functions_of(module)
            known = f"; it has {', '.join(names)}" if names else "; it has no functions"
            raise _error(
                key,
                f"{self.text!r}: no function {self.function!r} in {self.path or self.module}"
                f"{nearest(self.function, names)}{known}",
            )
        if not callable(found):
            place, kind = self.path or self.module, type(found).__name__
            raise _error(
                key, f"{self.text!r}: {self.function!r} is not a function but {kind} ({place})"
            )
        function: Callable[..., Any] = found
        return function

    def _module(self, key: str) -> ModuleType:
        try:
            return importlib.import_module(self.module)
        except ModuleNotFoundError as error:
            if self.path is None and error.name and f"{self.module}.".startswith(f"{error.name}."):
                raise _error(
                    key,
                    f"{self.text!r}: there is no module {error.name!r}; give a shipped name, "
                    "path/to/file.py:function or an installed package.module:function",
                ) from None
            raise self._import_error(key, error) from error
        except (Exception, SystemExit) as error:  # the user's file may raise anything
            raise self._import_error(key, error) from error

    def _import_error(self, key: str, error: BaseException) -> RecipeError:
        """One line for what the module raised, with the last line of its own that was running."""
        said = raised(error, self.path)
        where = "" if ", line " in said else f"{self.path or self.module}: "
        return _error(key, f"{self.text!r} cannot be imported: {where}{said}")


def find(text: str, kind: ExtensionKind, *, key: str = "") -> FunctionReference:
    """Say where the function named by `text` lives, without importing it.

    Raises RecipeError when it is no shipped name, and the file does not exist.
    """
    place, _, function = text.partition(":")
    function = function or _FUNCTION[kind]
    if place.endswith(".py") or "/" in place:
        path = Path(os.path.expanduser(place))
        if not path.is_file():
            what = no_table(path) if kind == "source" and path.is_dir() else missing(path)
            raise _error(key, f"{text!r}: {what}")
        if path.suffix != ".py":
            tables = f", nor a {' or '.join(TABLES)} table" if kind == "source" else ""
            raise _error(key, f"{text!r} is no Python file{tables}; convert it, or name another")
        path = path.resolve()
        return FunctionReference(text, function, module_name(path), str(path))
    if place in shipped(kind):
        return FunctionReference(text, function, f"{_PACKAGE[kind]}.{place}")
    if Path(place).suffix in _OTHER_TABLES and kind == "source":
        raise _error(key, f"{text!r}: a table is a {' or '.join(TABLES)} file; convert it to one")
    if ("." in place or ":" in text) and all(part.isidentifier() for part in place.split(".")):
        return FunctionReference(text, function, place)
    if kind == "source" and Path(place).is_dir():
        raise _error(key, f"{text!r}: {no_table(Path(place))}")
    names = shipped(kind)
    if Path(f"{place}.py").is_file():
        raise _error(key, f"no {kind} is called {text!r} (did you mean '{place}.py'?)")
    known = f"shipped: {', '.join(names)}; " if names else ""
    raise _error(
        key,
        f"no {kind} is called {text!r}{nearest(text, names)}; {known}"
        f"or name your own as path/to/file.py:{_FUNCTION[kind]}",
    )


def check_defined(text: str, kind: ExtensionKind, *, key: str = "") -> None:
    """Refuse a name that stands for nothing, as far as its file tells without being run."""
    reference = find(text, kind, key=key)
    if reference.path is None:
        return
    source = Path(reference.path).read_text(encoding="utf-8", errors="replace")
    try:
        ast.parse(source)
    except (SyntaxError, ValueError) as error:
        raise _error(key, f"{text!r} cannot be imported: {raised(error)}") from None
    if reference.function not in source:
        raise _error(key, f"{text!r}: no function {reference.function!r} in {reference.path}")


def resolve(text: str, kind: ExtensionKind, *, key: str = "") -> Callable[..., Any]:
    """The function that `text` names, imported. `key` is the recipe's key, for the error."""
    return find(text, kind, key=key).load(key=key)


@cache
def shipped(kind: ExtensionKind) -> tuple[str, ...]:
    """Names of the rewards or sources that ship: files that define `reward` or `load`."""
    if kind not in _PACKAGE:
        return ()
    folder = shipped_folder(_PACKAGE[kind].removeprefix("r1lab."))
    return tuple(
        sorted(
            name
            for name, path in _modules_in(folder).items()
            if not name.startswith("_") and _defines(path, _FUNCTION[kind])
        )
    )


def _modules_in(folder: Path) -> dict[str, Path]:
    """The file that each module or package of a folder starts with, by the module's name."""
    packages = {path.parent.name: path for path in folder.glob("*/__init__.py")}
    return {path.stem: path for path in folder.glob("*.py")} | packages


def shipped_folder(name: str) -> Path:
    """The folder `rewards`, `data` or `recipes`: in an installed r1lab, or in its checkout."""
    package = Path(__file__).resolve().parents[1]
    inside = package / name
    return inside if inside.is_dir() else package.parent / name


def load_problems(
    settings: SourceSettings, split: Split, seed: int = 0, *, key: str = "problems.sources"
) -> ProblemStream:
    """The problems of one source: endless, by index, deterministic in (seed, index).

    A source that ends (a list, a table, a generator) starts again: tables and lists in a new
    order each time round, other iterables in their own.
    """
    name = settings.source
    if name.endswith(TABLES):
        load: Callable[..., Any] = FileProblems.load
        arguments: dict[str, Any] = {"path": name, "seed": seed}
    else:
        load = resolve(name, "source", key=f"{key}.source")
        arguments = {"seed": seed}
    problems = _call_load(load, split, arguments, settings.options, f"{key}.options")
    if isinstance(problems, Sequence):
        if not problems:
            hint = _why_empty(problems, split)
            raise _error(key, f"{name!r} has no problems for the split {split!r}{hint}")
        return ShuffledProblems(problems, seed)
    if hasattr(problems, "__getitem__"):
        stream: ProblemStream = problems
        return stream
    if isinstance(problems, Iterable):
        return ReplayedProblems(problems, f"{key}: {name!r}")
    raise _error(
        f"{key}.source", f"{name!r}: load() returned {type(problems).__name__}, not problems"
    )


def load_mixture(
    settings: ProblemSettings,
    split: Split,
    seed: int | None = None,
    *,
    keep: Callable[[Problem], bool] | None = None,
) -> ProblemMixture:
    """All sources of a recipe in one stream. `seed` defaults to the one in the recipe.

    Of tables and lists only the rows that `keep` takes; RecipeError where it takes none.
    """
    seed = settings.seed if seed is None else seed
    streams = [
        load_problems(source, split, seed, key=f"problems.sources.{index}")
        for index, source in enumerate(settings.sources)
    ]
    for index, stream in enumerate(streams):
        if keep is None or not isinstance(stream, ShuffledProblems):
            continue
        rows = stream.problems
        kept = (
            rows.where(keep) if isinstance(rows, TableRows) else [row for row in rows if keep(row)]
        )
        streams[index] = ShuffledProblems(kept, seed)
        if not kept:
            raise RecipeError(
                f"problems.sources.{index}: none of the {len(rows)} rows of "
                f"{settings.sources[index].source!r} for the split {split!r} fits the context; "
                "lower sampling.max_tokens, or take other problems"
            )
    weights = [source.weight for source in settings.sources]
    return ProblemMixture(streams, weights, seed, names=[s.source for s in settings.sources])


def load_training(
    settings: ProblemSettings, keep: Callable[[Problem], bool] | None = None
) -> ProblemMixture | Curriculum:
    """What a run trains on: its mixture, or that by levels where the recipe has a curriculum."""
    mixture = load_mixture(settings, "train", keep=keep)
    return Curriculum(mixture, settings.curriculum) if settings.curriculum else mixture


def _call_load(
    load: Callable[..., Any],
    split: Split,
    arguments: dict[str, Any],
    options: Mapping[str, Any],
    key: str,
) -> Any:
    """load(split, **arguments, **options), the seed only where load() takes one."""
    try:
        parameters = inspect.signature(load).parameters
    except (TypeError, ValueError):  # of something built in
        raise _error(key, f"{load!r} is no load(split, ...) function of Python") from None
    takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    names = [
        name
        for name, p in list(parameters.items())[1:]
        if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD) and name not in arguments
    ]
    for option in options:
        if option in arguments or not (takes_all or option in names):
            allowed = f"allowed: {', '.join(names)}" if names else "this source takes none"
            raise _error(f"{key}.{option}", f"unknown option{nearest(option, names)}; {allowed}")
    if not takes_all:
        arguments = {name: value for name, value in arguments.items() if name in parameters}
    try:
        return load(split, **arguments, **options)
    except R1labError:
        raise
    except (TypeError, ValueError, OSError) as error:  # the options are the user's
        raise _error(key, " ".join(str(error).split())) from error
    except Exception as error:  # and so is the code
        raise _error(key, raised(error)) from error


def _why_empty(problems: Sequence[Problem], split: Split) -> str:
    """What to do about a table that has no problems for a split."""
    if not isinstance(problems, TableRows):
        return ""
    if not problems.num_read:
        return "; the file is empty: write one problem a row"
    if split == "test":
        return "; raise options.test_fraction or give an options.test_file"
    return f"; all of its {problems.num_read} are held out: lower options.test_fraction"


def _error(key: str, message: str) -> RecipeError:
    return RecipeError(f"{key}: {message}" if key else message)


def _functions_of(module: ModuleType) -> list[str]:
    """Public functions that the module itself defines."""
    return [
        name
        for name, value in vars(module).items()
        if inspect.isfunction(value)
        and value.__module__ == module.__name__
        and not name.startswith("_")
    ]


def _defines(path: Path, function: str) -> bool:
    """Whether the file defines (or imports) the name at its top, read without importing it."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        names: list[str] = []
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names = [node.name]
        elif isinstance(node, ast.Assign):
            names = [target.id for target in node.targets if isinstance(target, ast.Name)]
        elif isinstance(node, ast.ImportFrom):
            names = [alias.asname or alias.name for alias in node.names]
        if function in names:
            return True
    return False
