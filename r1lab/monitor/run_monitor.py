"""What looks after a run while it goes: its prospects, its watcher and its second grader, heard in
the terminal and in events.jsonl.

Nothing here draws a random number or changes what is trained: metrics.jsonl is the same with and
without it, but for the grader's own figures.
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
    """Of the process that writes `folder`; it takes up what the lines there say of steps before.

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
        """Say what the samples of the first evaluation make of the run's prospects."""
        found = judge_prospects(scored, accuracy=self._accuracy, limits=self._limits)
        self._say(found.verdict)
        for point in found.faulty:
            self._say(f"warning: {point.found}; {point.change}")
        self._folder.log_event("prospects", step=0, **found.as_dict())

    def grade(self, scored: Sequence[ScoredGroup]) -> dict[str, Any]:
        """The second grader's figures of a step, for metrics.jsonl; empty where there is none."""
        return self._grader.figures(scored) if self._grader else {}

    def see(self, line: MetricRow) -> None:
        """Take a step's line of metrics.jsonl; an alarm that stops the run sets `stop_reason`."""
        for warned in self._watcher.see(line):
            self._say(f"warning: {warned.text}")
            self._folder.log_event(
                "warning", step=warned.step, alarm=warned.alarm, text=warned.text, stop=warned.stop
            )
            if warned.stop:
                self.stop_reason = self.stop_reason or f"{warned.text} (watch.{warned.alarm}.stop)"
