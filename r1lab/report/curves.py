"""The curves of a run as one picture: accuracy, length, form, reward, agreement, health.

Everything drawn comes from the run folder. Held-out figures carry markers and their 95% intervals,
training figures are thin lines (a running mean over the raw values). Colours are Okabe and Ito's,
which colour-blind readers can tell apart; line styles and markers differ as well.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from r1lab.report.facts import figure_of
from r1lab.report.text import printable
from r1lab.run_folder import RolloutRow, RunFolder
from r1lab.types import R1labError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BLUE, ORANGE, GREEN, RED, PURPLE, GREY = (
    "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#555555",
)  # fmt: skip
SMOOTHING = 5

STYLE = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#888888",
    "axes.grid": True,
    "grid.color": "#E4E4E4",
    "grid.linewidth": 0.7,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "xtick.color": "#444444",
    "ytick.color": "#444444",
}


def draw_curves(run: RunFolder | str | Path, output: str | Path | None = None) -> Path:
    """Draw a run's curves and return the picture's path (`curves.png` in the run folder).

    Works on a running run. Raises R1labError if there is nothing to draw.
    """
    import matplotlib
    from matplotlib.figure import Figure

    folder = run if isinstance(run, RunFolder) else RunFolder.open(run)
    metrics, evals = folder.metrics(), folder.evals()
    if not metrics and not evals:
        raise R1labError(f"{folder.path} has neither metrics nor evaluations yet")
    path = folder.curves_path if output is None else Path(output)
    # Figure, not pyplot: no window system, and nothing global is changed.
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(11, 6.2), layout="constrained")
        axes = list(figure.subplots(2, 3, sharex=True).flat)
        for axis, panel in zip(axes, PANELS, strict=True):
            panel(axis, metrics, evals)
        for axis in axes[3:]:
            axis.set_xlabel("step")
        figure.suptitle(_title(folder, evals), x=0.01, ha="left", fontsize=11)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=150, metadata={"Software": None})
    return path


def _title(folder: RunFolder, evals: Sequence[RolloutRow]) -> str:
    name = printable(str(folder.recipe().get("name", folder.path.name)))
    if not evals:
        return name
    last = evals[-1]
    return (
        f"{name}: {last['overall']['num_problems']} held-out problems, {last['k']} samples each, "
        f"temperature {last['temperature']:g}, bands are 95% intervals over problems"
    )


# ------------------------------------------------------------------------------------- panels


def _accuracy(axis: Axes, metrics: Sequence[RolloutRow], evals: Sequence[RolloutRow]) -> None:
    axis.set_title("Accuracy")
    part = str(evals[0].get("accuracy", "accuracy")) if evals else "accuracy"
    _training(axis, metrics, figure_of(part), GREY, "training")
    k = evals[-1]["k"] if evals else 16
    _held_out(axis, evals, "cons_at_k", ORANGE, f"cons@{k}", marker="s")
    _held_out(axis, evals, "pass_at_1", BLUE, "pass@1", marker="o")
    greedy = [
        (row["step"], row["greedy"]["pass_at_1"]["value"])
        for row in evals
        if row["greedy"] and row["greedy"]["pass_at_1"]
    ]
    if greedy:
        axis.plot(*zip(*greedy, strict=True), "D", mfc="white", mec=GREEN, ms=5, label="greedy")
    axis.set_ylim(-0.03, 1.03)
    _legend(axis)


def _length(axis: Axes, metrics: Sequence[RolloutRow], evals: Sequence[RolloutRow]) -> None:
    axis.set_title("Response length (tokens)")
    _training(axis, metrics, "length_right", GREEN, "training, right")
    _training(axis, metrics, "length_wrong", RED, "training, wrong", style="--")
    _held_out(axis, evals, "length", BLUE, "held-out", marker="o")
    axis.set_ylim(bottom=0)
    _legend(axis)


def _form(axis: Axes, metrics: Sequence[RolloutRow], evals: Sequence[RolloutRow]) -> None:
    axis.set_title("Form (share of responses)")
    _training(axis, metrics, "format", GREY, "well-formed, training")
    _held_out(axis, evals, "format", BLUE, "well-formed", marker="o")
    _held_out(axis, evals, "unanswered", RED, "no answer", marker="v", style="--")
    axis.set_ylim(-0.03, 1.03)
    _legend(axis)


def _reward(axis: Axes, metrics: Sequence[RolloutRow], evals: Sequence[RolloutRow]) -> None:
    axis.set_title("Reward")
    _training(axis, metrics, "reward", PURPLE, "training")
    _held_out(axis, evals, "reward", BLUE, "held-out", marker="o")
    axis.set_ylim(bottom=min(0.0, axis.get_ylim()[0]))
    _legend(axis)


def _agreement(axis: Axes, metrics: Sequence[RolloutRow], evals: Sequence[RolloutRow]) -> None:
    axis.set_title("KL(sampler, trainer), nats a token")
    points = [(row["step"], row["sync_kl"]) for row in metrics if row.get("sync_kl")]
    if points:
        axis.plot(*zip(*points, strict=True), ".-", color=BLUE, lw=1, ms=4, label="k3 estimate")
        axis.set_yscale("log")
    bounds = [(row["step"], row["sync_kl_bound"]) for row in metrics if row.get("sync_kl_bound")]
    if bounds:
        axis.plot(*zip(*bounds, strict=True), "--", color=RED, lw=1, label="bound")
    _legend(axis)


def _health(axis: Axes, metrics: Sequence[RolloutRow], evals: Sequence[RolloutRow]) -> None:
    axis.set_title("Signal (shares in training)")
    _training(axis, metrics, "zero_variance", ORANGE, "groups without variance")
    _training(axis, metrics, "truncated", RED, "responses cut off", style="--")
    axis.set_ylim(-0.03, 1.03)
    _legend(axis)


PANELS: tuple[Callable[[Any, Sequence[RolloutRow], Sequence[RolloutRow]], None], ...] = (
    _accuracy, _length, _form, _reward, _agreement, _health,
)  # fmt: skip


# -------------------------------------------------------------------------------------- lines


def _training(
    axis: Axes, metrics: Sequence[RolloutRow], key: str, color: str, label: str, *, style: str = "-"
) -> None:
    """Raw values faint, their running mean over them; steps without a value are left out."""
    points = [(row["step"], row[key]) for row in metrics if row.get(key) is not None]
    if not points:
        return
    steps, values = zip(*points, strict=True)
    axis.plot(steps, values, color=color, lw=0.8, alpha=0.3)
    axis.plot(steps, running_mean(values), color=color, lw=1.3, ls=style, label=label)


def _held_out(
    axis: Axes,
    evals: Sequence[RolloutRow],
    key: str,
    color: str,
    label: str,
    *,
    marker: str,
    style: str = "-",
) -> None:
    """Draw one metric of every evaluation, with its interval as a band."""
    points = [(row["step"] or 0, row["overall"][key]) for row in evals if row["overall"][key]]
    if not points:
        return
    steps = [step for step, _ in points]
    low, high = ([estimate[end] for _, estimate in points] for end in ("low", "high"))
    axis.fill_between(steps, low, high, color=color, alpha=0.18, lw=0)
    values = [estimate["value"] for _, estimate in points]
    axis.plot(steps, values, color=color, lw=1.8, ls=style, marker=marker, ms=4, label=label)


def running_mean(values: Sequence[float], window: int = SMOOTHING) -> list[float]:
    """Return the mean of each value and its neighbours, `window` in all, fewer at the ends."""
    half = window // 2
    return [
        sum(near) / len(near)
        for i in range(len(values))
        for near in (values[max(0, i - half) : i + half + 1],)
    ]


def _legend(axis: Axes) -> None:
    if axis.get_legend_handles_labels()[0]:
        axis.legend(loc="best")
