"""Run the remaining stages of a pipeline, in parallel where possible.

A stage is run as soon as its inputs are there, its evaluation once it is done and a place is free.
Everything is a process that a user could start by hand, and says so in the stage's log.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from r1lab.config.stages import PipelineRecipe
from r1lab.jobs import LogLine, Task, check_failed, run_tasks
from r1lab.lineage import write_lineage
from r1lab.pipeline.guard import check_stage, held_out_questions
from r1lab.pipeline.measure import (
    TEMPLATE,
    evaluation_command,
    figures_of,
    read_figures,
    summary_file,
    write_figures,
)
from r1lab.pipeline.plan import Stage, read_json
from r1lab.types import RunStopped


@dataclass
class PipelineRun:
    """A running pipeline: `stages` are the requested ones, in order."""

    recipe: PipelineRecipe
    stages: Sequence[Stage]
    again: set[str] = field(default_factory=set)
    jobs: int = 1
    say: LogLine = print
    _held_out: set[str] | None = None
    _begun: set[str] = field(default_factory=set)

    def go(self) -> None:
        """Run all requested stages. Raises RunStopped if a stage fails."""
        for stage in self.stages:
            if stage.name in self.again:
                self._set_aside(stage, "it was to be run again")
        threads = max(len(os.sched_getaffinity(0)) // self.jobs, 1)
        failed = run_tasks(
            self._next(), jobs=self.jobs, threads=threads, say=self.say, then=self._after
        )
        check_failed(failed, len(self._begun))

    def state(self, stage: Stage) -> str:
        """`done`, `to do`, `changed` (its inputs or its recipe have become others) or `waits`."""
        inputs = [other for other in self.stages if other.name in stage.parents]
        if any(self.state(other) != "done" for other in inputs):
            return "waits" if not stage.record else "changed"
        record = stage.record
        if not record:
            return "to do"
        return "done" if record.get("fingerprint") == self._fingerprint(stage) else "changed"

    # --- what can be run ---------------------------------------------------------------------

    def _next(self) -> list[Task]:
        """Stages whose inputs are there, then evaluations of those that are done."""
        found: list[Task] = []
        for stage in self.stages:  # in their order: one that is found done frees those behind it
            if stage.name not in self._begun and self._is_ready(stage):
                found += self._begin(self._stage_task(stage))
        for stage in self.stages:
            if _evaluation_of(stage) not in self._begun and self._lacks_figures(stage):
                found += self._begin(self._evaluation(stage))
        return found

    def _begin(self, task: Task) -> list[Task]:
        """The task, unless it has ended already and a stopped driver did not write that down."""
        self._begun.add(task.label)
        if not task.is_done:
            return [task]
        self._write_down(task)
        return []

    def _after(self, task: Task) -> list[Task]:
        self._write_down(task)
        return self._next()

    def _write_down(self, task: Task) -> None:
        for stage in self.stages:
            if task.label == stage.name:
                self._finish(stage)
            elif task.label == _evaluation_of(stage):
                write_figures(stage, figures_of(stage, self.recipe))

    # --- single stages -----------------------------------------------------------------------

    def _is_ready(self, stage: Stage) -> bool:
        inputs = [other for other in self.stages if other.name in stage.parents]
        return all(self.state(other) == "done" for other in inputs) and (
            self.state(stage) != "done"
        )

    def _fingerprint(self, stage: Stage) -> str:
        digests = {other.name: other.record["sha256"] for other in self.stages
                   if other.name in stage.parents}  # fmt: skip
        return stage.fingerprint(digests)

    def _stage_task(self, stage: Stage) -> Task:
        fingerprint = self._fingerprint(stage)
        begun = read_json(stage.folder / "begun.json").get("fingerprint")
        if stage.folder.exists() and begun != fingerprint:
            self._set_aside(stage, "its recipe or its inputs have become others")
        if self._held_out is None:
            self._held_out = held_out_questions(self.recipe)
        looked_at = check_stage(stage, self._held_out)
        self.say(f"{stage.name}: none of {looked_at:,} questions is held out")
        stage.folder.mkdir(parents=True, exist_ok=True)
        _write(stage.folder / "begun.json", {"fingerprint": fingerprint, "questions": looked_at})
        return Task(
            stage.name, stage.command, stage.ended, stage.folder / "log.txt",
            order=self.stages.index(stage),
        )  # fmt: skip

    def _finish(self, stage: Stage) -> None:
        """Write what it was made from beside the artefact, then that it is done."""
        if not stage.artefact.exists():
            raise RunStopped(
                f"stage {stage.name}: it finished, but {stage.artefact} is missing; "
                f"run it again with --from {stage.name}"
            )
        lineage = write_lineage(
            stage.artefact,
            stage=stage.kind,
            parents=list(stage.parents.values()),
            recipe=stage.recipe,
            name=f"{self.recipe.name}-{stage.name}",
            template=TEMPLATE if stage.is_model else None,
        )
        record = {
            "fingerprint": self._fingerprint(stage),
            "sha256": lineage.sha256,
            "questions_checked": read_json(stage.folder / "begun.json").get("questions"),
        }
        _write(stage.folder / "stage.json", record)

    def _set_aside(self, stage: Stage, why: str) -> None:
        """Rename the folder, so that nothing is lost."""
        if not stage.folder.exists():
            return
        number = 1
        while (target := stage.folder.with_name(f"{stage.name}.old-{number}")).exists():
            number += 1
        shutil.move(stage.folder, target)
        self.say(f"{stage.name}: {why}; what it made before lies in {target}")

    # --- evaluations -------------------------------------------------------------------------

    def _lacks_figures(self, stage: Stage) -> bool:
        wanted = stage.is_model and stage.settings.evaluate and bool(self.recipe.suites)
        return wanted and self.state(stage) == "done" and read_figures(stage) is None

    def _evaluation(self, stage: Stage) -> Task:
        return Task(
            _evaluation_of(stage),
            (sys.executable, "-m", "r1lab", *evaluation_command(stage, self.recipe)),
            summary_file(stage),
            stage.figures / "evaluation.log",
            # Nothing waits for it: the stages go first.
            order=len(self.stages) + self.stages.index(stage),
        )


def _evaluation_of(stage: Stage) -> str:
    return f"{stage.name}, evaluation"


def _write(path: Path, values: Mapping[str, Any]) -> None:
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
    os.replace(temporary, path)
