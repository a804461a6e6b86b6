"""Alarms: detect runs that stop learning. Input are the lines of metrics.jsonl, output is alerts.

The state depends only on those lines in their order, so replaying the lines of an interrupted run
restores it. Each alarm looks at means over its last `steps` lines, skips lines that lack its
metrics, and fires once per episode: an episode ends when the condition has not been seen for
`steps` lines.

The metrics (see `r1lab.grpo.step.summarise`): the accuracy component, `truncated`, `length`,
`entropy` (nats per token), `zero_variance`, and `grader_gap` (`r1lab.monitor.second_grader`).
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from r1lab.config.alarms import (
    Alarm,
    EntropyCollapses,
    LengthCollapses,
    NoVariance,
    RewardDead,
    SecondGrader,
    TruncationTakesOver,
    WatchSettings,
)

MetricRow = Mapping[str, Any]
Means = Mapping[str, float]

# A dead reward is constant: less than this between the minimum and maximum of its window.
_STILL = 0.01
# A reward must have been this high before a drop counts as a fall.
_ALIVE = 0.1
# Shorter responses with accuracy higher by this much are progress, not collapse: a base that
# rambled until it was cut off has learnt to end. (Two standard errors of the mean of five steps of
# 512 responses are below 0.02.)
_PROGRESS = 0.05
# A policy with this accuracy has little left to explore.
_SOLVED = 0.9


@dataclass(frozen=True, slots=True)
class Alert:
    """One alert: the alarm's key in the section `watch`, the step, and the message."""

    alarm: str
    step: int
    text: str
    stop: bool


class AlarmMonitor:
    """All alarms of a recipe. `accuracy` is the metric that separates right from wrong."""

    def __init__(self, settings: WatchSettings, accuracy: str = "accuracy") -> None:
        kinds: dict[str, type[_Watch]] = {
            "reward_dead": _RewardDead,
            "truncation": _Truncation,
            "length": _Length,
            "entropy": _Entropy,
            "no_variance": _NoVariance,
            "grader": _Grader,
        }
        self._watches = {
            key: kind(alarm, accuracy)
            for key, kind in kinds.items()
            if (alarm := getattr(settings, key)) is not None
        }

    def see(self, line: MetricRow) -> list[Alert]:
        """Process the next step's line; return the alerts of episodes that begin with it."""
        return [
            Alert(key, int(line["step"]), text, watch.alarm.stop)
            for key, watch in self._watches.items()
            if (text := watch.see(line)) is not None
        ]

    def replay(self, lines: Sequence[MetricRow]) -> None:
        """Process lines of earlier steps, whose alerts were already reported."""
        for line in lines:
            self.see(line)


class _Watch:
    """One alarm: its window, and whether it is in an episode."""

    figures: tuple[str, ...] = ()  # metrics a line must have; `accuracy` is the recipe's

    def __init__(self, alarm: Any, accuracy: str) -> None:
        self.alarm: Alarm = alarm
        self._settings = alarm
        self._names = {name: accuracy if name == "accuracy" else name for name in self.figures}
        self._window: deque[dict[str, float]] = deque(maxlen=alarm.steps)
        self._in_episode, self._quiet = False, 0

    def see(self, line: MetricRow) -> str | None:
        # Skip None and missing metrics. Non-finite ones are null in the file that a resume reads.
        values = {
            figure: float(value)
            for figure, name in self._names.items()
            if (value := line.get(name)) is not None and math.isfinite(value)
        }
        if len(values) < len(self._names):
            return None
        self._window.append(values)
        if len(self._window) < self.alarm.steps:
            return None
        text = self.judge({f: fmean(row[f] for row in self._window) for f in self.figures})
        self._quiet = 0 if text else self._quiet + 1
        begins = text is not None and not self._in_episode
        self._in_episode = text is not None or (self._in_episode and self._quiet < self.alarm.steps)
        return text if begins else None

    def judge(self, now: Means) -> str | None:
        """Return what is wrong, given the means over the window, or None."""
        raise NotImplementedError

    def column(self, figure: str) -> list[float]:
        """Return a metric over the window."""
        return [row[figure] for row in self._window]


class _RewardDead(_Watch):
    figures = ("accuracy",)
    _settings: RewardDead

    def __init__(self, alarm: Any, accuracy: str) -> None:
        super().__init__(alarm, accuracy)
        self._best = float("-inf")

    def judge(self, now: Means) -> str | None:
        name, steps, column = self._names["accuracy"], self.alarm.steps, self.column("accuracy")
        self._best = max(self._best, now["accuracy"])
        if max(column) <= self._settings.below and max(column) - min(column) <= _STILL:
            return (
                f"the reward is dead: {name} is {now['accuracy']:.3g} for {steps} steps; look "
                "at samples (r1lab show), and test the reward on right answers (r1lab verify)"
            )
        if self._best > _ALIVE and now["accuracy"] < self._settings.fallen * self._best:
            return (
                f"the reward collapsed: {name} fell from {self._best:.2f} to "
                f"{now['accuracy']:.2f} (means over {steps} steps); lower optimizer.learning_rate, "
                "then restart from an earlier checkpoint"
            )
        return None


class _Truncation(_Watch):
    figures = ("truncated",)
    _settings: TruncationTakesOver

    def judge(self, now: Means) -> str | None:
        if now["truncated"] <= self._settings.above:
            return None
        return (
            f"too many truncated responses: {now['truncated']:.0%} of those of the last "
            f"{self.alarm.steps} steps were cut off; raise sampling.max_tokens"
        )


class _Length(_Watch):
    figures = ("length", "accuracy")
    _settings: LengthCollapses

    def __init__(self, alarm: Any, accuracy: str) -> None:
        super().__init__(alarm, accuracy)
        self._longest: Means = {"length": 0.0, "accuracy": 0.0}

    def judge(self, now: Means) -> str | None:
        if now["length"] >= self._longest["length"]:
            self._longest = now
        before = self._longest
        if (
            now["length"] >= self._settings.below * before["length"]
            or now["accuracy"] >= before["accuracy"] + _PROGRESS
        ):
            return None
        return (
            f"length collapsed: responses went from {before['length']:.1f} to "
            f"{now['length']:.1f} tokens and {self._names['accuracy']} from "
            f"{before['accuracy']:.2f} to {now['accuracy']:.2f}; check whether a reward favours "
            "short answers, lower optimizer.learning_rate, then restart from an earlier checkpoint"
        )


class _Entropy(_Watch):
    figures = ("entropy", "accuracy")
    _settings: EntropyCollapses

    def __init__(self, alarm: Any, accuracy: str) -> None:
        super().__init__(alarm, accuracy)
        self._first: float | None = None

    def judge(self, now: Means) -> str | None:
        if self._first is None:
            self._first = now["entropy"]
        if now["entropy"] >= self._settings.below * self._first or now["accuracy"] >= _SOLVED:
            return None
        return (
            f"entropy collapsed: from {self._first:.3g} to {now['entropy']:.3g} nats per token, "
            f"with {self._names['accuracy']} at {now['accuracy']:.2f}: the policy has stopped "
            "exploring; lower optimizer.learning_rate or raise algorithm.clip_high, then restart "
            "from an earlier checkpoint"
        )


class _NoVariance(_Watch):
    figures = ("zero_variance", "accuracy")
    _settings: NoVariance

    def judge(self, now: Means) -> str | None:
        if now["zero_variance"] < self._settings.above:
            return None
        way_on = (
            "the problems are solved: use harder ones, or end the run"
            if now["accuracy"] >= _SOLVED
            else "use easier problems, or raise sampling.group_size or sampling.temperature"
        )
        return (
            f"groups have no variance: in {now['zero_variance']:.0%} of those of the last "
            f"{self.alarm.steps} steps all rewards are equal, so they give no gradient "
            f"({self._names['accuracy']} {now['accuracy']:.2f}); {way_on}"
        )


class _Grader(_Watch):
    figures = ("grader_gap",)
    _settings: SecondGrader

    def __init__(self, alarm: Any, accuracy: str) -> None:
        super().__init__(alarm, accuracy)
        self._lowest = float("inf")

    def judge(self, now: Means) -> str | None:
        gap = now["grader_gap"]
        self._lowest = min(self._lowest, gap)
        if gap - self._lowest <= self._settings.rise:
            return None
        return (
            f"the second grader increasingly disagrees: the training reward is {gap:.2f} above "
            f"{self._settings.reward!r}, up from {self._lowest:.2f}; the policy may be gaming the "
            "reward: read its responses (r1lab show), and fix the reward"
        )
