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
    """Add the arguments of `r1lab reproduce`."""
    parser.usage = f"{parser.prog} NAME... [options]"
    parser.set_defaults(takes_overrides=False)
    parser.add_argument(
        "names", metavar="NAME", nargs="*", help="experiments to run; `all` for every shipped one"
    )
    parser.add_argument("--list", action="store_true", help="list the experiments and exit")
    parser.add_argument(
        "--seeds", type=whole(1), metavar="N", help="run seeds 0 to N-1 (default: per experiment)"
    )
    parser.add_argument(
        "--out", metavar="FOLDER", default="runs/reproduce",
        help="folder for the runs (default: runs/reproduce)",
    )  # fmt: skip
    parser.add_argument(
        "--records", metavar="FILE", type=Path,
        help="records of earlier runs, which are not repeated (docs/reproduction/records.json)",
    )  # fmt: skip
    parser.add_argument(
        "--jobs", type=whole(1), metavar="N",
        help="parallel processes (default: one per core, at most one per run)",
    )  # fmt: skip
    parser.add_argument(
        "--dry-run", action="store_true", help="list finished and remaining runs, and exit"
    )
    parser.epilog = (
        "Run the same command again to resume an interrupted campaign. Runs that several\n"
        "experiments share are run once. docs/reproduction.md has the committed results."
    )


def reproduce(options: argparse.Namespace, _: object) -> int:
    """`r1lab reproduce NAME...`."""
    from r1lab.reproduce.experiment import experiment_names, load_experiment

    if options.list:
        for name in experiment_names():
            listed = load_experiment(name)
            print(f"{name:12} {listed.claim} ({listed.source}; {listed.minutes:g} min per seed)")
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
        print(f"{len(left)} of {len(tasks)} runs to do, {jobs} in parallel")
        return 0
    try:
        failed = run_tasks(tasks, jobs=jobs, threads=max(cores // jobs, 1), say=print)
    except KeyboardInterrupt:
        print("interrupted; the runs are saved, run the same command again to resume")
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
    """Print an experiment's verdict; write it and its plot into the campaign's folder."""
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
    """Print a verdict with the measurements it is based on."""
    seeds = f"{len(outcome.seeds)} seed{'s' if len(outcome.seeds) > 1 else ''}"
    print(f"\n{outcome.name}: {outcome.verdict} ({seeds})\n  {outcome.claim} ({outcome.source})")
    for finding in outcome.findings:
        interval = "" if finding.low is None else f" [{finding.low:.3f}, {finding.high:.3f}]"
        met = {"yes": "met", "in the mean": "met in the mean", "no": "not met", "reported": ""}
        wanted = f", wanted {finding.threshold}" if finding.threshold else ""
        print(f"  {met[finding.met]:15} {finding.says}: {finding.mean:.3f}{interval}{wanted}")
