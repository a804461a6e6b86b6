"""The watcher: does a run still learn? Fed with the lines of metrics.jsonl, it yields warnings.

All that it knows comes from those lines, in their order: fed again with the lines of an interrupted
run it stands where it stood. Each alarm looks at means over its last `steps` lines, passes over
lines that lack its figure, and speaks once an episode: an episode ends when what it warned of has
not been seen for `steps` lines.

The figures (see `r1lab.grpo.step.summarise`): the part that tells right from wrong, `truncated`,
`length`, `entropy` (nats per token), `zero_variance`, and `grader_gap`
(`r1lab.monitor.second_grader`).
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

# A dead reward stands still: less than this between the lowest and the highest of its window.
_STILL = 0.01
# A reward must have been this high to be said to fall.
_ALIVE = 0.1
# Shorter responses that are right more often by this much are no collapse but progress: a base that
# rambled until it was cut off has learnt to end. (Two standard errors of the mean of five steps of
# 512 responses are below 0.02.)
_PROGRESS = 0.05
# A policy that is right this often has little to explore.
_SOLVED = 0.9


@dataclass(frozen=True, slots=True)
class Alert:
    """One warning: the alarm's key in the section `watch`, where it spoke, and what it said."""

    alarm: str
    step: int
    text: str
    stop: bool


class AlarmMonitor:
    """All alarms of a recipe. `accuracy` is the figure that tells right from wrong."""

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
        """Take the next step's line; the warnings of episodes that begin with it."""
        return [
            Alert(key, int(line["step"]), text, watch.alarm.stop)
            for key, watch in self._watches.items()
            if (text := watch.see(line)) is not None
        ]

    def replay(self, lines: Sequence[MetricRow]) -> None:
        """Take lines that were seen before: what they warned of has been said."""
        for line in lines:
            self.see(line)


class _Watch:
    """One alarm: its window, and the episode that it is in."""

    figures: tuple[str, ...] = ()  # that a line must have; `accuracy` is that of the recipe

    def __init__(self, alarm: Any, accuracy: str) -> None:
        self.alarm: Alarm = alarm
        self._settings = alarm
        self._names = {name: accuracy if name == "accuracy" else name for name in self.figures}
        self._window: deque[dict[str, float]] = deque(maxlen=alarm.steps)
        self._in_episode, self._quiet = False, 0

    def see(self, line: MetricRow) -> str | None:
        # None and what is missing; what is not finite is null in the file, which a resume reads.
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
        """What is wrong, given the means over the window; None where nothing is."""
        raise NotImplementedError

    def column(self, figure: str) -> list[float]:
        """A figure over the window."""
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
                f"the reward is dead: {name} is at {now['accuracy']:.3g} for {steps} steps; look "
                "at samples (r1lab show), and try the reward on right answers (r1lab verify)"
            )
        if self._best > _ALIVE and now["accuracy"] < self._settings.fallen * self._best:
            return (
                f"the reward dies: {name} fell from {self._best:.2f} to {now['accuracy']:.2f} "
                f"(means over {steps} steps); lower optimizer.learning_rate, and begin again "
                "before it fell"
            )
        return None


class _Truncation(_Watch):
    figures = ("truncated",)
    _settings: TruncationTakesOver

    def judge(self, now: Means) -> str | None:
        if now["truncated"] <= self._settings.above:
            return None
        return (
            f"truncation takes over: {now['truncated']:.0%} of the responses of the last "
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
            f"length collapses: responses went from {before['length']:.1f} to "
            f"{now['length']:.1f} tokens and {self._names['accuracy']} from "
            f"{before['accuracy']:.2f} to {now['accuracy']:.2f}; look whether a reward pays for "
            "short answers, lower optimizer.learning_rate, and begin again before it happened"
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
            f"entropy collapses: from {self._first:.3g} to {now['entropy']:.3g} nats a token, with "
            f"{self._names['accuracy']} at {now['accuracy']:.2f}: the policy explores no more; "
            "lower optimizer.learning_rate or raise algorithm.clip_high, and begin again before it "
            "happened"
        )


class _NoVariance(_Watch):
    figures = ("zero_variance", "accuracy")
    _settings: NoVariance

    def judge(self, now: Means) -> str | None:
        if now["zero_variance"] < self._settings.above:
            return None
        way_on = (
            "the problems are solved: take harder ones, or end the run"
            if now["accuracy"] >= _SOLVED
            else "take easier problems, or raise sampling.group_size or sampling.temperature"
        )
        return (
            f"groups have no variance: in {now['zero_variance']:.0%} of those of the last "
            f"{self.alarm.steps} steps all rewards are equal and teach nothing "
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
            f"the second grader disagrees more and more: the training reward is {gap:.2f} above "
            f"{self._settings.reward!r}, after {self._lowest:.2f} at best; the policy may be "
            "gaming the reward: read what it wrote (r1lab show), and mend the reward"
        )
