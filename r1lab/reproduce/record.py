"""Compact record of a run for an experiment, small enough to keep in a repository.

A record is read off a run folder and nothing else. `run_record` and `RunRecord.from_dict` give the
same record, so that every figure and verdict can be computed again from the committed ones.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from r1lab.report.facts import accuracy_part, figure_of
from r1lab.report.figures import is_number
from r1lab.run_folder import RolloutRow, RunFolder
from r1lab.types import R1labError

# Words of someone who looks over his work, of those that the shipped vocabulary has; R1's paper
# counts ten such words (wait, mistake, however, but, retry, error, verify, wrong, evaluate, check).
CHECKING_WORDS = ("wait", "check")

HELD_OUT = (
    "pass_at_1", "cons_at_k", "format", "length", "length_right", "length_wrong", "truncated",
)  # fmt: skip
TRAINING = (
    "reward", "format", "length", "length_right", "length_wrong", "truncated", "zero_variance",
    "entropy", "kl_ref", "sync_kl",
)  # fmt: skip

CurvePoint = tuple[float, float]  # (step, value)


@dataclass(frozen=True, slots=True)
class RunRecord:
    """One run of an arm: its curves by name, [(step, value), ...].

    arm, seed, steps   which run it is, and the steps it took
    held_out           figures of its evaluations; `right_if_formed` is the share of right responses
                       among the well-formed ones, `greedy` stands before and after alone
    training           figures of its steps; `accuracy` the reward that tells right from wrong,
                       `checking` the number of CHECKING_WORDS in a response
    suites             {suite: {k: pass@k}} of the trained model, {suite: ...} of its base
    num_problems, k    of an evaluation
    """

    arm: str
    seed: int
    steps: int
    num_problems: int
    k: int
    held_out: Mapping[str, Sequence[CurvePoint]]
    training: Mapping[str, Sequence[CurvePoint]]
    suites: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    base_suites: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    def curve(self, name: str) -> list[CurvePoint]:
        """The curve `name` (held out) or `train.NAME`; empty where the run has none."""
        where = self.training if name.startswith("train.") else self.held_out
        return [(step, value) for step, value in where.get(name.removeprefix("train."), ())]

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON: numbers to four significant digits."""
        plain: dict[str, Any] = _rounded(asdict(self))
        return plain

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> RunRecord:
        """A record as `as_dict` wrote it."""
        return cls(**values)


def run_record(
    folder: RunFolder,
    *,
    arm: str,
    seed: int,
    suites: Sequence[RolloutRow] = (),
    base_suites: Sequence[RolloutRow] = (),
) -> RunRecord:
    """The record of an ended run; `suites` are results of `r1lab eval`, as it writes them."""
    evals, metrics = folder.evals(), folder.metrics()
    return RunRecord(
        arm=arm,
        seed=seed,
        steps=int(metrics[-1]["step"]) if metrics else 0,
        num_problems=int(evals[0]["overall"]["num_problems"]),
        k=int(evals[0]["k"]),
        held_out=_held_out(evals),
        training=_training(folder, metrics, accuracy_part(folder, evals)),
        suites=_pass_at_k(suites),
        base_suites=_pass_at_k(base_suites),
    )


def _held_out(evals: Sequence[RolloutRow]) -> dict[str, list[CurvePoint]]:
    curves: dict[str, list[CurvePoint]] = {
        name: [
            (row["step"], row["overall"][name]["value"]) for row in evals if row["overall"][name]
        ]
        for name in HELD_OUT
    }
    curves["greedy"] = [
        (row["step"], row["greedy"]["pass_at_1"]["value"])
        for row in evals
        if row["greedy"] and row["greedy"]["pass_at_1"]
    ]
    formed = [(row["step"], _right_if_formed(row)) for row in evals]
    curves["right_if_formed"] = [(step, share) for step, share in formed if share is not None]
    return curves


def _right_if_formed(evaluation: RolloutRow) -> float | None:
    samples = [
        sample["correct"]
        for problem in evaluation["problems"]
        for sample in problem["samples"]
        if sample["well_formed"] and sample["correct"] is not None
    ]
    return sum(samples) / len(samples) if samples else None


def _training(
    folder: RunFolder, metrics: Sequence[RolloutRow], part: str
) -> dict[str, list[CurvePoint]]:
    named = {**{name: name for name in TRAINING}, "accuracy": figure_of(part)}
    curves: dict[str, list[CurvePoint]] = {
        name: [(row["step"], row[key]) for row in metrics if is_number(row.get(key))]
        for name, key in named.items()
    }
    curves["checking"] = [(step, _checking(folder, step)) for step in folder.rollout_steps()]
    return {name: curve for name, curve in curves.items() if curve}


def _checking(folder: RunFolder, step: int) -> float:
    """Checking words in a response of a step, in the mean."""
    rows = folder.rollouts(step, ["text", "carried_over"])
    texts = [row["text"] or "" for row in rows if not row.get("carried_over")]
    words = [word for text in texts for word in text.split()]
    return sum(word in CHECKING_WORDS for word in words) / max(len(texts), 1)


def _pass_at_k(results: Sequence[RolloutRow]) -> dict[str, dict[str, float]]:
    return {
        str(result["suite"]): {
            k: estimate["value"] for k, estimate in result["overall"]["pass_at_k"].items()
        }
        for result in results
    }


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, Mapping):
        return {key: _rounded(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(entry) for entry in value]
    return value


def read_records(path: Path) -> dict[str, RunRecord]:
    """Records that were kept, by `r1lab.reproduce.campaign.record_key`.

    Raises R1labError for a file that is not a record file.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))["records"]
        return {key: RunRecord.from_dict(value) for key, value in values.items()}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise R1labError(f"{path} is not a file of run records: {error}") from None


def run_folder_of(out: Path, arm: str, seed: int) -> Path:
    """Where the run of an arm and a seed lies below the campaign's folder."""
    return out / arm / f"seed-{seed}"
