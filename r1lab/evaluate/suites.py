"""Suites: named sets of problems with the way they are asked (`data/suites.yaml`).

A suite is named in one of these ways; the first match applies:
    gsm8k, boxes-hard, ...   a suite of data/suites.yaml; `own`: every suite of that group
    problems.jsonl           (or .parquet) rows with a question and an answer
    owner/name               a set from the hub with such rows (its split `test`)
    gym:NAME                 a generator of reasoning-gym, with its own scoring
    boxes, file.py:load      any problem source, its held-out problems
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

from r1lab.config.recipe import SourceSettings
from r1lab.hints import nearest
from r1lab.problems.hub import HUB_NAME
from r1lab.problems.mixture import ShuffledProblems, Split
from r1lab.problems.registry import find, load_problems, resolve, shipped, shipped_folder
from r1lab.problems.tables import TABLES
from r1lab.prompts import AnswerPlace
from r1lab.types import Problem, R1labError

ENDLESS = 240  # problems of a source without an end, where nothing else is said
GYM = "gym:"


@dataclass(frozen=True, slots=True)
class Suite:
    """Problems to evaluate on, and how they are asked.

    `num_problems` None: all of a finite set. `paper_k` and `max_tokens` are defaults of the
    evaluation, `answer_in` where a chat or few-shot response has its answer.
    """

    name: str
    source: str
    options: Mapping[str, Any] = field(default_factory=dict)
    num_problems: int | None = None
    paper_k: int = 16
    max_tokens: int = 512
    answer_in: AnswerPlace = "box"


def find_suites(
    name: str, *, path: str | None = None, columns: Mapping[str, str] | None = None
) -> list[Suite]:
    """Return the suites of a name; `path` replaces the location of a set's data.

    `columns` maps question, answer and id to the columns of a table or a hub's set. Raises
    R1labError for an unknown name.
    """
    known = _shipped_suites()
    if name in known:
        found = [known[name]]
    elif group := [known[member] for member in _groups().get(name, [])]:
        found = group
    else:
        found = [_unnamed(name, columns or {})]
    if columns and name in known:
        raise R1labError(f"--columns: the suite {name!r} knows its columns already")
    if path is not None:
        if not all(_takes(suite, "path") for suite in found):
            raise R1labError(f"--path: the problems of {name!r} are generated, not read")
        found = [replace(suite, options={**suite.options, "path": path}) for suite in found]
    return found


def suite_problems(
    suite: Suite, *, split: Split = "test", num: int | None = None, seed: int = 0, form: str = ""
) -> list[Problem]:
    """Return `num` different problems of a suite (default: its own number), shuffled by `seed`.

    `form` is `compact` or `words`, for sources that have both. Raises R1labError where there are
    fewer.
    """
    options = dict(suite.options)
    if form and _takes(suite, "form"):
        options = {"form": form, **options}
    key = f"--suite {suite.name}"
    stream = load_problems(
        SourceSettings(source=suite.source, options=options), split, seed, key=key
    )
    size = len(stream.problems) if isinstance(stream, ShuffledProblems) else None
    wanted = num or suite.num_problems or size or ENDLESS
    found: dict[str, Problem] = {}
    # An endless source with few questions repeats them.
    for index in range(size if size is not None else 100 * wanted):
        problem = stream[index]
        found.setdefault(f"{problem.question}\n{problem.answer}", problem)
        if len(found) == wanted:
            return list(found.values())
    if num is None and size is not None:
        return list(found.values())  # a set that repeats some of its problems
    raise R1labError(f"{key}: {wanted} problems requested, but it has {len(found)}")


def suite_names() -> tuple[str, ...]:
    """The names that ship: suites, then groups of them."""
    return (*_shipped_suites(), *_groups())


@cache
def _rows() -> dict[str, dict[str, Any]]:
    import yaml

    text = (shipped_folder("data") / "suites.yaml").read_text(encoding="utf-8")
    rows: dict[str, dict[str, Any]] = yaml.safe_load(text)
    return rows


def _shipped_suites() -> dict[str, Suite]:
    return {
        name: Suite(name, **{key: value for key, value in row.items() if key != "group"})
        for name, row in _rows().items()
    }


def _groups() -> dict[str, list[str]]:
    groups: dict[str, list[str]] = {}
    for name, row in _rows().items():
        if "group" in row:
            groups.setdefault(row["group"], []).append(name)
    return groups


def _unnamed(name: str, columns: Mapping[str, str]) -> Suite:
    """A suite that does not ship: a table, a set from the hub, a generator, or a source."""
    label = Path(name).stem if name.endswith(TABLES) else name.replace("/", "-")
    if name.endswith(TABLES):
        # All rows: what is named as a suite is held out as a whole.
        options = {"test_file": name, **({"columns": dict(columns)} if columns else {})}
        return Suite(label, name, options, answer_in="whole")
    if name.startswith(GYM):
        return Suite(name.replace(":", "-"), "reasoning_gym", {"dataset": name.removeprefix(GYM)},
                     answer_in="tags")  # fmt: skip
    is_hub = HUB_NAME.fullmatch(name) and ".py" not in name and not Path(name).exists()
    if is_hub and not Path(name).parent.is_dir():
        return Suite(label, "hub", {"path": name, **columns}, answer_in="whole")
    if columns:
        raise R1labError("--columns: only a table or a set from the hub has columns")
    known = (*suite_names(), *shipped("source"))
    if "." not in name and ":" not in name and "/" not in name and name not in known:
        raise R1labError(
            f"--suite: {name!r} is unknown{nearest(name, known)}; there are "
            f"{', '.join(suite_names())}, a file ({', '.join(TABLES)}), a hub name, "
            "gym:NAME, or a problem source"
        )
    return Suite(label.replace(":", "-"), name, answer_in="tags")


def _takes(suite: Suite, option: str) -> bool:
    """Whether the suite's source has this option."""
    if suite.source.endswith(TABLES):
        return False
    find(suite.source, "source", key=f"--suite {suite.name}")
    load = resolve(suite.source, "source", key=f"--suite {suite.name}")
    return option in inspect.signature(load).parameters


def solved(problem: Problem) -> str:
    """A problem's solution in words where its source has one, and its answer."""
    solution = str(problem.metadata.get("solution", ""))
    message = f"The answer is {problem.answer}."
    return f"{solution}\n{message}" if solution else message


def few_shots(suite: Suite, num: int, *, seed: int, form: str) -> Sequence[Problem]:
    """Solved problems of the suite's training split; R1labError where it has none."""
    try:
        return suite_problems(suite, split="train", num=num, seed=seed, form=form)
    except R1labError as error:
        raise R1labError(f"--shots: no training problems of {suite.name}: {error}") from None
