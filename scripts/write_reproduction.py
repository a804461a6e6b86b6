"""docs/reproduction.md from the runs of `r1lab reproduce`, or again from what is committed of them.

    python scripts/write_reproduction.py --runs runs/reproduce    # records, tables, pictures
    python scripts/write_reproduction.py                          # the same from docs/reproduction/

Of every run a small record is kept (docs/reproduction/records.json), also of runs whose experiment
is not complete: `r1lab reproduce --records` does not make them again, and a record that is kept is
not replaced (take it out of the file for that). Verdicts and pictures follow
from the records alone, and so do docs/reproduction.json and the tables between the markers of
docs/reproduction.md. What stands outside the markers is written by hand. An experiment without
records of all its arms is left out and said. Prints one JSON line last.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from r1lab.reproduce.campaign import Campaign, record_key
from r1lab.reproduce.draw import draw_experiment
from r1lab.reproduce.experiment import Experiment, experiment_names, load_experiment
from r1lab.reproduce.measure import ExperimentOutcome, Records, ThresholdResult, outcome_of
from r1lab.reproduce.record import RunRecord, read_records
from r1lab.types import R1labError

DOCS = Path(__file__).resolve().parents[1] / "docs"
RECORDS = DOCS / "reproduction" / "records.json"
BEGIN, END = "<!-- tables: scripts/write_reproduction.py -->", "<!-- end of the tables -->"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=Path, help="folder of `r1lab reproduce` to read first")
    parser.add_argument("--seeds", type=int, default=3, help="of each experiment there (3)")
    options = parser.parse_args()
    records = read_records(RECORDS) if RECORDS.exists() else {}
    experiments = [load_experiment(name) for name in experiment_names()]
    seeds = range(options.seeds)
    if options.runs is not None:
        for experiment in experiments:
            campaign = Campaign(options.runs, [experiment], seeds, known=records)
            records = {**records, **read_runs(campaign, experiment)}
    write_records(records)
    records = read_records(RECORDS)  # rounded as they are kept: what is said follows from those
    outcomes: list[tuple[Experiment, ExperimentOutcome]] = []
    for experiment in experiments:
        found, missing = records_of(experiment, records, seeds)
        if missing:
            print(f"{experiment.name}: not run yet: {', '.join(missing)}", file=sys.stderr)
            continue
        outcomes.append((experiment, outcome_of(experiment, found)))
        draw_experiment(experiment, found, DOCS / "reproduction" / f"{experiment.name}.png")
    claims = [outcome.as_dict() for _, outcome in outcomes]
    (DOCS / "reproduction.json").write_text(json.dumps({"claims": claims}, indent=1) + "\n")
    write_tables(outcomes)
    print(json.dumps({outcome.name: outcome.verdict for _, outcome in outcomes}))
    return 0


def read_runs(campaign: Campaign, experiment: Experiment) -> dict[str, RunRecord]:
    """The records of those of an experiment's runs that have come to their end."""
    found = {}
    for arm in experiment.arms:
        for seed in campaign.seeds:
            try:
                found[record_key(experiment, arm, seed)] = campaign.record(experiment, arm, seed)
            except R1labError as error:
                print(f"{experiment.name}: {error}", file=sys.stderr)
    return found


def records_of(
    experiment: Experiment, records: Mapping[str, RunRecord], seeds: Sequence[int]
) -> tuple[Records, list[str]]:
    """An experiment's records by arm, and the keys of those that are missing."""
    keys = {arm: [record_key(experiment, arm, seed) for seed in seeds] for arm in experiment.arms}
    missing = [key for of in keys.values() for key in of if key not in records]
    return {arm: [records[k] for k in of if k in records] for arm, of in keys.items()}, missing


def write_records(records: Mapping[str, RunRecord]) -> None:
    """One line a record, sorted, so that a change shows which run is new."""
    RECORDS.parent.mkdir(parents=True, exist_ok=True)
    lines = ",\n".join(
        f"{json.dumps(key)}: {json.dumps(record.as_dict(), separators=(',', ':'))}"
        for key, record in sorted(records.items())
    )
    RECORDS.write_text(f'{{"records": {{\n{lines}\n}}}}\n', encoding="utf-8")


def write_tables(outcomes: list[tuple[Experiment, ExperimentOutcome]]) -> None:
    path = DOCS / "reproduction.md"
    before, _, rest = path.read_text(encoding="utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    parts = [BEGIN, "", "| claim | source | ours | verdict |", "|---|---|---|---|"]
    parts += [
        f"| [{outcome.claim}](#{outcome.name}) | {_cell(outcome.source)} "
        f"| {_cell(_said(outcome.findings[0]))} "
        f"| **{outcome.verdict}** |"
        for _, outcome in outcomes
    ]
    for experiment, outcome in outcomes:
        parts += ["", f"### {outcome.name}", "", *_section(experiment, outcome)]
    path.write_text("\n".join([before.rstrip(), "", *parts, "", END]) + after, encoding="utf-8")


def _section(experiment: Experiment, outcome: ExperimentOutcome) -> list[str]:
    seeds = ", ".join(map(str, outcome.seeds))
    return [
        f"`r1lab reproduce {outcome.name}` (seeds {seeds}; arms {', '.join(experiment.arms)}). "
        f"Expected before: {experiment.expected}. **{outcome.verdict.capitalize()}.**",
        "",
        "| figure | mean over seeds [95%] | threshold | met | by seed |",
        "|---|---|---|---|---|",
        *(
            f"| {_cell(found.says)} | {_said(found, name=False)} | {found.threshold or '-'} | "
            f"{'-' if found.met == 'reported' else found.met} | "
            f"{', '.join(f'{value:.3f}' for value in found.values)} |"
            for found in outcome.findings
        ),
        "",
        f"![{outcome.claim}](reproduction/{outcome.name}.png)",
    ]


def _cell(text: str) -> str:
    """Text in a table of Markdown, where a bar would end the cell."""
    return text.replace("|", "\\|")


def _said(found: ThresholdResult, *, name: bool = True) -> str:
    interval = "" if found.low is None else f" [{found.low:.3f}, {found.high:.3f}]"
    return (f"{found.says}: " if name else "") + f"{found.mean:.3f}{interval}"


if __name__ == "__main__":
    sys.exit(main())
