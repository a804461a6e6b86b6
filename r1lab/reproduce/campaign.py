"""Running the arms of experiments, seed by seed, and going on where that stopped.

Each pre-training, run and evaluation is a process of its own, started as a user would start it, and
leaves a file at its end that says so: what has one is not done again. Several go side by side, one
thread each, which on a small model is faster than one after the other with all threads.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from r1lab.recipe_io import load_recipe
from r1lab.reproduce.experiment import Experiment, experiments_folder
from r1lab.reproduce.measure import Outcome, Records, outcome_of
from r1lab.reproduce.record import Record, run_folder_of, run_record
from r1lab.run_folder import RunFolder
from r1lab.types import R1labError, RunStopped

Say = Callable[[str], None]
_TURN = 0.5  # seconds between looks at the processes


@dataclass(frozen=True)
class Task:
    """One process: `command` makes `done`, once all files of `needs` are there."""

    label: str
    command: tuple[str, ...]
    done: Path
    log: Path
    needs: tuple[Path, ...] = ()

    @property
    def is_done(self) -> bool:
        return self.done.exists()


@dataclass
class Campaign:
    """Experiments with the seeds they are run on, below one folder.

    `known` are records of runs that were made before, by `record_key`: they are not made again.
    """

    out: Path
    experiments: Sequence[Experiment]
    seeds: Sequence[int]
    overrides: Sequence[str] = ()
    known: Mapping[str, Record] = field(default_factory=dict)
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

    def outcome(self, experiment: Experiment) -> Outcome:
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
        from r1lab.recipe import PretrainRecipe

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
            raise R1labError(f"{label}: two experiments mean different things by it")
        log = done.with_suffix(".log") if "eval" in command[:1] else done.parent / "log.txt"
        self._tasks[done] = Task(label, whole, done, log, needs)

    def record(self, experiment: Experiment, arm: str, seed: int) -> Record:
        """The record of one run, with its evaluations; R1labError where they are not done."""
        folder = run_folder_of(self.out, arm, seed)
        key = record_key(experiment, arm, seed)
        if key in self.known:
            return self.known[key]
        names = _suites_of(experiment, arm)
        if not (folder / "summary.json").exists():
            raise R1labError(f"{folder} has not come to its end; its log is {folder / 'log.txt'}")
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
        raise R1labError(f"{path}: this evaluation has not come to its end")
    return json.loads(path.read_text(encoding="utf-8"))


def run_tasks(tasks: Iterable[Task], *, jobs: int, threads: int, say: Say) -> list[Task]:
    """Run what is not done yet, `jobs` side by side with so many threads each; those that failed.

    A task that fails does not stop the others, but what needs it is left out. Interrupted, it ends
    the processes in the way of a signal, which saves their runs, and raises KeyboardInterrupt.
    """
    waiting = [task for task in tasks if not task.is_done]
    total, running = len(waiting), dict[subprocess.Popen[bytes], tuple[Task, float]]()
    failed: list[Task] = []
    try:
        while waiting or running:
            for process in [p for p in running if p.poll() is not None]:
                task, began = running.pop(process)
                minutes = (time.monotonic() - began) / 60
                if task.is_done:
                    done = total - len(waiting) - len(running) - len(failed)
                    say(f"{task.label}: done in {minutes:.1f} min ({done} of {total})")
                else:
                    failed.append(task)
                    say(f"{task.label}: failed with exit code {process.returncode}: {_last(task)}")
            ready = [task for task in waiting if all(path.exists() for path in task.needs)]
            for task in ready[: max(jobs - len(running), 0)]:
                waiting.remove(task)
                running[_start(task, threads)] = (task, time.monotonic())
                say(f"{task.label}: started")
            if waiting and not running and not ready:  # what they need has failed
                return [*failed, *waiting]
            time.sleep(_TURN)
    except BaseException:
        _end(list(running))
        raise
    return failed


def _start(task: Task, threads: int) -> subprocess.Popen[bytes]:
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": str(threads),
        # Threads that wait asleep: spinning ones slow a small model down on busy cores.
        "OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "PASSIVE"),
        "KMP_BLOCKTIME": os.environ.get("KMP_BLOCKTIME", "0"),
    }
    task.log.parent.mkdir(parents=True, exist_ok=True)
    with task.log.open("ab") as log:
        # In a session of its own: Ctrl-C reaches it once, through this driver.
        return subprocess.Popen(
            task.command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment,
            start_new_session=True,
        )  # fmt: skip


def _end(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    for process in processes:
        process.terminate()
    for process in processes:
        try:
            process.wait(120)
        except subprocess.TimeoutExpired:
            process.kill()


def _last(task: Task) -> str:
    """The last line that a task wrote, which is where an error of r1lab's stands."""
    lines = task.log.read_text(encoding="utf-8", errors="replace").replace("\r", "\n").split("\n")
    said = [line.strip() for line in lines if line.strip()]
    return f"{said[-1][:300] if said else 'it said nothing'} ({task.log})"


def check_failed(failed: Sequence[Task], total: int) -> None:
    """RunStopped where tasks failed, after everything else has been run and shown."""
    if failed:
        names = "; ".join(task.label for task in failed)
        raise RunStopped(
            f"{len(failed)} of {total} could not be run ({names}); see their logs, mend the cause "
            "and give the same command again"
        )
