"""The samples of a run, packed for a page that opens at once: a small index, and texts in chunks.

The index has a few numbers of every sample, enough to filter and to sort; a chunk holds the texts
of some hundreds of samples, compressed, and is unpacked when one of them is read or searched. Both
are JSON under zlib under base64: nothing in them can end a script element or be read as markup.

Groups stand in the order of training: the rollouts of a step, and the samples of each evaluation.
"""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

from r1lab.prompts import TEMPLATES
from r1lab.report.facts import suite_paths
from r1lab.run_folder import RolloutRow, RunFolder

MAX_SAMPLES = 100_000
MAX_BYTES = 2**28  # of text in one report, before it is compressed
_CHUNK_BYTES = 2**18
_TITLE_LENGTH = 160

# All that is shown of a rollout: its tokens, which are most of its file, are not.
_COLUMNS = (
    "group", "problem_id", "source", "question", "gold", "prefix", "text", "answer", "score",
    "parts", "reason", "fault", "advantage", "finish_reason", "length",
)  # fmt: skip

# What the index says of a sample beside its score and length.
RIGHT, WRONG, FAULT, CUT_OFF, NO_ANSWER, GREEDY = 1, 2, 4, 8, 16, 32
# Whose samples a group holds; SUITE + i: those of the i-th of the index's `suites`.
TRAINING, HELD_OUT, SUITE = 0, 1, 2


@dataclass(frozen=True, slots=True)
class Unit:
    """The samples of one step, or of one evaluation, as they lie in the run folder."""

    kind: int
    step: int
    num_samples: int
    num_bytes: int


@dataclass
class Index:
    """Columns: `groups` have one entry a group, `samples` one a sample, in the same order.

    problems [id, source, first words of the question]; left_out (kind, step) that were too many;
    suites   the names of what `r1lab eval` scored the run's model on
    """

    problems: list[tuple[str, str, str]] = field(default_factory=list)
    prefixes: list[str] = field(default_factory=list)
    suites: list[str] = field(default_factory=list)
    groups: dict[str, list[int]] = field(
        default_factory=lambda: {
            name: [] for name in ("kind", "step", "problem", "chunk", "place", "size")
        }
    )
    samples: dict[str, list[Any]] = field(
        default_factory=lambda: {name: [] for name in ("score", "length", "flags")}
    )
    left_out: list[tuple[int, int]] = field(default_factory=list)


def pack_samples(
    folder: RunFolder, *, accuracy: str, max_samples: int = MAX_SAMPLES
) -> Iterator[str | Index]:
    """The chunks of a run, packed, and at the end their index.

    accuracy     the part of a verdict that tells right from wrong
    max_samples  beyond it whole steps are left out evenly, the first and the last kept
    """
    results = dict(_results(folder))
    suites = {key: path for key, path in results.items() if key[0] >= SUITE}
    units = list(units_of(folder, results))
    kept = thin(units, max_samples, MAX_BYTES)
    index = Index(left_out=[(unit.kind, unit.step) for unit in units if unit not in kept])
    index.suites = [path.stem for path in suites.values()]
    packer = _Packer(index, accuracy)
    for unit in kept:
        if unit.kind == TRAINING:
            yield from packer.add_rollouts(unit.step, folder.rollouts(unit.step, _COLUMNS))
        else:
            result = json.loads(results[unit.kind, unit.step].read_text(encoding="utf-8"))
            yield from packer.add_evaluation(unit.kind, unit.step, result)
    yield from packer.flush()
    yield index


def _results(folder: RunFolder) -> Iterator[tuple[tuple[int, int], Path]]:
    """Each evaluation's kind and step with its file; of one file a kind, but for those of steps."""
    for path in sorted(folder.eval_path.glob("step-*.json")):
        yield (HELD_OUT, int(path.stem.removeprefix("step-"))), path
    # A suite is scored after the run: behind its last step.
    last = max([*folder.rollout_steps(), 0])
    for number, path in enumerate(suite_paths(folder)):
        yield (SUITE + number, last), path


def units_of(folder: RunFolder, results: Mapping[tuple[int, int], Path]) -> Iterator[Unit]:
    """Every step and every evaluation that has samples, in the order they were made."""
    units = []
    for step in folder.rollout_steps():
        units.append(Unit(TRAINING, step, *folder.rollout_size(step)))
    for (kind, step), path in results.items():
        lengths = [len(sample["text"]) for sample in _samples(path)]
        if lengths:
            units.append(Unit(kind, step, len(lengths), sum(lengths)))
    # The evaluation of a step is made after it.
    yield from sorted(units, key=lambda unit: (unit.step, unit.kind))


def _samples(path: Path) -> list[RolloutRow]:
    """The samples of an evaluation; none of a file that is no evaluation (the report names it)."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return [sample for problem in content["problems"] for sample in problem["samples"]]
    except (ValueError, KeyError, TypeError):
        return []


def thin(units: Sequence[Unit], max_samples: int, max_bytes: int) -> list[Unit]:
    """Every n-th unit of each kind, and the last, with the smallest n that keeps to the limits."""
    if max_samples <= 0 or not units:
        return []
    for every in range(1, len(units) + 1):
        kept = []
        for kind in sorted({unit.kind for unit in units}):
            of_kind = [unit for unit in units if unit.kind == kind]
            kept += [
                unit for i, unit in enumerate(of_kind) if i % every == 0 or i == len(of_kind) - 1
            ]
        if (
            sum(unit.num_samples for unit in kept) <= max_samples
            and sum(unit.num_bytes for unit in kept) <= max_bytes
        ):
            break
    return sorted(kept, key=lambda unit: (unit.step, unit.kind))


def pack(value: Any) -> str:
    """JSON, compressed by zlib, as base64."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    # Not strict: a lone surrogate in a model's text must not stop a report.
    return base64.b64encode(zlib.compress(text.encode("utf-8", errors="replace"), 6)).decode()


class _Packer:
    """Gathers groups into chunks and writes down in the index where each lies."""

    def __init__(self, index: Index, accuracy: str) -> None:
        self.index, self._accuracy = index, accuracy
        self._problems: dict[tuple[str, str], int] = {}
        self._chunk: list[Any] = []
        self._num_bytes = self._num_chunks = 0

    def add_rollouts(self, step: int, rows: Sequence[RolloutRow]) -> Iterator[str]:
        """A step's rows as `RunFolder.rollouts` gives them."""
        for _, of_group in groupby(rows, key=lambda row: row["group"]):
            samples = list(of_group)
            first = samples[0]
            packed = [self._sample(row, row["prefix"]) for row in samples]
            yield from self._add(
                TRAINING, step, (first["problem_id"], first["source"]), first["question"],
                first["gold"], packed,
            )  # fmt: skip

    def add_evaluation(self, kind: int, step: int, row: RolloutRow) -> Iterator[str]:
        """An evaluation as eval/*.json has it; the greedy answer stands behind the samples."""
        template = TEMPLATES.get(row.get("template") or "")
        prefix = template.prefix if template else ""
        for problem in row["problems"]:
            packed = [self._sample(sample, prefix) for sample in problem["samples"]]
            if problem.get("greedy"):
                packed.append(self._sample(problem["greedy"], prefix, GREEDY))
            yield from self._add(
                kind, step, (problem["id"], problem["source"]), problem["question"],
                problem["answer"], packed,
            )  # fmt: skip

    def flush(self) -> Iterator[str]:
        """The chunk that is being filled, where there is one."""
        if self._chunk:
            yield pack(self._chunk)
            self._chunk, self._num_bytes = [], 0
            self._num_chunks += 1

    def _add(
        self,
        kind: int,
        step: int,
        problem: tuple[str, str],
        question: str,
        gold: str,
        samples: list[list[Any]],
    ) -> Iterator[str]:
        if problem not in self._problems:
            self._problems[problem] = len(self.index.problems)
            self.index.problems.append((*problem, question[:_TITLE_LENGTH]))
        entries = {
            "kind": kind, "step": step, "problem": self._problems[problem],
            "chunk": self._num_chunks, "place": len(self._chunk), "size": len(samples),
        }  # fmt: skip
        for name, value in entries.items():
            self.index.groups[name].append(value)
        self._chunk.append([question, gold, samples])
        self._num_bytes += sum(len(sample[0]) + len(sample[2]) for sample in samples)
        if self._num_bytes >= _CHUNK_BYTES:
            yield from self.flush()

    def _sample(self, row: RolloutRow, prefix: str, flags: int = 0) -> list[Any]:
        """[text, answer, reason, parts, fault, advantage, how it ended, its prefix's number]."""
        score, parts = row["score"], row["parts"] or {}
        if row["fault"]:
            flags |= FAULT
        elif score is not None:
            right = row.get("correct")
            if right is None:
                right = parts.get(self._accuracy, 0.0) >= 1.0
            flags |= RIGHT if right else WRONG
        flags |= CUT_OFF if row["finish_reason"] == "length" else 0
        flags |= NO_ANSWER if row["answer"] is None else 0
        columns = self.index.samples
        columns["score"].append(None if score is None else round(score, 4))
        columns["length"].append(row["length"])
        columns["flags"].append(flags)
        if prefix not in self.index.prefixes:
            self.index.prefixes.append(prefix)
        advantage = row.get("advantage")
        return [
            row["text"], row["answer"], row["reason"], parts, row["fault"],
            None if advantage is None else round(advantage, 4), row["finish_reason"],
            self.index.prefixes.index(prefix),
        ]  # fmt: skip
