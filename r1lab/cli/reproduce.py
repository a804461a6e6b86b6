"""The command that reproduces the papers' curves: `r1lab reproduce`."""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

from r1lab.cli.arguments import whole
from r1lab.types import R1labError, RecipeError

if TYPE_CHECKING:
    from r1lab.reproduce.campaign import Campaign
    from r1lab.reproduce.experiment import Experiment
    from r1lab.reproduce.measure import ExperimentOutcome


def add_reproduce_options(parser: argparse.ArgumentParser) -> None:
    """The arguments of `r1lab reproduce`."""
    parser.usage = f"{parser.prog} NAME... [options]"
    parser.set_defaults(takes_overrides=False)
    parser.add_argument(
        "names", metavar="NAME", nargs="*", help="experiments; `all` for every one that ships"
    )
    parser.add_argument("--list", action="store_true", help="list the experiments, and exit")
    parser.add_argument(
        "--seeds", type=whole(1), metavar="N", help="run seeds 0 to N-1 (as each experiment says)"
    )
    parser.add_argument(
        "--out", metavar="FOLDER", default="runs/reproduce", help="of the runs (runs/reproduce)"
    )
    parser.add_argument(
        "--records", metavar="FILE", type=Path,
        help="runs whose records are in it are not made again (docs/reproduction/records.json)",
    )  # fmt: skip
    parser.add_argument(
        "--jobs", type=whole(1), metavar="N",
        help="processes side by side (as many as cores, at most one a run)",
    )  # fmt: skip
    parser.add_argument(
        "--dry-run", action="store_true", help="say what would be run and what is there, and stop"
    )
    parser.epilog = (
        "An interrupted campaign goes on where it stopped when it is called again. Runs that\n"
        "several experiments share are run once. docs/reproduction.md has the committed results."
    )


def reproduce(options: argparse.Namespace, _: object) -> int:
    """`r1lab reproduce NAME...`."""
    from r1lab.reproduce.experiment import experiment_names, load_experiment

    if options.list:
        for name in experiment_names():
            found = load_experiment(name)
            print(f"{name:12} {found.claim} ({found.source}; {found.minutes:g} min a seed)")
        return 0
    if not options.names:
        raise R1labError("reproduce: name an experiment, or `all` (see r1lab reproduce --list)")
    names = experiment_names() if "all" in options.names else options.names
    experiments = [load_experiment(name) for name in dict.fromkeys(names)]
    if importlib.util.find_spec("torch") is None:
        raise RecipeError("torch is not installed here; install r1lab's extra [cpu] or [gpu]")
    return _run(options, experiments)


def _run(options: argparse.Namespace, experiments: list[Experiment]) -> int:
    from r1lab.jobs import check_failed, run_tasks
    from r1lab.reproduce.campaign import Campaign
    from r1lab.reproduce.record import read_records

    groups: dict[int, list[Experiment]] = {}
    for experiment in experiments:
        groups.setdefault(options.seeds or experiment.seeds, []).append(experiment)
    known = read_records(options.records) if options.records else {}
    campaigns = [Campaign(Path(options.out), of, range(n), known=known) for n, of in groups.items()]
    tasks = list({task.done: task for of in campaigns for task in of.tasks()}.values())
    left = [task for task in tasks if not task.is_done]
    cores = len(os.sched_getaffinity(0))
    jobs = min(options.jobs or cores, max(len(left), 1))
    if options.dry_run:
        for task in tasks:
            print(f"{'done' if task.is_done else 'to do':6} {task.label}: {task.done}")
        print(f"{len(left)} of {len(tasks)} to be run, {jobs} side by side")
        return 0
    try:
        failed = run_tasks(tasks, jobs=jobs, threads=max(cores // jobs, 1), say=print)
    except KeyboardInterrupt:
        print("interrupted; its runs are saved, and the same command goes on with them")
        raise
    for campaign in campaigns:
        for experiment in campaign.experiments:
            try:
                _tell(campaign, experiment)
            except R1labError as error:
                print(f"\n{experiment.name}: no verdict: {error}")
    check_failed(failed, len(tasks))
    return 0


def _tell(campaign: Campaign, experiment: Experiment) -> None:
    """Print an experiment's verdict, and write it with its picture below the campaign's folder."""
    from r1lab.reproduce.draw import draw_experiment
    from r1lab.reproduce.measure import outcome_of

    records = campaign.records(experiment)
    outcome = outcome_of(experiment, records)
    print_outcome(outcome)
    folder = campaign.out / "verdicts"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{experiment.name}.json"
    path.write_text(json.dumps(outcome.as_dict(), indent=1) + "\n", encoding="utf-8")
    print(f"  {path}, {draw_experiment(experiment, records, path.with_suffix('.png'))}")


def print_outcome(outcome: ExperimentOutcome) -> None:
    """A verdict with the figures that it rests on."""
    seeds = f"{len(outcome.seeds)} seed{'s' if len(outcome.seeds) > 1 else ''}"
    print(f"\n{outcome.name}: {outcome.verdict} ({seeds})\n  {outcome.claim} ({outcome.source})")
    for finding in outcome.findings:
        interval = "" if finding.low is None else f" [{finding.low:.3f}, {finding.high:.3f}]"
        met = {"yes": "met", "in the mean": "met in the mean", "no": "not met", "reported": ""}
        wanted = f", wanted {finding.threshold}" if finding.threshold else ""
        print(f"  {met[finding.met]:15} {finding.says}: {finding.mean:.3f}{interval}{wanted}")
