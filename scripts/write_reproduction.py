"""docs/reproduction.md from the runs of `r1lab reproduce`, or again from what is committed of them.

    python scripts/write_reproduction.py --runs runs/reproduce    # records, tables, pictures
    python scripts/write_reproduction.py                          # the same from docs/reproduction/

Of every run a small record is kept (docs/reproduction/records.json); verdicts and pictures follow
from the records alone, and so do docs/reproduction.json and the tables between the markers of
docs/reproduction.md. What stands outside the markers is written by hand. An experiment without
records of all its arms is left out and said. Prints one JSON line last.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from r1lab.reproduce.campaign import Campaign
from r1lab.reproduce.draw import draw_experiment
from r1lab.reproduce.experiment import Experiment, experiment_names, load_experiment
from r1lab.reproduce.measure import Finding, Outcome, Records, outcome_of
from r1lab.reproduce.record import Record
from r1lab.types import R1labError

DOCS = Path(__file__).resolve().parents[1] / "docs"
RECORDS = DOCS / "reproduction" / "records.json"
BEGIN, END = "<!-- tables: scripts/write_reproduction.py -->", "<!-- end of the tables -->"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=Path, help="folder of `r1lab reproduce` to read first")
    parser.add_argument("--seeds", type=int, default=3, help="of each experiment there (3)")
    options = parser.parse_args()
    kept = read_records()
    outcomes: list[tuple[Experiment, Outcome]] = []
    for name in experiment_names():
        experiment = load_experiment(name)
        if options.runs is not None:
            try:
                records = Campaign(options.runs, [experiment], range(options.seeds)).records(
                    experiment
                )
                kept[name] = {arm: list(of) for arm, of in records.items()}
            except R1labError as error:
                print(f"{name}: {error}", file=sys.stderr)
        if name in kept:
            outcomes.append((experiment, outcome_of(experiment, kept[name])))
            draw_experiment(experiment, kept[name], DOCS / "reproduction" / f"{name}.png")
        else:
            print(f"{name}: not run yet", file=sys.stderr)
    write_records(kept)
    claims = [outcome.as_dict() for _, outcome in outcomes]
    (DOCS / "reproduction.json").write_text(json.dumps({"claims": claims}, indent=1) + "\n")
    write_tables(outcomes)
    print(json.dumps({outcome.name: outcome.verdict for _, outcome in outcomes}))
    return 0


def read_records() -> dict[str, Records]:
    """The committed records, by experiment and arm; arms that are shared stand once in the file."""
    if not RECORDS.exists():
        return {}
    values = json.loads(RECORDS.read_text())
    records = {key: Record.from_dict(value) for key, value in values["records"].items()}
    return {
        name: {arm: [records[key] for key in keys] for arm, keys in arms.items()}
        for name, arms in values["experiments"].items()
    }


def write_records(kept: dict[str, Records]) -> None:
    records, experiments = {}, {}
    for name, arms in kept.items():
        experiments[name] = {arm: [] for arm in arms}
        for arm, of in arms.items():
            for record in of:
                # What an experiment asked of suites belongs to its own copy of a shared run.
                key = f"{arm}/{record.seed}" + ("/suites" if record.suites else "")
                records[key] = record.as_dict()
                experiments[name][arm].append(key)
    RECORDS.parent.mkdir(parents=True, exist_ok=True)
    lines = ",\n".join(
        f"{json.dumps(key)}: {json.dumps(value, separators=(',', ':'))}"
        for key, value in sorted(records.items())
    )
    RECORDS.write_text(
        f'{{"experiments": {json.dumps(experiments)},\n"records": {{\n{lines}\n}}}}\n'
    )


def write_tables(outcomes: list[tuple[Experiment, Outcome]]) -> None:
    path = DOCS / "reproduction.md"
    before, _, rest = path.read_text(encoding="utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    parts = [BEGIN, "", "| claim | source | ours | verdict |", "|---|---|---|---|"]
    parts += [
        f"| [{outcome.claim}](#{outcome.name}) | {outcome.source} | {_said(outcome.findings[0])} "
        f"| **{outcome.verdict}** |"
        for _, outcome in outcomes
    ]
    for experiment, outcome in outcomes:
        parts += ["", f"### {outcome.name}", "", *_section(experiment, outcome)]
    path.write_text("\n".join([before.rstrip(), "", *parts, "", END]) + after, encoding="utf-8")


def _section(experiment: Experiment, outcome: Outcome) -> list[str]:
    seeds = ", ".join(map(str, outcome.seeds))
    return [
        f"`r1lab reproduce {outcome.name}` (seeds {seeds}; arms {', '.join(experiment.arms)}). "
        f"Expected before: {experiment.expected}. **{outcome.verdict.capitalize()}.**",
        "",
        "| figure | mean over seeds [95%] | threshold | met | by seed |",
        "|---|---|---|---|---|",
        *(
            f"| {found.says} | {_said(found, name=False)} | {found.threshold or '-'} | "
            f"{'-' if found.met == 'reported' else found.met} | "
            f"{', '.join(f'{value:.3f}' for value in found.values)} |"
            for found in outcome.findings
        ),
        "",
        f"![{outcome.claim}](reproduction/{outcome.name}.png)",
    ]


def _said(found: Finding, *, name: bool = True) -> str:
    interval = "" if found.low is None else f" [{found.low:.3f}, {found.high:.3f}]"
    return (f"{found.says}: " if name else "") + f"{found.mean:.3f}{interval}"


if __name__ == "__main__":
    sys.exit(main())
