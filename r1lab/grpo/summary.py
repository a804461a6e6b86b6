"""Summarise a run for summary.json and for the lines printed while it runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from r1lab.run_folder import RunFolder


def summary_of(folder: RunFolder, seconds: Mapping[str, float]) -> dict[str, Any]:
    """Return held-out scores before and after, agreement, and training and total `seconds`."""
    evals = folder.evals()
    before, after = evals[0], evals[-1]
    names = {
        "pass_at_1": "pass_at_1", f"cons_at_{before['k']}": "cons_at_k", "length": "length",
        "format": "format",
    }  # fmt: skip
    summary: dict[str, Any] = {"steps": after["step"], "num_problems": None}
    summary["num_problems"] = before["overall"]["num_problems"]
    for name, field in names.items():
        for when, result in (("before", before), ("after", after)):
            estimate = result["overall"][field]
            if estimate is not None:  # None: too many failed samples for an estimate
                summary[f"{name}_{when}"] = estimate["value"]
                summary[f"{name}_{when}_interval"] = [estimate["low"], estimate["high"]]
    for when, result in (("before", before), ("after", after)):
        if result["greedy"] and result["greedy"]["pass_at_1"]:
            summary[f"greedy_{when}"] = result["greedy"]["pass_at_1"]["value"]
    for name in ("sync_kl", "sync_kl_uncapped"):
        gaps = [line[name] for line in folder.metrics() if line[name] is not None]
        summary[f"max_{name}"] = max(gaps, default=None)
    skipped = sum(line["skipped"] for line in folder.metrics())
    if skipped:
        summary["skipped_updates"] = int(skipped)
    return {**summary, **{f"seconds_{name}": round(value, 1) for name, value in seconds.items()}}
