"""Where a model or a dataset came from: a record beside it, and the tree that records make.

An artefact is a model's folder, or a dataset (a file or a folder). Its record is `lineage.json` in
the folder, or FILE.lineage.json beside a file. A record names its parents with the SHA-256 that
they had, and holds what they knew of their own: the tree still prints when a parent is gone.

    write_lineage("out/dev1", stage="sft", parents=["nano", "out/chains.parquet"], recipe=recipe)
    tree = lineage_tree("out/dev1")

Where no record was written, a run's checkpoint is described by its run folder, and the base that
ships by its card. Nothing here imports torch.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, TypeAdapter, ValidationError

from r1lab.config.reading import git_commit, installed_versions
from r1lab.hashing import RECORD, HashedKind, artefact_sha256, kind_of
from r1lab.hints import missing
from r1lab.model.load import shipped_models
from r1lab.run_folder import RunFolder
from r1lab.types import R1labError

State = Literal["ok", "changed", "gone", "unknown"]

_CHECKPOINT = re.compile(r"step-(\d+)")
_MAX_DEPTH = 64  # of a tree: no pipeline comes near, and a file that names itself would never end


@dataclass(frozen=True, slots=True)
class Figure:
    """pass@1 on a suite; `low` and `high` are its interval, None where none was kept."""

    suite: str
    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, slots=True)
class Parent:
    """What an artefact was made from.

    `path` is relative to the folder that the record lies in, or the name of a base that ships or
    stands on the hub. `sha256` is None where the bytes were not at hand. `lineage` is the parent's
    own record as it was then, without its recipe.
    """

    path: str
    name: str
    sha256: str | None = None
    lineage: LineageRecord | None = None


@dataclass(frozen=True, slots=True)
class LineageRecord:
    """lineage.json.

    recipe         the resolved recipe as plain values, where the stage had one; recipe_sha256 of it
    versions       of r1lab and the packages that decide numbers, as run folders record them
    template       the prompt's name in r1lab.prompts, where the model has one that it was made for
    figures        pass@1 by suite, where it was evaluated
    created        UTC, ISO 8601; None where it is not known
    """

    name: str
    kind: HashedKind
    stage: str
    created: str | None = None
    sha256: str | None = None
    recipe: dict[str, Any] | None = None
    recipe_sha256: str | None = None
    versions: dict[str, str] = field(default_factory=dict)
    commit: str | None = None
    template: str | None = None
    figures: tuple[Figure, ...] = ()
    parents: tuple[Parent, ...] = ()


@dataclass(frozen=True, slots=True)
class LineageNode:
    """A record in its tree. `state` holds the artefact of today against the recorded SHA-256.

    unknown: nothing was recorded to hold it against, or it stands on the hub.
    """

    record: LineageRecord
    path: str
    state: State
    parents: tuple[LineageNode, ...]

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON; parents once, as nodes."""
        record = asdict(self.record)
        record["parents"] = [node.as_dict() for node in self.parents]
        return {**record, "path": self.path, "state": self.state}


_RECORD = TypeAdapter(LineageRecord)


def write_lineage(
    path: str | Path,
    *,
    stage: str,
    parents: Sequence[str | Path] = (),
    recipe: BaseModel | Mapping[str, Any] | None = None,
    name: str | None = None,
    template: str | None = None,
    figures: Sequence[Figure] = (),
) -> LineageRecord:
    """Write the record of the artefact at `path`, whole or not at all, and return it.

    `parents` are paths (of a run folder: its newest model), names of shipped bases or hub names.
    Call it when the artefact is whole: its bytes are hashed now. Raises R1labError for what is not
    there.
    """
    place = Path(path)
    kind = kind_of(place)
    home = place if place.is_dir() else place.parent
    plain = recipe.model_dump(mode="json") if isinstance(recipe, BaseModel) else recipe
    record = LineageRecord(
        name=name or place.resolve().name,
        kind=kind,
        stage=stage,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        sha256=artefact_sha256(place),
        recipe=None if plain is None else dict(plain),
        recipe_sha256=None if plain is None else _recipe_sha256(plain),
        versions=installed_versions(),
        commit=git_commit(),
        template=template,
        figures=tuple(figures),
        parents=tuple(_parent(parent, home) for parent in parents),
    )
    file = _record_path(place)
    temporary = file.with_name(file.name + ".tmp")
    temporary.write_text(json.dumps(asdict(record), indent=1) + "\n", encoding="utf-8")
    os.replace(temporary, file)
    return record


def read_lineage(path: str | Path) -> LineageRecord | None:
    """The record of an artefact, or what its run folder or card tells; None where nothing does.

    Raises R1labError for a file that is no record.
    """
    place = Path(path)
    file = _record_path(place)
    if file.is_file():
        try:
            return _RECORD.validate_json(file.read_bytes())
        except (ValidationError, RecursionError) as error:
            reason = " ".join(str(error).split())[:200]
            raise R1labError(f"{file} is no lineage record: {reason}") from None
    if (run := _run_of(place)) is not None:
        return _of_run(run, place)
    if (place / "adapter_config.json").is_file():
        return _of_adapter(place)
    return _of_card(place) if (place / "card.json").is_file() else None


def lineage_tree(path: str | Path) -> LineageNode:
    """The artefact at `path` with all that it was made from; a run folder is its newest model.

    Bytes are hashed, so that what changed since is seen. Raises R1labError where there is nothing.
    """
    place = find_artefact(path)
    record = read_lineage(place)
    if record is None:
        record = LineageRecord(name=place.resolve().name, kind=kind_of(place), stage="unknown")
    return _node(record, place, record.sha256, str(path), 0)


def find_artefact(path: str | Path) -> Path:
    """The folder or file behind a path, a run folder, a checkpoint or a shipped name."""
    place = Path(path).expanduser()
    if not place.exists():
        if str(path) in shipped_models():
            return shipped_models()[str(path)]
        raise R1labError(missing(place, what="model or dataset"))
    if place.is_dir() and not (place / "config.json").is_file():
        if (place / "model" / "config.json").is_file():  # a checkpoint, or what pre-training left
            return place / "model"
        if (place / "recipe.yaml").is_file() and not (place / RECORD).is_file():
            return RunFolder(place).trained_model()
    return place


def figures_of(place: Path) -> tuple[Figure, ...]:
    """pass@1 of the model in `place` by suite: as recorded, else of the results that lie beside."""
    record = read_lineage(place)
    return (record.figures if record else ()) or tuple(_figures_beside(place))


def results_beside(place: Path) -> Iterator[dict[str, Any]]:
    """What `r1lab eval` and runs wrote of the model in `place`: its run's at that step, or its own.

    A result is as `EvalResult.as_dict` makes it.
    """
    run = _run_of(place)
    if run is None:
        yield from map(_json, sorted(place.glob("eval/*.json")))
        if (place.parent / "stage.json").is_file():  # of a pipeline, which evaluated it
            yield from map(_json, sorted(place.parent.glob("suites/*.json")))
        return
    step = place.resolve().parent.name
    at_step = run.eval_path / f"step-{int(step.removeprefix('step-')):06d}.json"
    if at_step.is_file():
        yield _json(at_step)
    of_stage = run.path.glob("suites/*.json") if (run.path / "stage.json").is_file() else ()
    for file in sorted((*run.eval_path.glob("suites/*.json"), *of_stage)):
        result = _json(file)
        if step in Path(str((result.get("plan") or {}).get("model"))).parts:
            yield result


def tree_lines(node: LineageNode) -> list[str]:
    """The tree in box characters, the artefact itself first; a line for each."""
    return [_said(node), *_branches(node, "")]


# --- the tree --------------------------------------------------------------------------------


def _node(
    record: LineageRecord, place: Path | None, sha256: str | None, path: str, depth: int
) -> LineageNode:
    """`place` is where the artefact lies now, None where it does not."""
    state: State = "unknown"
    if place is not None:
        today = artefact_sha256(place)
        state = "unknown" if sha256 is None else "ok" if today == sha256 else "changed"
        if state != "changed":
            record = replace(record, sha256=today, figures=record.figures or figures_of(place))
    elif sha256 is not None or not _is_hub_name(path):
        state = "gone"
    home = place if place is None or place.is_dir() else place.parent
    below = record.parents if depth < _MAX_DEPTH else ()
    return LineageNode(record, path, state, tuple(_parent_node(p, home, depth + 1) for p in below))


def _parent_node(parent: Parent, home: Path | None, depth: int) -> LineageNode:
    place = _resolve(parent.path, home)
    record = parent.lineage
    # What the artefact was made from is told by the record of then; where the bytes are still
    # those, its own record knows more (its recipe, what it was evaluated on since).
    unchanged = place is not None and parent.sha256 in (None, artefact_sha256(place))
    if place is not None and (unchanged or record is None):
        record = read_lineage(place) or record
    if record is None:
        kind: HashedKind = "model" if place is None else kind_of(place)
        record = LineageRecord(
            name=parent.name, kind=kind, stage="base" if kind == "model" else "data"
        )
    record = replace(record, name=parent.name, sha256=parent.sha256 or record.sha256)
    return _node(record, place, parent.sha256, parent.path, depth)


def _resolve(path: str, home: Path | None) -> Path | None:
    if path in shipped_models():
        return shipped_models()[path]
    place = Path(path) if home is None else home / path
    return place if place.exists() and (home is not None or place.is_absolute()) else None


def _is_hub_name(path: str) -> bool:
    return re.fullmatch(r"[A-Za-z0-9][\w.-]*/[\w.-]+", path) is not None


def _said(node: LineageNode) -> str:
    record = node.record
    words = [f"{record.name} ({record.stage})"]
    words += [_figure(figure) for figure in record.figures]
    if record.sha256:
        words.append(record.sha256[:12])
    if node.state in ("changed", "gone"):
        words.append("changed since" if node.state == "changed" else "gone")
    return "  ".join(words)


def _figure(figure: Figure) -> str:
    said = f"{figure.suite} {figure.value:.3f}"
    if figure.low is None or figure.high is None:
        return said
    return f"{said} [{figure.low:.3f}, {figure.high:.3f}]"


def _branches(node: LineageNode, indent: str) -> Iterator[str]:
    for place, parent in enumerate(node.parents):
        last = place == len(node.parents) - 1
        yield f"{indent}{'└── ' if last else '├── '}{_said(parent)}"
        yield from _branches(parent, f"{indent}{'    ' if last else '│   '}")


# --- records ---------------------------------------------------------------------------------


def _record_path(place: Path) -> Path:
    return place / RECORD if place.is_dir() else place.with_name(f"{place.name}.{RECORD}")


def _parent(path: str | Path, home: Path) -> Parent:
    named = str(path)
    if not Path(path).expanduser().exists() and _is_hub_name(named):
        return Parent(named, named)
    place = find_artefact(path)
    record = read_lineage(place)
    shipped = shipped_models().get(named) == place
    if record is not None:
        record = replace(record, recipe=None, figures=figures_of(place))
    return Parent(
        path=named if shipped else os.path.relpath(place.resolve(), home.resolve()),
        name=named if shipped else (record.name if record else place.resolve().name),
        sha256=artefact_sha256(place),
        lineage=record,
    )


def _recipe_sha256(recipe: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()


def _run_of(place: Path) -> RunFolder | None:
    """The run folder whose checkpoint a model's folder is: RUN/checkpoints/step-N/model."""
    parts = place.resolve().parents
    if len(parts) < 3 or parts[1].name != "checkpoints" or not _CHECKPOINT.fullmatch(parts[0].name):
        return None
    return RunFolder(parts[2]) if (parts[2] / "recipe.yaml").is_file() else None


def _of_run(run: RunFolder, place: Path) -> LineageRecord:
    """What the files of a run tell of its model. They keep no digest of the base."""
    recipe = run.recipe()
    versions = run.versions()
    commit = versions.pop("commit", None)
    changed = (place / "config.json").stat().st_mtime
    base = str((recipe.get("model") or {}).get("path") or "")
    return LineageRecord(
        name=f"{recipe.get('name', run.path.resolve().name)} {place.resolve().parent.name}",
        kind="model",
        stage="reinforcement learning",
        created=datetime.fromtimestamp(changed, UTC).isoformat(timespec="seconds"),
        recipe=recipe,
        recipe_sha256=_recipe_sha256(recipe),
        versions=versions,
        commit=None if commit == "unknown" else commit,
        template=recipe.get("template"),
        parents=(_base(base, place),) if base else (),
    )


def _of_adapter(place: Path) -> LineageRecord:
    """An adapter of peft's, which names its base."""
    base = str(_json(place / "adapter_config.json").get("base_model_name_or_path") or "")
    parents = (_base(base, place),) if base else ()
    return LineageRecord(place.resolve().name, "model", "adapter", parents=parents)


def _base(base: str, place: Path) -> Parent:
    """A base by what its child calls it, from the folder that the child was made in."""
    folder = Path(base).expanduser().resolve()
    if base in shipped_models() or not folder.is_dir():
        return Parent(base, base)
    return Parent(os.path.relpath(folder, place.resolve()), folder.name)


def _of_card(place: Path) -> LineageRecord:
    """The base that ships: what pre-training wrote into its card."""
    card = _json(place / "card.json")
    kinds = (card.get("scores") or {}).get("kinds") or {}
    return LineageRecord(
        name=str(card.get("size", place.name)),
        kind="model",
        stage="pre-training",
        figures=tuple(
            Figure(name, scores["pass_at_1"])
            for name, scores in kinds.items()
            if scores.get("pass_at_1") is not None
        ),
    )


def _figures_beside(place: Path) -> Iterator[Figure]:
    for result in results_beside(place):
        estimate = (result.get("overall") or {}).get("pass_at_1")
        if isinstance(estimate, dict):
            suite = str(result.get("suite") or "held-out")
            yield Figure(suite, estimate["value"], estimate["low"], estimate["high"])


def _json(file: Path) -> dict[str, Any]:
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise R1labError(f"{file} is no JSON: {error}") from None
    return values if isinstance(values, dict) else {}
