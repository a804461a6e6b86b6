"""Monitor a run: preflight, alarms and second grader, reported in the terminal and events.jsonl.

Monitoring draws no random numbers and does not affect training: metrics.jsonl is the same with and
without it, except for the grader's own metrics.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from r1lab.config.recipe import TrainRecipe
from r1lab.monitor.alarms import AlarmMonitor, MetricRow
from r1lab.monitor.preflight import PreflightLimits, judge_prospects
from r1lab.monitor.second_grader import Grader
from r1lab.prompts import Template
from r1lab.run_folder import RunFolder
from r1lab.types import ScoredGroup
from r1lab.verify import Runner, Verifiers


class RunMonitor:
    """Runs on rank 0. Restores its state from metrics.jsonl in `folder`.

    `say` shows a line to the user. `stop_reason` is set once an alarm stops the run.
    """

    def __init__(
        self,
        recipe: TrainRecipe,
        folder: RunFolder,
        verifiers: Verifiers,
        *,
        template: Template,
        runner: Runner,
        say: Callable[[str], None],
    ) -> None:
        self._folder, self._say, self._accuracy = folder, say, verifiers.accuracy
        self._limits = PreflightLimits(
            recipe.sampling.max_tokens, recipe.sampling.max_model_len, recipe.max_fault_share
        )
        figure = verifiers.figures[verifiers.names.index(verifiers.accuracy)]
        self._watcher = AlarmMonitor(recipe.watch, figure)
        self._watcher.replay(folder.metrics())
        settings = recipe.watch.grader
        self._grader = settings and Grader(
            settings, template=template, runner=runner, accuracy=verifiers.accuracy
        )
        self.stop_reason: str | None = None

    def at_start(self, scored: Sequence[ScoredGroup]) -> None:
        """Report the preflight verdict on the samples of the first evaluation."""
        report = judge_prospects(scored, accuracy=self._accuracy, limits=self._limits)
        self._say(report.verdict)
        for point in report.faulty:
            self._say(f"warning: {point.found}; {point.change}")
        self._folder.log_event("prospects", step=0, **report.as_dict())

    def grade(self, scored: Sequence[ScoredGroup]) -> dict[str, Any]:
        """Return the second grader's metrics of a step; empty without a grader."""
        return self._grader.figures(scored) if self._grader else {}

    def see(self, line: MetricRow) -> None:
        """Process a line of metrics.jsonl; an alarm that stops the run sets `stop_reason`."""
        for warned in self._watcher.see(line):
            self._say(f"warning: {warned.text}")
            self._folder.log_event(
                "warning", step=warned.step, alarm=warned.alarm, text=warned.text, stop=warned.stop
            )
            if warned.stop:
                self.stop_reason = self.stop_reason or f"{warned.text} (watch.{warned.alarm}.stop)"
