"""Summarise a run from its files: settings, cost, failures, held-out metrics."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from r1lab.report.figures import is_number
from r1lab.run_folder import RolloutRow, RunFolder
from r1lab.verify.verifiers import RESERVED_METRICS


@dataclass(frozen=True, slots=True)
class Cost:
    """The cost of a run. `watts` and `price` (dollars per hour) are given by the user.

    hours            the training process as far as its files know: steps, evaluations, set-up
    hours_training   the steps alone
    tokens_training  sampled for training;  tokens_held_out  for evaluations
    kilowatt_hours and dollars are None where no figure was given.
    """

    hours: float
    hours_training: float
    tokens_training: int
    tokens_held_out: int
    kilowatt_hours: float | None
    dollars: float | None


def accuracy_part(folder: RunFolder, evals: Sequence[RolloutRow] = ()) -> str:
    """Return the verdict component that tells right from wrong (`Verifiers.accuracy`).

    Evaluations say it. Before the first one it is read off the recipe: `accuracy` where a reward is
    `problem`, otherwise the short name of the first reward.
    """
    for row in evals:
        if row.get("accuracy"):
            return str(row["accuracy"])
    rewards = [str(entry.get("reward", "")) for entry in folder.recipe().get("rewards") or []]
    if not rewards or "problem" in rewards:
        return "accuracy"
    place, _, function = rewards[0].partition(":")
    if function and function != "reward":
        return function
    return Path(place).stem if place.endswith(".py") else place.rpartition(".")[2]


def figure_of(part: str) -> str:
    """The name of a part's mean in metrics.jsonl: its own, unless another figure has that."""
    return f"{part}_reward" if part in RESERVED_METRICS else part


def cost_of(
    metrics: Sequence[RolloutRow],
    timings: Sequence[RolloutRow],
    evals: Sequence[RolloutRow],
    summary: RolloutRow,
    *,
    price: float | None = None,
    watts: float | None = None,
) -> Cost:
    """Compute the cost of a run. Without a summary, only steps count towards the hours."""
    training = sum(row["total"] for row in timings if is_number(row.get("total")))
    total = summary.get("seconds_total")
    hours = max(training, total if is_number(total) else 0.0) / 3600
    sampled = sum((row.get("length") or 0.0) * (row.get("responses") or 0.0) for row in metrics)
    return Cost(
        hours=hours,
        hours_training=training / 3600,
        tokens_training=round(sampled),
        tokens_held_out=round(sum(_tokens(s) for row in evals for s in _scores_of(row))),
        kilowatt_hours=None if watts is None else watts * hours / 1000,
        dollars=None if price is None else price * hours,
    )


def _scores_of(row: RolloutRow) -> list[RolloutRow]:
    return [scores for scores in (row.get("overall"), row.get("greedy")) if scores]


def _tokens(scores: RolloutRow) -> float:
    length = scores.get("length")
    return float(length["value"] * scores.get("num_samples", 0)) if length else 0.0


def without_samples(row: RolloutRow) -> RolloutRow:
    """Return an evaluation's settings and metrics, without its samples."""
    return {key: value for key, value in row.items() if key != "problems"}


def suite_paths(folder: RunFolder) -> list[Path]:
    """What stands in eval/ beside the evaluations of steps: results of `r1lab eval`, by name."""
    return sorted(
        path
        for path in folder.eval_path.rglob("*.json")
        if path.parent != folder.eval_path or not path.name.startswith("step-")
    )


def other_evaluations(folder: RunFolder) -> list[RolloutRow]:
    """The suites that the run's model was scored on, each with its `file`; samples left out.

    A file that is not JSON is named with the reason in place of figures.
    """
    found = []
    for path in suite_paths(folder):
        name = str(path.relative_to(folder.eval_path))
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            found.append({"file": name, "unreadable": str(error)})
            continue
        row = without_samples(content) if isinstance(content, dict) else {"content": content}
        found.append({"file": name, **row})
    return found


def prospects_of(folder: RunFolder, events: Sequence[RolloutRow]) -> RolloutRow | None:
    """Return the preflight result: of the run's own start, else of an earlier preflight."""
    for event in reversed(events):
        if event.get("event") == "prospects":
            return event
    path = folder.path / "preflight.json"
    if not path.exists():
        return None
    found: RolloutRow = json.loads(path.read_text(encoding="utf-8"))
    return found


def faulty_files(folder: RunFolder) -> list[str]:
    """Return the batches that the run set aside as unusable."""
    kept = folder.path / "faulty"
    return sorted(path.name for path in kept.iterdir()) if kept.is_dir() else []


def settings_of(recipe: Any, path: str = "") -> dict[str, str]:
    """A recipe as one flat table, `sampling.group_size: 16`; entries of lists by their number."""
    if isinstance(recipe, dict):
        entries = [(str(key), value) for key, value in recipe.items()]
    elif isinstance(recipe, list):
        entries = [(str(number), value) for number, value in enumerate(recipe)]
    else:
        return {path: json.dumps(recipe, ensure_ascii=False, default=str)}
    flat: dict[str, str] = {}
    for name, value in entries:
        flat |= settings_of(value, f"{path}.{name}" if path else name)
    return flat


def stopped_by(events: Sequence[RolloutRow]) -> str | None:
    """Return why the run stopped early, if it did and was not resumed since."""
    for event in reversed(events):
        kind = event.get("event")
        if kind in ("stopped", "fault"):
            return str(event.get("why") or event.get("text") or kind)
        if kind in ("started", "resumed"):
            return None
    return None


def _flat(event: RolloutRow) -> RolloutRow:
    """An event without what is no single value: that has a place of its own in the report."""
    return {key: value for key, value in event.items() if not isinstance(value, dict | list)}


def facts_of(folder: RunFolder, *, price: float | None, watts: float | None) -> dict[str, Any]:
    """Return all of the above and the metric lines, for the report."""
    metrics, timings, evals = folder.metrics(), folder.timings(), folder.evals()
    summary, recipe, events = folder.summary(), folder.recipe(), folder.events()
    path = folder.recipe_path
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    cost = cost_of(metrics, timings, evals, summary, price=price, watts=watts)
    return {
        "name": str(recipe.get("name", folder.path.name)),
        "folder": folder.path.name,
        "accuracy": accuracy_part(folder, evals),
        "steps_planned": recipe.get("steps"),
        "steps_done": metrics[-1]["step"] if metrics else 0,
        "ended": bool(summary),
        "stopped": stopped_by(events),
        "summary": summary,
        "model": str((recipe.get("model") or {}).get("path", "")),
        "template": str(recipe.get("template", "")),
        "cost": {**asdict(cost), "price": price, "watts": watts},
        "versions": [f"{name} {version}" for name, version in folder.versions().items()],
        "recipe": text,
        "settings": settings_of(recipe),
        "evals": [without_samples(row) for row in evals],
        "other_evals": other_evaluations(folder),
        "events": [_flat(event) for event in events],
        "prospects": prospects_of(folder, events),
        "faulty": faulty_files(folder),
        "trouble": [
            {key: row[key] for key in ("step", "faults", "skipped") if row.get(key) is not None}
            for row in metrics
            if row.get("faults") or row.get("skipped")
        ],
        "max_sync_kl": max((r["sync_kl"] for r in metrics if r.get("sync_kl")), default=None),
        "rechecked": sum(1 for row in metrics if row.get("sync_kl_rechecked") is not None),
    }
