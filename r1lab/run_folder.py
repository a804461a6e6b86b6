"""A run folder: the files that a run writes and everything later reads.

    recipe.yaml            the resolved recipe
    metrics.jsonl          a line a step; nothing in it depends on the clock
    timings.jsonl          a line a step: what does
    rollouts/step-N.parquet  every sampled group with its verdicts and the advantages trained with
    eval/step-N.json       evaluations, every sample kept
    summary.json           the run in a few figures
    preflight.json         whether it could learn, where that was asked before it began
    checkpoints/           the trainer's own
    events.jsonl           starts, resumes, warnings and faults, each with its time
    faulty/                batches that a run could not learn from, kept for study

Lines are flushed one by one, whole files are put in place whole: what an interrupted run leaves can
be read. `truncate` takes back what came after the step that a run resumes from, so that no line
stands twice. Numbers are written with all their digits; what is not finite is null.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from itertools import takewhile
from pathlib import Path
from typing import Any

from r1lab.types import R1labError, ScoredGroup, ScoringFailure

RolloutRow = dict[str, Any]

_STEP = "step-{:06d}"


class RunFolder:
    """One run's folder. Only the main process writes; anyone reads."""

    def __init__(self, path: str | Path) -> None:
        """Name the folder; nothing is made or read yet."""
        self.path = Path(path)

    @classmethod
    def create(cls, path: str | Path) -> RunFolder:
        """The folder of a run that writes, made where it is missing."""
        folder = cls(path)
        for part in (folder.path, folder.rollouts_path, folder.eval_path):
            part.mkdir(parents=True, exist_ok=True)
        return folder

    @classmethod
    def open(cls, path: str | Path) -> RunFolder:
        """The folder of a run to be read; R1labError where there is none."""
        folder = cls(path)
        if not folder.path.is_dir():
            raise R1labError(f"no run folder {folder.path}")
        if not folder.metrics_path.exists() and not folder.recipe_path.exists():
            raise R1labError(
                f"{folder.path} is no run folder: it has neither recipe.yaml nor metrics.jsonl"
            )
        return folder

    @property
    def recipe_path(self) -> Path:
        return self.path / "recipe.yaml"

    @property
    def metrics_path(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def timings_path(self) -> Path:
        return self.path / "timings.jsonl"

    @property
    def rollouts_path(self) -> Path:
        return self.path / "rollouts"

    @property
    def eval_path(self) -> Path:
        return self.path / "eval"

    @property
    def checkpoints_path(self) -> Path:
        return self.path / "checkpoints"

    @property
    def summary_path(self) -> Path:
        return self.path / "summary.json"

    @property
    def curves_path(self) -> Path:
        return self.path / "curves.png"

    @property
    def events_path(self) -> Path:
        return self.path / "events.jsonl"

    @property
    def faulty_path(self) -> Path:
        return self.path / "faulty"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other runs out of this folder while inside; R1labError where one is in it.

        The lock is the kernel's and ends with the process, however that ends.
        """
        import fcntl

        self.path.mkdir(parents=True, exist_ok=True)
        with (self.path / ".lock").open("a+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.seek(0)
                raise R1labError(
                    f"output: another run ({file.read().strip()}) is writing into {self.path}; "
                    "wait for it, or name another folder with --output"
                ) from None
            file.truncate(0)
            file.write(f"process {os.getpid()} on {os.uname().nodename}")
            file.flush()
            yield

    # -------------------------------------------------------------------------- writing

    def log_metrics(self, step: int, values: Mapping[str, Any]) -> None:
        """Add the line of a step to metrics.jsonl: {"step": step, ...}. No clock in `values`."""
        _append_line(self.metrics_path, {"step": step, **values})

    def log_timings(self, step: int, values: Mapping[str, Any]) -> None:
        """Add the line of a step to timings.jsonl: seconds by phase, tokens a second, memory."""
        _append_line(self.timings_path, {"step": step, **values})

    def log_event(self, kind: str, **values: Any) -> None:
        """Add what happened to events.jsonl: {"time": now in UTC, "event": kind, ...}."""
        now = datetime.now(UTC).isoformat(timespec="seconds")
        _append_line(self.events_path, {"time": now, "event": kind, **values})

    def write_rollouts(
        self,
        step: int,
        scored: Sequence[ScoredGroup],
        advantages: Sequence[Sequence[float | None]] | None = None,
        *,
        carried_over: Sequence[ScoredGroup] = (),
    ) -> None:
        """Write every completion of a step with its verdict: rollouts/step-N.parquet.

        `scored` were sampled in this step; `carried_over` in an earlier one, and trained on here.
        `advantages` are those that the step trained with, of both in this order.
        """
        path = self.rollouts_path / f"{_STEP.format(step)}.parquet"
        _write_groups(path, (*scored, *carried_over), advantages, num_sampled=len(scored))

    def write_faulty(self, step: int, scored: Sequence[ScoredGroup]) -> Path:
        """Keep the groups of a step that a run could not learn from; the file, as of rollouts."""
        path = self.faulty_path / f"{_STEP.format(step)}.parquet"
        _write_groups(path, scored, None, num_sampled=len(scored))
        return path

    def write_eval(self, step: int, result: Mapping[str, Any]) -> Path:
        """Write an evaluation (`EvalResult.as_dict()`) to eval/step-N.json; its path."""
        path = self.eval_path / f"{_STEP.format(step)}.json"
        _write_json(path, result, indent=None)
        return path

    def write_summary(self, values: Mapping[str, Any]) -> None:
        """Write summary.json."""
        _write_json(self.summary_path, values, indent=2)

    def write_preflight(self, values: Mapping[str, Any]) -> None:
        """Write preflight.json: whether a run with this recipe could learn, before it began."""
        _write_json(self.path / "preflight.json", values, indent=2)

    def truncate(self, step: int) -> None:
        """Take back everything after `step`, and a last line that was cut off while written.

        Called before a run goes on from the checkpoint of `step`, or starts (0): then only the
        evaluation before the first step may stay, until it is written again.
        """
        for path in (self.metrics_path, self.timings_path):
            if path.exists():
                kept = [row for row in _read_lines(path) if row["step"] <= step]
                _write_whole(path, "".join(_line(row) for row in kept))
        for folder in (self.rollouts_path, self.eval_path):
            for path in folder.glob("step-*"):
                if path.suffix == ".tmp" or _step_of(path) > step:
                    path.unlink()
        self.summary_path.unlink(missing_ok=True)

    def sync(self) -> None:
        """Have the disk hold the lines written so far, before a checkpoint counts on them."""
        for path in (self.metrics_path, self.timings_path, self.events_path):
            if path.exists():
                with path.open("rb") as file:
                    os.fsync(file.fileno())

    # -------------------------------------------------------------------------- reading

    def has_eval(self, step: int) -> bool:
        """Whether the evaluation of a step was written."""
        return (self.eval_path / f"{_STEP.format(step)}.json").exists()

    def events(self) -> list[RolloutRow]:
        """The lines of events.jsonl, in order."""
        return _read_lines(self.events_path)

    def metrics(self) -> list[RolloutRow]:
        """The lines of metrics.jsonl, by step; empty before the first."""
        return _read_lines(self.metrics_path)

    def timings(self) -> list[RolloutRow]:
        """The lines of timings.jsonl, by step; empty before the first."""
        return _read_lines(self.timings_path)

    def rollout_steps(self) -> list[int]:
        """Steps whose rollouts were kept, in order."""
        return sorted(_step_of(path) for path in self.rollouts_path.glob("step-*.parquet"))

    def rollouts(self, step: int, columns: Sequence[str] | None = None) -> list[RolloutRow]:
        """The completions of a step, in the order they were sampled; R1labError names those kept.

        Columns as in `_rollout_schema`; None: all of them. Those that the version of r1lab that
        wrote the file did not have are left out.
        """
        import pyarrow.parquet as pq

        with self._of_rollouts(step) as path:
            present = pq.read_schema(path).names
            wanted = present if columns is None else [name for name in columns if name in present]
            table = pq.read_table(path, columns=wanted)
            rows: list[RolloutRow] = table.to_pylist(maps_as_pydicts="strict")
        return rows

    def rollout_size(self, step: int) -> tuple[int, int]:
        """(completions, bytes before compression) of a step, without reading them."""
        import pyarrow.parquet as pq

        with self._of_rollouts(step) as path:
            metadata = pq.read_metadata(path)
        groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
        return metadata.num_rows, sum(group.total_byte_size for group in groups)

    @contextmanager
    def _of_rollouts(self, step: int) -> Iterator[Path]:
        """The file of a step's rollouts; R1labError where it is not there or cannot be read."""
        import pyarrow as pa

        path = self.rollouts_path / f"{_STEP.format(step)}.parquet"
        if not path.exists():
            steps = self.rollout_steps()
            kept = f"{steps[0]} to {steps[-1]}" if steps else "none"
            raise R1labError(f"{self.path} has no rollouts of step {step}; kept: {kept}")
        try:
            yield path
        except (OSError, pa.ArrowException) as error:
            raise R1labError(
                f"{path} cannot be read ({' '.join(str(error).split())[:120]}); it is no figure's "
                "source: delete it and read another step"
            ) from error

    def evals(self) -> list[RolloutRow]:
        """The evaluations, by step, as `EvalResult.as_dict` made them."""
        paths = sorted(self.eval_path.glob("step-*.json"), key=_step_of)
        return [json.loads(path.read_text(encoding="utf-8")) for path in paths]

    def summary(self) -> RolloutRow:
        """summary.json; empty where the run has not ended."""
        if not self.summary_path.exists():
            return {}
        summary: RolloutRow = json.loads(self.summary_path.read_text(encoding="utf-8"))
        return summary

    def recipe(self) -> RolloutRow:
        """recipe.yaml as plain values; empty where it is missing."""
        import yaml

        if not self.recipe_path.exists():
            return {}
        recipe: RolloutRow = yaml.safe_load(self.recipe_path.read_text(encoding="utf-8")) or {}
        return recipe

    def recorded_place(self) -> str | None:
        """The whole path of the folder when a run last started in it; None: not recorded."""
        places = [event["folder"] for event in self.events() if event.get("folder")]
        return str(places[-1]) if places else None

    def versions(self) -> dict[str, str]:
        """What recipe.yaml says in its first lines: versions by package, and `commit`."""
        if not self.recipe_path.exists():
            return {}
        lines = self.recipe_path.read_text(encoding="utf-8").splitlines()
        head = (line.lstrip("# ") for line in takewhile(lambda line: line.startswith("#"), lines))
        pairs = (line.partition(" ") for line in head)
        return {name: version for name, _, version in pairs if version}

    def check_unused(self) -> None:
        """Raise R1labError if the folder already contains a run."""
        if self.metrics():
            raise R1labError(
                f"output: {self.path} already contains a run; pass --resume to continue it, "
                "or name another folder with --output"
            )

    def trained_model(self) -> Path:
        """The newest model among the checkpoints; R1labError where there is none."""
        found = [path.parent for path in self.path.glob("checkpoints/step-*/model/config.json")]
        if not found:
            raise R1labError(
                f"{self.path} holds no trained model yet (no checkpoints/step-N/model); for its "
                f"base give {self.recipe_path}"
            )
        return max(found, key=lambda path: int(path.parent.name.removeprefix("step-")))


def _write_groups(
    path: Path,
    scored: Sequence[ScoredGroup],
    advantages: Sequence[Sequence[float | None]] | None,
    *,
    num_sampled: int,
) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = list(_rollout_rows(scored, advantages, num_sampled))
    table = pa.Table.from_pylist(rows, schema=_rollout_schema())
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    pq.write_table(table, temporary, compression="zstd")
    os.replace(temporary, path)


def _rollout_schema() -> Any:
    """Columns of rollouts/*.parquet: one row a completion.

    `group` numbers the groups of the step, `index` the completions of a group; `gold` is the
    problem's answer, `answer` the response's; `score`, `parts` and `reason` are null or empty where
    `fault` says how the machinery failed.

    `advantage` is what this step trained the completion with, and null if it did not: its group was
    dropped or kept for the next step (dynamic sampling), its reward faulted, or it was left out of
    the loss. `carried_over` marks groups that an earlier step sampled (they are in its file as
    well, with null) and this one trained on: leave them out to count samples.
    """
    import pyarrow as pa

    return pa.schema(
        [
            ("group", pa.int32()),
            ("index", pa.int32()),
            ("problem_id", pa.string()),
            ("source", pa.string()),
            ("question", pa.string()),
            ("gold", pa.string()),
            ("prefix", pa.string()),
            ("text", pa.string()),
            ("thinking", pa.string()),
            ("answer", pa.string()),
            ("score", pa.float64()),
            ("parts", pa.map_(pa.string(), pa.float64())),
            ("reason", pa.string()),
            ("fault", pa.string()),
            ("advantage", pa.float64()),
            ("carried_over", pa.bool_()),
            ("finish_reason", pa.string()),
            ("weight_version", pa.int32()),
            ("length", pa.int32()),
            ("token_ids", pa.list_(pa.int32())),
        ]
    )


def _rollout_rows(
    scored: Sequence[ScoredGroup],
    advantages: Sequence[Sequence[float | None]] | None,
    num_sampled: int,
) -> Iterable[RolloutRow]:
    for group, of_group in enumerate(scored):
        problem = of_group.rollout.problem
        pairs = zip(of_group.rollout.completions, of_group.outcomes, strict=True)
        for index, (completion, outcome) in enumerate(pairs):
            fault = outcome if isinstance(outcome, ScoringFailure) else None
            verdict = None if isinstance(outcome, ScoringFailure) else outcome
            yield {
                "group": group,
                "index": index,
                "problem_id": problem.id,
                "source": problem.source,
                "question": _encodable(problem.question),
                "gold": _encodable(problem.answer),
                "prefix": completion.prefix,
                "text": _encodable(completion.text),
                "thinking": _encodable(completion.thinking),
                "answer": _encodable(completion.answer),
                "score": verdict.score if verdict else None,
                "parts": dict(verdict.parts) if verdict else {},
                "reason": _encodable(verdict.reason) if verdict else "",
                "fault": _encodable(f"{fault.kind}: {fault.detail}") if fault else None,
                "advantage": None if advantages is None else advantages[group][index],
                "carried_over": group >= num_sampled,
                "finish_reason": completion.finish_reason,
                "weight_version": completion.weight_version,
                "length": len(completion.token_ids),
                "token_ids": list(completion.token_ids),
            }


def _encodable(text: str | None) -> str | None:
    """Lone surrogates, which UTF-8 cannot hold, become question marks."""
    return None if text is None else text.encode("utf-8", errors="replace").decode("utf-8")


def _step_of(path: Path) -> int:
    return int(path.name.removeprefix("step-").partition(".")[0])


def _line(row: Mapping[str, Any]) -> str:
    return json.dumps(_finite(row), ensure_ascii=False, allow_nan=False) + "\n"


def _append_line(path: Path, row: Mapping[str, Any]) -> None:
    with path.open("a", encoding="utf-8", errors="replace") as file:
        file.write(_line(row))
        file.flush()


def _read_lines(path: Path) -> list[RolloutRow]:
    """All whole lines; one that was cut off at the end is left out."""
    if not path.exists():
        return []
    lines = path.read_bytes().split(b"\n")[:-1]
    return [json.loads(line) for line in lines if line]


def _write_json(path: Path, values: Mapping[str, Any], indent: int | None) -> None:
    text = json.dumps(_finite(values), ensure_ascii=False, allow_nan=False, indent=indent)
    _write_whole(path, text + "\n")


def _write_whole(path: Path, text: str) -> None:
    """Whole or not at all: a reader never sees half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    # Not strict: a lone surrogate in a model's text must not stop a run.
    temporary.write_text(text, encoding="utf-8", errors="replace")
    os.replace(temporary, path)


def _finite(value: Any) -> Any:
    """Null for NaN and infinity, which JSON lacks; plain numbers for NumPy's and torch's."""
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if not isinstance(value, str | int | type(None)) and callable(getattr(value, "item", None)):
        return _finite(value.item())
    return value
