"""One picture an experiment: its curves over the share of the run, beside the paper's.

Every arm is the mean over its seeds with its 95% interval (Student's t), the seeds faint behind.
A paper's curve stands on axes of its own, with the share of its run as the same x: another model,
on other problems, at another scale, so that only the shapes can be compared.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING

from r1lab.report.curves import BLUE, GREEN, GREY, ORANGE, PURPLE, RED, STYLE, running_mean
from r1lab.report.paper import paper_curves
from r1lab.reproduce.experiment import Experiment, FigurePanel
from r1lab.reproduce.measure import Records, over_seeds
from r1lab.reproduce.record import RunRecord

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLOURS = (BLUE, ORANGE, GREEN, RED, PURPLE, GREY)


def draw_experiment(experiment: Experiment, records: Records, path: Path) -> Path:
    """Draw the panels of an experiment into a PNG file; returns its path."""
    import matplotlib
    from matplotlib.figure import Figure

    num = sum(2 if panel.paper else 1 for panel in experiment.panels)
    columns = 2 if num == 4 else min(num, 3)
    rows = -(-num // columns)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(4.4 * columns, 3.3 * rows), layout="constrained")
        axes = iter(figure.subplots(rows, columns, squeeze=False).flat)
        for panel in experiment.panels:
            axis = next(axes)
            if panel.suite is not None:
                _suite(axis, panel, records)
            else:
                _curves(axis, panel, experiment, records)
            if panel.paper:
                _paper(next(axes), panel)
        for axis in axes:
            axis.set_visible(False)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=130, metadata={"Software": None})
    return path


def _curves(axis: Axes, panel: FigurePanel, experiment: Experiment, records: Records) -> None:
    arms = panel.arms or tuple(experiment.arms)
    axis.set_title(panel.title)
    # Arms of fewer steps end earlier: what is compared is the same number of steps.
    lengths = {record.steps for arm in arms for record in records[arm]}
    # An arm keeps its colour in all panels; several figures in one panel get their own.
    places = [tuple(experiment.arms).index(arm) for arm in arms]
    single, values = len(panel.of) == 1, list[float]()
    colours = cycle(_COLOURS)
    for arm, place in zip(arms, places, strict=True):
        for name in panel.of:
            curves = [_smooth(record, name, max(lengths)) for record in records[arm]]
            if not all(curves):
                continue
            what = name.removeprefix("train.").replace("_", " ").replace("at k", "at 16")
            label = what if len(arms) == 1 else arm if single else f"{arm}, {what}"
            colour = _COLOURS[place % len(_COLOURS)] if single else next(colours)
            _mean_line(axis, curves, colour, label)
            values += [value for curve in curves for _, value in curve]
    # The interval of few seeds may be wider than the picture: the curves decide how high it is.
    if values:
        room = 0.25 * (max(values) - min(values)) or 0.1
        low, high = axis.get_ylim()
        axis.set_ylim(max(low, min(values) - room), min(high, max(values) + room))
    axis.set_xlabel("share of the run" if len(lengths) == 1 else "share of the longest run")
    axis.set_xlim(0, 1)
    if axis.get_legend_handles_labels()[0]:
        axis.legend(loc="best")


def _smooth(record: RunRecord, name: str, steps: int) -> list[tuple[float, float]]:
    """A curve over the share of `steps`; figures of single steps as running means."""
    curve = record.curve(name)
    if name.startswith("train."):
        values = running_mean([value for _, value in curve])
        curve = [(step, value) for (step, _), value in zip(curve, values, strict=True)]
    return [(step / steps, value) for step, value in curve]


def _mean_line(
    axis: Axes, curves: Sequence[Sequence[tuple[float, float]]], colour: str, label: str
) -> None:
    """The mean over the seeds at the places that all of them have, its interval, the seeds."""
    shared = sorted(set.intersection(*({x for x, _ in curve} for curve in curves)))
    tables = [dict(curve) for curve in curves]
    found = [over_seeds([table[x] for table in tables]) for x in shared]
    if len(curves) > 1:
        for table in tables:
            axis.plot(shared, [table[x] for x in shared], color=colour, lw=0.6, alpha=0.35)
        ends = [(low, high) for _, low, high in found if low is not None and high is not None]
        axis.fill_between(
            shared, [low for low, _ in ends], [high for _, high in ends], color=colour, alpha=0.13,
            lw=0,
        )  # fmt: skip
    marker = "o" if len(shared) < 25 else None
    axis.plot(
        shared, [mean for mean, _, _ in found], color=colour, lw=1.8, marker=marker, ms=3,
        label=label,
    )  # fmt: skip


def _paper(axis: Axes, panel: FigurePanel) -> None:
    curves = [paper_curves()[name] for name in panel.paper]
    axis.set_title("The paper's, on its own scale")
    for curve, colour in zip(curves, _COLOURS, strict=False):
        axis.plot(curve.shares, curve.values, color=colour, lw=1.4, label=curve.label)
    axis.set_xlim(0, 1)
    axis.set_xlabel("share of the run")
    axis.legend(loc="lower right")


def _suite(axis: Axes, panel: FigurePanel, records: Records) -> None:
    """pass@k over k: each seed's trained model, their mean, and the base."""
    assert panel.suite is not None
    axis.set_title(panel.title)
    of = [record for arm in panel.arms or records for record in records[arm]]
    trained = [record.suites[panel.suite] for record in of]
    base = of[0].base_suites[panel.suite]
    ks = sorted(map(int, base))
    means = [over_seeds([table[str(k)] for table in trained])[0] for k in ks]
    for table in trained:
        axis.plot(ks, [table[str(k)] for k in ks], color=BLUE, lw=0.6, alpha=0.35)
    axis.plot(ks, means, "o-", color=BLUE, lw=1.8, ms=3, label="trained")
    axis.plot(ks, [base[str(k)] for k in ks], "s--", color=ORANGE, lw=1.8, ms=3, label="base")
    axis.set_xscale("log", base=2)
    axis.set_xticks(ks, [str(k) for k in ks])
    axis.set_xlabel("k")
    axis.set_ylim(-0.03, 1.03)
    axis.legend(loc="best")
