"""Group runs that differ only by seed and draw their mean over seeds.

The interval is that of the mean over seeds, by Student's t with n - 1 degrees of freedom (Student
1908): where the mean of many such runs would lie, on the same held-out problems. That problems are
a sample too is not in it (`r1lab compare` has both). With few seeds it is wide, as it has to
be: for two, t is 12.7. Where the figure is drawn on a logarithmic axis, mean and interval are taken
of its logarithms. Ends are cut off where the figure itself ends: no share is above 1.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from r1lab.evaluate.intervals import Estimate, student_interval
from r1lab.report.panels import OVER_PROBLEMS, Panel, Series
from r1lab.run_folder import RolloutRow

# Keys of a recipe in which runs of one experiment differ.
_SEEDS = ("seed", "problems.seed")
_NAMES = ("name", "output", "resume")
_FIGURES = ("pass_at_1", "cons_at_k", "length")


@dataclass(frozen=True, slots=True)
class SeedGroup:
    """Runs of one recipe under different seeds.

    runs     their numbers among all runs of the report
    panels   means over them, with intervals
    first    the figures of the first evaluation that all of them have;  last  of the last one
    """

    label: str
    runs: Sequence[int]
    panels: Sequence[Panel]
    first: Mapping[str, Estimate | None]
    last: Mapping[str, Estimate | None]

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def seed_groups(
    facts: Sequence[Mapping[str, Any]], panels: Sequence[Sequence[Panel]]
) -> list[SeedGroup]:
    """The groups among runs, of two runs at least; `facts` and `panels` are those of each run."""
    groups = []
    for runs in same_but_for_the_seed([one["settings"] for one in facts]):
        names = sorted({str(facts[run]["name"]) for run in runs})
        name = os.path.commonprefix(names).rstrip("-_. ")  # noqa: RUF071  names, not paths
        first, last = _held_out([facts[run]["evals"] for run in runs])
        groups.append(
            SeedGroup(
                f"{name or 'runs'}, mean of {len(runs)} seeds", runs,
                mean_panels([panels[run] for run in runs]), first, last,
            )
        )  # fmt: skip
    return groups


def same_but_for_the_seed(settings: Sequence[Mapping[str, str]]) -> list[list[int]]:
    """Numbers of runs whose flat recipes differ by seed, name and output alone, in groups.

    A group with two runs of the same seed is rejected: it is not a sample of seeds.
    """
    alike: dict[tuple[tuple[str, str], ...], list[int]] = {}
    for number, flat in enumerate(settings):
        rest = {key: value for key, value in flat.items() if key not in (*_SEEDS, *_NAMES)}
        if rest:  # a folder without a recipe is like no other
            alike.setdefault(tuple(sorted(rest.items())), []).append(number)
    return [
        runs
        for runs in alike.values()
        if 1 < len(runs) == len({tuple(settings[n].get(key) for key in _SEEDS) for n in runs})
    ]


def mean_panels(of_runs: Sequence[Sequence[Panel]]) -> list[Panel]:
    """One panel for each that all runs have, its lines the means over the runs."""
    by_id = [{panel.id: panel for panel in panels} for panels in of_runs]
    found = []
    for panel in of_runs[0]:
        if not all(panel.id in panels for panels in by_id):
            continue
        same = [panels[panel.id] for panels in by_id]
        lines = [_mean_of(panel, line, same) for line in panel.series]
        series = [line for line in lines if line is not None and line.x]
        if series:
            note = "; ".join(filter(None, (
                panel.note.removesuffix(OVER_PROBLEMS).rstrip("; "),
                f"mean of {len(same)} seeds, 95% intervals over them",
            )))  # fmt: skip
            found.append(replace(panel, series=series, note=note))
    return found


def _mean_of(panel: Panel, line: Series, same: Sequence[Panel]) -> Series | None:
    """The mean of one line over the runs, where all of them have a value; None without such."""
    tables = []
    for one in same:
        own = next((other for other in one.series if other.label == line.label), None)
        if own is None:
            return None
        points = zip(own.x, own.y, strict=True)
        tables.append({x: y for x, y in points if y is not None and (y > 0 or not panel.log)})
    common = sorted(set.intersection(*(set(table) for table in tables)))
    estimates = [_on_axis(panel, [table[x] for table in tables]) for x in common]
    return replace(
        line, x=common, y=[e.value for e in estimates],
        low=[e.low for e in estimates], high=[e.high for e in estimates],
    )  # fmt: skip


def _on_axis(panel: Panel, values: Sequence[float]) -> Estimate:
    if panel.log:
        log = student_interval([math.log(value) for value in values])
        return Estimate(math.exp(log.value), math.exp(log.low), math.exp(log.high))
    return _cut(student_interval(values), panel.low, panel.high)


def _cut(found: Estimate, low: float | None, high: float | None) -> Estimate:
    """The interval without what lies outside of `low` to `high`; its value stays inside it."""
    return Estimate(
        found.value,
        found.low if low is None else max(found.low, min(low, found.value)),
        found.high if high is None else min(found.high, max(high, found.value)),
    )


def _held_out(
    of_runs: Sequence[Sequence[RolloutRow]],
) -> tuple[dict[str, Estimate | None], dict[str, Estimate | None]]:
    """Return the metrics of the first and the last evaluation that all runs have."""
    by_step = [{row.get("step") or 0: row["overall"] for row in evals} for evals in of_runs]
    common = sorted(set.intersection(*(set(rows) for rows in by_step)))
    if not common:
        return {}, {}
    first, last = ([rows[step] for rows in by_step] for step in (common[0], common[-1]))
    return _figures(first), _figures(last)


def _figures(scores: Sequence[RolloutRow]) -> dict[str, Estimate | None]:
    found: dict[str, Estimate | None] = {}
    for figure in _FIGURES:
        values = [row[figure]["value"] for row in scores if row.get(figure)]
        most = None if figure == "length" else 1.0
        complete = len(values) == len(scores)
        found[figure] = _cut(student_interval(values), 0.0, most) if complete else None
    return found
