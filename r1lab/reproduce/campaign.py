"""Run the arms of experiments, seed by seed, and resume after an interruption.

Each pre-training, run and evaluation is a process of its own, started as a user would start it, and
leaves a file at its end that says so: what has one is not done again. Several run in parallel, one
thread each, which on a small model is faster than one after the other with all threads.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from r1lab.config.reading import load_recipe
from r1lab.jobs import Task
from r1lab.reproduce.experiment import Experiment, experiments_folder
from r1lab.reproduce.measure import ExperimentOutcome, Records, outcome_of
from r1lab.reproduce.record import RunRecord, run_folder_of, run_record
from r1lab.run_folder import RunFolder
from r1lab.types import R1labError


@dataclass
class Campaign:
    """Experiments with the seeds they are run on, below one folder.

    `known` are records of runs that were made before, by `record_key`: they are not made again.
    """

    out: Path
    experiments: Sequence[Experiment]
    seeds: Sequence[int]
    overrides: Sequence[str] = ()
    known: Mapping[str, RunRecord] = field(default_factory=dict)
    _tasks: dict[Path, Task] = field(default_factory=dict)

    def tasks(self) -> list[Task]:
        """Everything to be run, in an order in which nothing waits for what comes later.

        An arm that several experiments name is run once; RecipeError where they mean different
        things by it.
        """
        self._tasks = {}
        for experiment in self.experiments:
            for seed in self.seeds:
                for arm in experiment.arms:
                    if record_key(experiment, arm, seed) not in self.known:
                        self._add_run(experiment, arm, seed)
            for seed in self.seeds:
                for arm in experiment.arms:
                    if record_key(experiment, arm, seed) not in self.known:
                        self._add_suites(experiment, arm, seed)
        return list(self._tasks.values())

    def outcome(self, experiment: Experiment) -> ExperimentOutcome:
        """The experiment's verdict from the run folders; R1labError where a run is missing."""
        return outcome_of(experiment, self.records(experiment))

    def records(self, experiment: Experiment) -> Records:
        """The records of an experiment's runs, by arm; R1labError where one is missing."""
        return {
            arm: [self.record(experiment, arm, seed) for seed in self.seeds]
            for arm in experiment.arms
        }

    # --- single tasks ------------------------------------------------------------------------

    def _add_run(self, experiment: Experiment, arm: str, seed: int) -> None:
        settings = experiment.arms[arm]
        folder = run_folder_of(self.out, arm, seed)
        command = [
            "train", str(experiments_folder() / "arms" / f"{settings.recipe}.yaml"), "--resume",
            "--output", str(folder), "--name", f"{arm}-{seed}", "--seed", str(seed),
            "--problems.seed", str(seed),
        ]  # fmt: skip
        needs: tuple[Path, ...] = ()
        if settings.base is not None:
            base = self._add_base(settings.base)
            command += ["--model.path", str(base)]
            needs = (base / "config.json",)
        self._add(
            f"{arm}, seed {seed}", [*command, *self.overrides], folder / "summary.json", needs
        )

    def _add_base(self, name: str) -> Path:
        from r1lab.config.recipe import PretrainRecipe

        path = experiments_folder() / "bases" / f"{name}.yaml"
        load_recipe(path, schema=PretrainRecipe)
        folder = self.out / "bases" / name
        command = ["pretrain", str(path), "--output", str(folder)]
        self._add(f"base {name}", command, folder / "model" / "config.json")
        return folder / "model"

    def _add_suites(self, experiment: Experiment, arm: str, seed: int) -> None:
        folder = run_folder_of(self.out, arm, seed)
        recipe = experiments_folder() / "arms" / f"{experiment.arms[arm].recipe}.yaml"
        for suite in experiment.suites:
            if suite.arm != arm:
                continue
            options = ["--suite", suite.name, "--num", str(suite.num), "--k", str(suite.k)]
            for label, model, place, needs in (
                (f"{arm}, seed {seed}", folder, folder / "suites", (folder / "summary.json",)),
                ("base", recipe, self.out / "suites-of-base", ()),
            ):
                done = place / f"{suite.name}.json"
                command = ["eval", str(model), *options, "--out", str(place), "--json", str(done)]
                self._add(f"{label} on {suite.name}", command, done, needs)

    def _add(
        self, label: str, command: Sequence[str], done: Path, needs: tuple[Path, ...] = ()
    ) -> None:
        known = self._tasks.get(done)
        whole = (sys.executable, "-m", "r1lab", *command)
        if known is not None and known.command != whole:
            raise R1labError(f"{label}: two experiments define it differently")
        log = done.with_suffix(".log") if "eval" in command[:1] else done.parent / "log.txt"
        self._tasks[done] = Task(label, whole, done, log, needs)

    def record(self, experiment: Experiment, arm: str, seed: int) -> RunRecord:
        """The record of one run, with its evaluations; R1labError where they are not done."""
        folder = run_folder_of(self.out, arm, seed)
        key = record_key(experiment, arm, seed)
        if key in self.known:
            return self.known[key]
        names = _suites_of(experiment, arm)
        if not (folder / "summary.json").exists():
            raise R1labError(f"{folder} has not finished; its log is {folder / 'log.txt'}")
        return run_record(
            RunFolder.open(folder),
            arm=arm,
            seed=seed,
            suites=[_read(folder / "suites" / f"{name}.json") for name in names],
            base_suites=[_read(self.out / "suites-of-base" / f"{name}.json") for name in names],
        )


def record_key(experiment: Experiment, arm: str, seed: int) -> str:
    """What a run's record is kept under: with its evaluations it is one of its own."""
    return f"{arm}/{seed}" + ("/suites" if _suites_of(experiment, arm) else "")


def _suites_of(experiment: Experiment, arm: str) -> list[str]:
    """The suites on which an arm's models are evaluated beside their runs."""
    return [suite.name for suite in experiment.suites if suite.arm == arm]


def _read(path: Path) -> Any:
    import json

    if not path.exists():
        raise R1labError(f"{path}: this evaluation has not finished")
    return json.loads(path.read_text(encoding="utf-8"))
