"""Imports run one way, and what is light stays light.

The rules are of packages: a new file in a package needs no entry here. rewards/ and data/ know only
the records, the prompts and the readers of tables, and the library reaches them by name.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# From the bottom to the top: a module imports from its own level and from those below. The longest
# entry that a module's name starts with decides; single modules are entries where a package has a
# part that lower levels use.
LEVELS = (
    ("r1lab", "r1lab.types"),
    (
        "r1lab.cli.arguments",
        "r1lab.hints",
        "r1lab.jobs",
        "r1lab.pages",
        "r1lab.precision",
        "r1lab.prompts",
        "r1lab.report.figures",
        "r1lab.report.progress",
        "r1lab.report.text",
        "r1lab.run_folder",
        "r1lab.shortages",
        "r1lab.thinking",
    ),
    ("r1lab.config", "r1lab.launch", "r1lab.problems"),
    ("r1lab.config.diff", "r1lab.hashing", "r1lab.lineage", "r1lab.model"),
    ("r1lab.rollout", "r1lab.verify"),
    ("r1lab.grpo",),
    ("r1lab.evaluate",),
    ("r1lab.grpo.trainer", "r1lab.monitor", "r1lab.report"),
    ("r1lab.chat", "r1lab.doctor", "r1lab.stages"),
    ("r1lab.estimate", "r1lab.pipeline", "r1lab.reproduce"),
    ("r1lab.cli",),
    ("r1lab.__main__",),
)
# What a command can import before it knows whether it needs torch.
LIGHT = (
    "r1lab",
    "r1lab.cli",
    "r1lab.config",
    "r1lab.doctor.examine",
    "r1lab.estimate.recipe",
    "r1lab.estimate.table",
    "r1lab.hashing",
    "r1lab.hints",
    "r1lab.jobs",
    "r1lab.launch",
    "r1lab.lineage",
    "r1lab.model.files",
    "r1lab.pages",
    "r1lab.pipeline.plan",
    "r1lab.precision",
    "r1lab.problems",
    "r1lab.prompts",
    "r1lab.report.paper",
    "r1lab.rollout.limits",
    "r1lab.rollout.server.info",
    "r1lab.run_folder",
    "r1lab.shortages",
    "r1lab.stages.rows",
    "r1lab.thinking",
    "r1lab.types",
    "r1lab.verify",
)
HEAVY = ("torch", "vllm", "trl", "transformers", "peft", "accelerate", "datasets")


def modules(folder: str, package: str) -> dict[str, Path]:
    """The modules below a folder, by their names in the package."""
    found = {}
    for path in sorted((ROOT / folder).rglob("*.py")):
        parts = path.relative_to(ROOT / folder).with_suffix("").parts
        parts = parts[:-1] if parts[-1] == "__init__" else parts
        found[".".join((package, *parts))] = path
    return found


LIBRARY = modules("r1lab", "r1lab")
COPIED = {**modules("rewards", "r1lab.rewards"), **modules("data", "r1lab.data")}


@cache
def imports(path: Path) -> tuple[tuple[str, bool], ...]:
    """(imported module, whether at the top of the file), without those for types only."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return tuple(_imports(tree, at_top=True))


def _imports(node: ast.AST, *, at_top: bool) -> Iterator[tuple[str, bool]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from ((alias.name, at_top) for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            assert child.level == 0, "relative imports hide the arrows"
            module = child.module or ""
            # `from r1lab.grpo import loss` imports r1lab.grpo.loss.
            names = [f"{module}.{alias.name}" for alias in child.names]
            yield from ((name if name in LIBRARY else module, at_top) for name in names)
        elif not (isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)):
            inside = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            yield from _imports(child, at_top=at_top and not inside)


def level(module: str) -> int:
    """The level of the longest entry of LEVELS that the module's name starts with."""
    entries = [
        (len(entry), number)
        for number, group in enumerate(LEVELS)
        for entry in group
        if module == entry or (entry != "r1lab" and module.startswith(f"{entry}."))
    ]
    assert entries, f"{module} has no level in {__file__}: decide where it belongs"
    return max(entries)[1]


@pytest.mark.parametrize("module", LIBRARY)
def test_a_module_imports_nothing_from_above(module):
    for imported, _ in imports(LIBRARY[module]):
        if imported.split(".")[0] == "r1lab":
            assert level(imported) <= level(module), f"{module} imports {imported}"


def test_no_module_imports_itself_through_others():
    graph = {
        name: [m for m, at_top in imports(path) if m in LIBRARY and m != name and at_top]
        for name, path in LIBRARY.items()
    }
    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, " -> ".join((*trail, name))
        if name not in done:
            for following in graph[name]:
                visit(following, (*trail, name))
            done.add(name)

    for name in graph:
        visit(name, ())


@pytest.mark.parametrize("module", LIBRARY)
def test_rewards_and_data_are_reached_by_name_only(module):
    for imported, _ in imports(LIBRARY[module]):
        assert not imported.startswith(("r1lab.rewards", "r1lab.data")), f"{module}: {imported}"


@pytest.mark.parametrize("module", COPIED)
def test_rewards_and_data_know_only_records_and_prompts(module):
    own = ".".join(module.split(".")[:2])
    for imported, _ in imports(COPIED[module]):
        top = imported.split(".")[0]
        assert top not in HEAVY, f"{module} imports {imported}"
        if top == "r1lab":
            known = ("r1lab.types", "r1lab.prompts", "r1lab.problems.tables", "r1lab.problems.hub")
            allowed = imported in known or imported.startswith(own)
            assert allowed, f"{module} imports {imported}"


@pytest.mark.parametrize(
    ("package", "room"), [("vllm", "r1lab.rollout."), ("trl", "r1lab.stages.")]
)
def test_packages_that_stay_in_one_room_and_load_when_used(package, room):
    for module, path in LIBRARY.items():
        for imported, at_top in imports(path):
            if imported.split(".")[0] == package:
                assert module.startswith(room), f"{module} imports {imported}"
                assert not at_top, f"{module} imports {imported} before it is used"


def loaded_by(code: str) -> set[str]:
    """Which heavy packages a fresh interpreter has loaded after the code."""
    report = f"import sys; print([name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\n{report}"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return set(ast.literal_eval(done.stdout.splitlines()[-1]))


def test_light_modules_load_nothing_heavy():
    light = [
        module
        for module in LIBRARY
        if any(module == entry or module.startswith(f"{entry}.") for entry in LIGHT[1:])
    ]
    assert {*LIGHT} <= {"r1lab", *light}
    assert loaded_by(f"import {', '.join(light)}") == set()


def test_rewards_and_data_load_nothing_heavy():
    assert loaded_by(f"import {', '.join(COPIED)}") == set()


@pytest.mark.parametrize(
    "arguments",
    [[], ["--help"], ["completion", "bash"], ["train", "--help"], ["train", "--keys"],
     ["show", "--help"],
     ["train", "quickstart", "--dry-run"], ["train", "quickstart", "--no.such", "1"],
     ["estimate", "quickstart", "--gpus", "8xH100"]],
)  # fmt: skip
def test_the_command_line_loads_nothing_heavy_for(arguments):
    code = f"""
from r1lab.cli.app import main
try:
    main({arguments})
except SystemExit:
    pass"""
    assert loaded_by(code) == set()
