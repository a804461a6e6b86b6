"""Importing a user's file by its path, so that each folder keeps its own siblings.

/p/rewards/mine.py becomes the module `r1lab.problems.user_files./p/rewards.mine`: its folder is a
package.
- `import helper` in it finds /p/rewards/helper.py first, whatever is installed, in the current
  folder, or loaded for a file of another folder; `from .helper import x` and `from ..common import
  x` work too. Python's own modules are not replaced for anybody else.
- A name says where its file is, so objects of such modules can be pickled into worker processes.
- A file that imports its own name (random.py with `import random`) means the other module; a folder
  without `__init__.py` counts only if no module has its name; a package that is importable anyway
  is not loaded a second time, so that its classes are the same for everybody.
Only import statements are redirected: importlib.import_module needs (".helper", __package__).
"""

from __future__ import annotations

import builtins
import importlib
import importlib.util
import os
import sys
from collections.abc import Mapping, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any

__path__: list[str] = []  # makes this module a package, of the folders


def module_name(path: Path) -> str:
    """The name under which the Python file at an absolute path is imported."""
    return f"{_package(path.parent)}.{_quoted(path.stem)}"


def _package(folder: Path) -> str:
    return f"{__name__}.{_quoted(str(folder))}"


def _quoted(text: str) -> str:
    """A dot would end the part of a module's name."""
    return text.replace("%", "%25").replace(".", "%2E")


def _unquoted(text: str) -> str:
    return text.replace("%2E", ".").replace("%25", "%")


class _SiblingLoader(SourceFileLoader):
    """Gives a module an import statement of its own: Python takes it from `__builtins__`."""

    def exec_module(self, module: ModuleType) -> None:
        module.__dict__["__builtins__"] = {**vars(builtins), "__import__": _import}
        super().exec_module(module)


class _Finder(MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if not fullname.startswith(f"{__name__}."):
            return None
        parent, _, tail = fullname.rpartition(".")
        if parent == __name__:
            folder = ModuleSpec(fullname, None, is_package=True)
            folder.submodule_search_locations = [_unquoted(tail)]
            return folder
        return _spec(fullname, list(path or ()))


def _spec(fullname: str, folders: list[str]) -> ModuleSpec | None:
    """Where the module is; a file goes before a package of its name, since files are named."""
    for folder in folders:
        file = os.path.join(folder, f"{_unquoted(fullname.rpartition('.')[2])}.py")
        if os.path.isfile(file):
            return importlib.util.spec_from_file_location(
                fullname, file, loader=_SiblingLoader(fullname, file)
            )
    spec = PathFinder.find_spec(fullname, folders)
    if spec is not None and type(spec.loader) is SourceFileLoader:
        spec.loader = _SiblingLoader(fullname, spec.loader.path)
    return spec


def _import(
    name: str,
    globals: Mapping[str, Any] | None = None,
    locals: Mapping[str, Any] | None = None,
    fromlist: Sequence[str] | None = (),
    level: int = 0,
) -> ModuleType:
    """What an import statement does in a user's file and in its siblings."""
    names = sys._getframe(1).f_globals if globals is None else globals
    package = str(names["__package__"])
    folder, *inside = package.removeprefix(f"{__name__}.").split(".")
    top = name.partition(".")[0]
    if level:
        above = level - 1 - len(inside)
        if above < 0:
            return builtins.__import__(name, names, locals, fromlist or (), level)
        places = [Path(_unquoted(folder)), *Path(_unquoted(folder)).parents]
        target = _package(places[min(above, len(places) - 1)])
        if not name:
            _run_init(importlib.import_module(target))
    else:
        target = f"{__name__}.{folder}"
        if not _is_sibling(f"{target}.{top}", str(names.get("__name__"))):
            return builtins.__import__(name, names, locals, fromlist or (), 0)
    found = builtins.__import__(f"{target}.{name}".rstrip("."), names, locals, fromlist or (), 0)
    return found if fromlist else sys.modules[f"{target}.{top}"]


def _is_sibling(fullname: str, importing: str) -> bool:
    """Whether `import top` means the module beside the file, as this module's docstring has it."""
    folder, _, top = fullname.rpartition(".")
    if top == "r1lab" or fullname == importing:
        return False
    if fullname in sys.modules:
        return True
    spec = _spec(fullname, [_unquoted(folder.removeprefix(f"{__name__}."))])
    if spec is None or spec.submodule_search_locations is None:
        return spec is not None
    try:
        other = importlib.util.find_spec(top)
    except ValueError:  # a module that was put into sys.modules by hand
        other = sys.modules[top].__spec__
    if other is None:
        return True
    return spec.origin is not None and spec.origin != other.origin


def _run_init(package: ModuleType) -> None:
    """`from . import NAME` may mean a name of the folder's `__init__.py`, which runs once."""
    (folder,) = package.__path__
    path = os.path.join(folder, "__init__.py")
    if os.path.isfile(path) and vars(package).get("__file__") is None:
        package.__file__ = path
        _SiblingLoader(package.__name__, path).exec_module(package)


sys.meta_path.insert(0, _Finder())
