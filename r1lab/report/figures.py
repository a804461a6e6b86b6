"""Format the main metrics of a step in one line."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

# Figures of metrics.jsonl in the order they are said, with their form. `accuracy` stands for
# whatever part of the verdict tells right from wrong.
LABELS = {"reward": ".3f", "accuracy": ".3f", "length": ".1f"}
# Shown only if nonzero.
_TROUBLE = {"faults": "faulted", "skipped": "skipped updates"}


def said(
    metrics: Mapping[str, Any],
    timings: Mapping[str, Any] | None = None,
    *,
    accuracy: str = "accuracy",
) -> str:
    """Summarise one step: `reward 0.812  accuracy 0.781  length 28.4  3,912 tokens/s`.

    metrics   a line of metrics.jsonl; timings one of timings.jsonl
    accuracy  the part of the verdict that tells right from wrong
    Faults and skipped updates are named with their number of responses where there are any.
    """
    words = []
    for name, form in LABELS.items():
        value = metrics.get(accuracy if name == "accuracy" else name)
        if is_number(value):
            words.append(f"{name} {value:{form}}")
    speed = (timings or {}).get("tokens_per_second")
    if is_number(speed):
        words.append(f"{speed:,.0f} tokens/s")
    words += [f"{metrics[name]:g} {label}" for name, label in _TROUBLE.items() if metrics.get(name)]
    if is_number(gap := metrics.get("sync_kl")):
        words.append(f"sync_kl {gap:.1e}")
    return "  ".join(words)


def is_number(value: object) -> bool:
    """Whether a value is a finite number (a bool is none)."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def duration(seconds: float) -> str:
    """Format seconds as a clock: `0:07`, `5:12`, `1:02:03`, `2 d 03:04`."""
    whole = max(0, round(seconds))
    minutes, second = divmod(whole, 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    if days:
        return f"{days} d {hour:02d}:{minute:02d}"
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"


def sparkline(values: list[float], width: int) -> str:
    """The values as a line of at most `width` bars, lowest to highest; means where they share one.

    Empty for no values, one height throughout where they are all equal.
    """
    if not values:
        return ""
    if len(values) > width:
        ends = [round(i * len(values) / width) for i in range(width + 1)]
        values = [
            sum(part) / len(part) for low, high in pairwise(ends) for part in (values[low:high],)
        ]
    low, high = min(values), max(values)
    bars = "▁▂▃▄▅▆▇█"
    scale = (len(bars) - 1) / (high - low) if high > low else 0.0
    return "".join(bars[round((value - low) * scale)] if scale else bars[3] for value in values)
