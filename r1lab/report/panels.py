"""Build the report's curves as plain data: which metrics each panel shows, and how.

Pure functions from the rows of a run to panels. The page draws them (assets/charts.js). Panels of
several runs with the same `id` are laid over each other there. Held-out figures carry the ends of
their 95% intervals (`low`, `high`); figures of training steps are smoothed by the page.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from r1lab.report.facts import figure_of
from r1lab.report.figures import is_number
from r1lab.run_folder import RolloutRow

Color = Literal["blue", "orange", "green", "red", "purple", "sky", "grey"]
# How the notes of panels with intervals end.
OVER_PROBLEMS = "95% intervals over problems"

_CYCLE: tuple[Color, ...] = ("blue", "orange", "green", "red", "purple", "sky", "grey")


@dataclass(frozen=True, slots=True)
class Series:
    """One line: x and y of equal length, `low` and `high` too where there is an interval.

    held_out  drawn with markers and as it is; otherwise a figure of each step, smoothed
    """

    label: str
    color: Color
    x: Sequence[float]
    y: Sequence[float | None]
    low: Sequence[float | None] = ()
    high: Sequence[float | None] = ()
    held_out: bool = False
    dash: bool = False
    line: bool = True


@dataclass(frozen=True, slots=True)
class Panel:
    """One chart. `form` says how its numbers are written, `low` and `high` the ends of the axis."""

    id: str
    title: str
    series: Sequence[Series]
    note: str = ""
    form: Literal["share", "plain", "small", "count", "seconds"] = "plain"
    x: Literal["step", "k"] = "step"
    log: bool = False
    stacked: bool = False
    low: float | None = None
    high: float | None = None
    extra: bool = False  # shown on demand only


def panels_of(
    metrics: Sequence[RolloutRow],
    timings: Sequence[RolloutRow],
    evals: Sequence[RolloutRow],
    *,
    accuracy: str,
) -> list[Panel]:
    """Return the non-empty panels of a run, in reading order."""
    parts = reward_parts(metrics, evals)
    panels = [
        _accuracy(metrics, evals, accuracy),
        _held_out_length(evals),
        _training_length(metrics),
        _rewards(metrics, evals),
        _rewards_apart(metrics, parts),
        _pass_at_k(evals),
        _form(metrics, evals),
        Panel("entropy", "Entropy", _each(metrics, [("entropy", "nats a token", "blue")]),
              "of the policy over its own sampled tokens", "small", low=0.0),
        Panel("drift", "KL of the policy", _each(metrics, [
            ("kl_ref", "to the reference", "blue"), ("kl_old", "to the sampling one", "orange"),
        ]), "nats a token", "small"),
        Panel("clip", "Clip share", _each(metrics, [
            ("clipped_low", "clipped below", "orange"), ("clipped_high", "clipped above", "blue"),
        ]), "of the tokens; 0 with one update a step", "share", low=0.0),
        Panel("signal", "Signal", _each(metrics, [
            ("zero_variance", "groups without variance", "orange"),
            ("truncated", "responses cut off", "red"),
        ]), "groups whose answers all scored the same teach nothing", "share", low=0.0),
        Panel("groups", "Dynamic sampling", _collected(metrics),
              "groups of a step; what waits opens the next one", "count", low=0.0),
        *_levels(metrics),
        _agreement(metrics),
        Panel("faults", "Faults and skipped updates", _troubled(metrics), "", "count", low=0.0),
        Panel("speed", "Throughput", _each(timings, [
            ("tokens_per_second", "tokens a second", "green"),
        ]), "sampled tokens over the whole time of a step", "count", low=0.0),
        _time(timings),
    ]  # fmt: skip
    shown = {name for panel in panels for name in _SHOWN.get(panel.id, ())}
    shown |= {figure_of(part) for part in (*parts, accuracy)} | {"step"}
    shown |= {name for prefix in _LEVELS for name in _starting(metrics, prefix)}
    panels += _others(metrics, timings, shown)
    return [panel for panel in panels if any(_has_points(series) for series in panel.series)]


def reward_parts(metrics: Sequence[RolloutRow], evals: Sequence[RolloutRow]) -> list[str]:
    """The parts of the verdicts that are figures of metrics.jsonl too: the rewards, apart."""
    found: dict[str, None] = {}
    for row in evals:
        for problem in row.get("problems", ())[:8]:
            for sample in problem.get("samples", ()):
                found |= dict.fromkeys(sample.get("parts") or ())
    return [name for name in found if any(is_number(row.get(figure_of(name))) for row in metrics)]


# What the panels above already show of metrics.jsonl and timings.jsonl, beside the rewards' parts.
_SHOWN: dict[str, tuple[str, ...]] = {
    "length_training": ("length", "length_right", "length_wrong"),
    "reward": ("reward",),
    "form": ("unanswered", "format"),
    "entropy": ("entropy",),
    "accuracy": ("grader_score",),
    "drift": ("kl_ref", "kl_old"),
    "clip": ("clipped_low", "clipped_high"),
    "signal": ("zero_variance", "truncated"),
    "groups": ("groups", "groups_thrown_away", "groups_waiting"),
    "agreement": ("sync_kl", "sync_kl_bound"),
    "faults": ("faults", "skipped"),
    "speed": ("tokens_per_second",),
    "time": ("rollout", "reward", "update", "sync", "total"),
}


def _accuracy(metrics: Sequence[RolloutRow], evals: Sequence[RolloutRow], accuracy: str) -> Panel:
    k = evals[-1].get("k", "k") if evals else "k"
    series = [
        _held_out(evals, "pass_at_1", "pass@1", "blue"),
        _held_out(evals, "cons_at_k", f"cons@{k}", "orange"),
        _held_out(evals, "pass_at_1", "greedy", "green", of="greedy", line=False),
        *_each(metrics, [
            (figure_of(accuracy), "training", "grey"),
            ("grader_score", "training, by the second grader", "purple"),
        ]),
    ]  # fmt: skip
    note = f"held out, and training on its own problems; {OVER_PROBLEMS}"
    return Panel("accuracy", "Accuracy", series, note, "share", low=0.0, high=1.0)


def _held_out_length(evals: Sequence[RolloutRow]) -> Panel:
    series = [
        _held_out(evals, "length", "all", "blue"),
        _held_out(evals, "length_right", "right", "green"),
        _held_out(evals, "length_wrong", "wrong", "red", dash=True),
    ]
    note = f"tokens, right and wrong answers apart; {OVER_PROBLEMS}"
    return Panel("length", "Response length, held out", series, note, low=0.0)


def _training_length(metrics: Sequence[RolloutRow]) -> Panel:
    series = _each(metrics, [
        ("length", "all", "blue"), ("length_right", "right", "green"),
        ("length_wrong", "wrong", "red"),
    ])  # fmt: skip
    return Panel("length_training", "Response length, training", series, "tokens", low=0.0)


def _rewards(metrics: Sequence[RolloutRow], evals: Sequence[RolloutRow]) -> Panel:
    series = [
        _held_out(evals, "reward", "held out", "blue"),
        *_each(metrics, [("reward", "training", "purple")]),
    ]
    return Panel("reward", "Reward", series, "the weighted sum that is trained on")


def _rewards_apart(metrics: Sequence[RolloutRow], parts: Sequence[str]) -> Panel:
    named = [(figure_of(name), name, _CYCLE[i % len(_CYCLE)]) for i, name in enumerate(parts)]
    return Panel("parts", "Rewards apart", _each(metrics, named), "training, before the weights")


def _pass_at_k(evals: Sequence[RolloutRow]) -> Panel:
    chosen: list[tuple[RolloutRow, Color]] = [(row, "blue") for row in evals[-1:]]
    if len(evals) > 1:
        chosen.insert(0, (evals[0], "grey"))
    series = []
    for row, color in chosen:
        known = {int(k): e for k, e in (row["overall"].get("pass_at_k") or {}).items() if e}
        ks = sorted(known)
        value, low, high = ([known[k][end] for k in ks] for end in ("value", "low", "high"))
        label = f"step {row.get('step') or 0}"
        series.append(Series(label, color, ks, value, low, high, held_out=True))
    note = f"one right answer among k at least; unbiased; {OVER_PROBLEMS}"
    return Panel("pass_at_k", "pass@k, held out", series, note, "share", x="k", low=0.0, high=1.0)


def _form(metrics: Sequence[RolloutRow], evals: Sequence[RolloutRow]) -> Panel:
    series = [
        _held_out(evals, "format", "well-formed", "blue"),
        _held_out(evals, "unanswered", "no answer", "red", dash=True),
        _held_out(evals, "truncated", "cut off", "orange", dash=True),
        *_each(metrics, [("unanswered", "no answer, training", "grey")]),
    ]
    note = "shares of responses, held out"
    return Panel("form", "Form", series, note, "share", low=0.0, high=1.0)


_LEVELS = {
    "level_pass/": ("Pass rate by level", "training, the levels of the curriculum"),
    "level_share/": ("Questions by level", "shares of a step, as the curriculum set them"),
}  # fmt: skip


def _levels(metrics: Sequence[RolloutRow]) -> list[Panel]:
    """Curriculum measurements and choices; empty without a curriculum."""
    panels = []
    for prefix, (title, note) in _LEVELS.items():
        named = [
            (key, key.removeprefix(prefix), _CYCLE[i % len(_CYCLE)])
            for i, key in enumerate(_starting(metrics, prefix))
        ]
        series = _each(metrics, named)
        panels.append(Panel(prefix.rstrip("/"), title, series, note, "share", low=0.0, high=1.0))
    return panels


def _starting(rows: Sequence[RolloutRow], prefix: str) -> list[str]:
    return list(dict.fromkeys(key for row in rows for key in row if key.startswith(prefix)))


def _agreement(metrics: Sequence[RolloutRow]) -> Panel:
    series = _each(
        metrics, [("sync_kl", "k3 estimate", "blue"), ("sync_kl_bound", "bound", "red")],
        above=0.0,
    )  # fmt: skip
    note = "nats a token; a run past its bound stops"
    return Panel("agreement", "KL(sampler, trainer)", series, note, "small", log=True)


def _collected(metrics: Sequence[RolloutRow]) -> list[Series]:
    """Empty if no group was dropped or carried over: an empty panel is omitted."""
    if not any(row.get("groups_thrown_away") or row.get("groups_waiting") for row in metrics):
        return []
    return _each(metrics, [
        ("groups", "sampled", "blue"), ("groups_thrown_away", "thrown away", "orange"),
        ("groups_waiting", "waiting", "green"),
    ])  # fmt: skip


def _troubled(metrics: Sequence[RolloutRow]) -> list[Series]:
    """Empty without failures: an empty panel is omitted."""
    named: list[tuple[str, str, Color]] = [
        ("faults", "responses faulted", "orange"), ("skipped", "updates skipped", "red"),
    ]  # fmt: skip
    return _each(metrics, [one for one in named if any(row.get(one[0]) for row in metrics)])


def _time(timings: Sequence[RolloutRow]) -> Panel:
    phases: list[tuple[str, str, Color]] = [
        ("rollout", "sampling", "blue"), ("reward", "rewards", "orange"),
        ("update", "update", "green"), ("sync", "weight sync", "red"),
    ]  # fmt: skip
    known = {name for name, _, _ in phases} | {"step", "total", "tokens_per_second"}
    phases += [
        (name, name, _CYCLE[(4 + i) % len(_CYCLE)])
        for i, name in enumerate(_seconds(timings, known))
    ]
    series, note = _each(timings, phases), "seconds of a step by phase"
    return Panel("time", "Where the time went", series, note, "seconds", stacked=True, low=0.0)


def _seconds(timings: Sequence[RolloutRow], known: set[str]) -> list[str]:
    """Phases beside the known ones: what a step's total is made of, and no memory or rate."""
    found = dict.fromkeys(key for row in timings for key in row if key not in known)
    return [
        key
        for key in found
        if not any(word in key for word in ("per_", "memory", "bytes", "gib", "mib"))
    ]


def _others(
    metrics: Sequence[RolloutRow], timings: Sequence[RolloutRow], shown: set[str]
) -> list[Panel]:
    """Return a small panel for every other metric, shown on demand."""
    panels = []
    for rows, where in ((metrics, "metrics.jsonl"), (timings, "timings.jsonl")):
        names = dict.fromkeys(key for row in rows for key in row if key not in shown)
        for name in names:
            series = _each(rows, [(name, name, "blue")])
            panels.append(Panel(f"{where}/{name}", name, series, where, "small", extra=True))
    return panels


# ------------------------------------------------------------------------------------- series


def _each(
    rows: Sequence[RolloutRow],
    named: Iterable[tuple[str, str, Color]],
    *,
    above: float | None = None,
) -> list[Series]:
    """Return one line per (key, label, colour) over the steps with a value."""
    lines = []
    for key, label, color in named:
        points = [(row["step"], row[key]) for row in rows if is_number(row.get(key))]
        if above is not None:
            points = [(step, value) for step, value in points if value > above]
        lines.append(Series(label, color, [s for s, _ in points], [v for _, v in points]))
    return lines


def _held_out(
    evals: Sequence[RolloutRow],
    key: str,
    label: str,
    color: Color,
    *,
    of: str = "overall",
    dash: bool = False,
    line: bool = True,
) -> Series:
    """One figure of every evaluation with its interval."""
    points: list[tuple[float, Any]] = [
        (row.get("step") or 0, row[of][key]) for row in evals if row.get(of) and row[of].get(key)
    ]
    steps = [step for step, _ in points]
    value, low, high = (
        [estimate[end] for _, estimate in points] for end in ("value", "low", "high")
    )
    return Series(label, color, steps, value, low, high, held_out=True, dash=dash, line=line)


def _has_points(series: Series) -> bool:
    return any(value is not None for value in series.y)
