"""Running a pipeline: what is not done yet, side by side where it can be, and on from there.

Stages whose inputs are there are run together in waves; the evaluations of finished stages go along
with the next wave. Everything is a process that a user could start by hand, and says so in the
stage's log.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

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
from r1lab.pipeline.plan import Stage
from r1lab.recipe_stages import PipelineRecipe
from r1lab.tasks import Task, check_failed, run_tasks

Say = Callable[[str], None]


@dataclass
class PipelineRun:
    """A pipeline under way: `stages` are those that are wanted, in their order."""

    recipe: PipelineRecipe
    stages: Sequence[Stage]
    again: set[str] = field(default_factory=set)
    jobs: int = 1
    say: Say = print
    _held_out: set[str] | None = None

    def go(self) -> None:
        """Run everything that is wanted. Raises RunStopped where a stage fails."""
        for stage in self.stages:
            if stage.name in self.again:
                self._set_aside(stage, "it was to be run again")
        while True:
            ready = [stage for stage in self.stages if self._is_ready(stage)]
            tasks = [self._stage_task(stage) for stage in ready] + self._evaluations()
            if not tasks:
                break
            cores = len(os.sched_getaffinity(0))
            jobs = min(self.jobs, len(tasks))
            failed = run_tasks(tasks, jobs=jobs, threads=max(cores // jobs, 1), say=self.say)
            for stage in ready:
                if stage.ended.exists() and stage.artefact.exists():
                    self._finish(stage)
            for stage in self.stages:
                if self._lacks_figures(stage) and summary_file(stage).exists():
                    write_figures(stage, figures_of(stage, self.recipe))
            check_failed(failed, len(tasks))

    def state(self, stage: Stage) -> str:
        """`done`, `to do`, `changed` (its inputs or its recipe have become others) or `waits`."""
        inputs = [other for other in self.stages if other.name in stage.parents]
        if any(self.state(other) != "done" for other in inputs):
            return "waits" if not _record(stage) else "changed"
        record = _record(stage)
        if not record:
            return "to do"
        return "done" if record.get("fingerprint") == self._fingerprint(stage) else "changed"

    # --- single stages -----------------------------------------------------------------------

    def _is_ready(self, stage: Stage) -> bool:
        inputs = [other for other in self.stages if other.name in stage.parents]
        return all(self.state(other) == "done" for other in inputs) and (
            self.state(stage) != "done"
        )

    def _fingerprint(self, stage: Stage) -> str:
        digests = {other.name: _record(other)["sha256"] for other in self.stages
                   if other.name in stage.parents}  # fmt: skip
        return stage.fingerprint(digests)

    def _stage_task(self, stage: Stage) -> Task:
        fingerprint = self._fingerprint(stage)
        begun = _read(stage.folder / "begun.json").get("fingerprint")
        if stage.folder.exists() and begun != fingerprint:
            self._set_aside(stage, "its recipe or its inputs have become others")
        if self._held_out is None:
            self._held_out = held_out_questions(self.recipe)
        looked_at = check_stage(stage, self._held_out)
        self.say(f"{stage.name}: none of {looked_at:,} questions is held out")
        stage.folder.mkdir(parents=True, exist_ok=True)
        _write(stage.folder / "begun.json", {"fingerprint": fingerprint, "questions": looked_at})
        return Task(stage.name, stage.command, stage.ended, stage.folder / "log.txt")

    def _finish(self, stage: Stage) -> None:
        """Write what it was made from beside the artefact, then that it is done."""
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
            "questions_checked": _read(stage.folder / "begun.json").get("questions"),
        }
        _write(stage.folder / "stage.json", record)

    def _set_aside(self, stage: Stage, why: str) -> None:
        """Nothing is lost: the folder is kept under another name."""
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

    def _evaluations(self) -> list[Task]:
        return [
            Task(
                f"{stage.name}, evaluation",
                (sys.executable, "-m", "r1lab", *evaluation_command(stage, self.recipe)),
                summary_file(stage),
                stage.folder / "evaluation.log",
            )
            for stage in self.stages
            if self._lacks_figures(stage)
        ]


def _record(stage: Stage) -> dict[str, Any]:
    return _read(stage.folder / "stage.json")


def _read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return found


def _write(path: Path, values: Mapping[str, Any]) -> None:
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
    os.replace(temporary, path)
