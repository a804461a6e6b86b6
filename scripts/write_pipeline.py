"""Tables and picture of docs/r1-pipeline.md, and r1-pipeline.json beside it.

All from finished pipelines:

    python scripts/write_pipeline.py runs/r1/nano runs/r1/nano-1 runs/r1/nano-2
    python scripts/write_pipeline.py            # the page again, from the committed JSON

One folder a seed; a figure is the mean over them, with a 95% interval (Student's t).
"""

from __future__ import annotations

import argparse
import csv
import json
from pathlib import Path
from typing import Any

from r1lab.report.curves import BLUE, GREEN, GREY, ORANGE, STYLE
from r1lab.reproduce.measure import over_seeds

ROOT = Path(__file__).resolve().parents[1]
PAGE, RECORD = ROOT / "docs" / "r1-pipeline.md", ROOT / "docs" / "r1-pipeline.json"
PICTURE = ROOT / "docs" / "r1-pipeline.png"
# Rows of the paper's table that are drawn, per cent all: reasoning, following, helpfulness.
DRAWN = {"AIME 2024 pass@1": BLUE, "IF-Eval": ORANGE, "AlpacaEval 2": GREEN}
BEGIN, END = "<!-- tables: scripts/write_pipeline.py -->", "<!-- end of the tables -->"
STAGES = ("zero", "dev1", "dev2", "dev3", "r1")
# By student: the models that became of it, by how they were taught.
STUDENTS = {
    "student": {"before": "student", "distilled": "distilled", "on_policy": "on_policy",
                "rl_only": "rl_only"},
    "small": {"before": "small", "distilled": "distilled_small", "rl_only": "rl_only_small"},
}  # fmt: skip
TAUGHT = {
    "before": "before", "distilled": "distilled", "on_policy": "then on-policy",
    "rl_only": "RL alone",
}  # fmt: skip
# (what is said, figure, later stage, earlier stage): differences within a seed.
STEPS = (
    ("Dev1 reads better than Zero: in words", "language", "dev1", "zero"),
    ("Dev1 reasons worse than Zero: pass@1", "pass_at_1", "dev1", "zero"),
    ("Dev2 wins it back: pass@1", "pass_at_1", "dev2", "dev1"),
    ("Dev3 less Dev2: pass@1", "pass_at_1", "dev3", "dev2"),
    ("R1 less Dev3: pass@1", "pass_at_1", "r1", "dev3"),
    ("R1 less Zero: pass@1", "pass_at_1", "r1", "zero"),
    ("R1 less Dev2: pass@1", "pass_at_1", "r1", "dev2"),
    ("larger student, distilled less RL alone: pass@1", "pass_at_1", "distilled", "rl_only"),
    ("smaller student, the same", "pass_at_1", "distilled_small", "rl_only_small"),
    ("on-policy after distillation: pass@1", "pass_at_1", "on_policy", "distilled"),
)
FIGURES = ("pass_at_1", "cons_at_k", "language", "format", "length")


def read_seed(folder: Path) -> dict[str, Any]:
    """The evaluations of all stages of one pipeline, by name."""
    found = {
        path.parent.name: json.loads(path.read_text(encoding="utf-8"))
        for path in sorted(folder.glob("*/evaluation.json"))
        if ".old-" not in path.parent.name
    }
    missing = [stage for stage in ("base", *STAGES) if stage not in found]
    if missing:
        raise SystemExit(f"{folder}: {', '.join(missing)} has no evaluation; run the pipeline on")
    return found


def record_of(seeds: list[dict[str, Any]]) -> dict[str, Any]:
    """What is committed: stages in order, then students; means over seeds.

    BackgroundExecutor each mean stand `NAME_interval` (95%, null with one seed) and `NAME_by_seed`.
    """
    first = seeds[0]

    def over(name: str, stage: str, figure: str) -> dict[str, Any]:
        values = [seed[stage][figure] for seed in seeds]
        if None in values:
            return {name: None, f"{name}_interval": None, f"{name}_by_seed": values}
        return _over(values, name)

    def row_of(stage: str) -> dict[str, Any]:
        row = {"name": stage, **over("accuracy", stage, "pass_at_1")}
        for figure in FIGURES[1:]:
            row |= over(figure, stage, figure)
        row["suites"] = {suite: over_suite(seeds, stage, suite) for suite in first[stage]["suites"]}
        return row

    record: dict[str, Any] = {
        "seeds": len(seeds), "base": row_of("base"), "stages": [row_of(s) for s in STAGES],
        "students": [],
    }  # fmt: skip
    for name, models in STUDENTS.items():
        if {models["distilled"], models["rl_only"]} <= set(first):
            row = {"name": name}
            for way, model in models.items():
                if model in first:
                    row |= over(way, model, "pass_at_1")
            record["students"].append(row)
    record["differences"] = [
        {"says": says, **_over([seed[a][figure] - seed[b][figure] for seed in seeds])}
        for says, figure, a, b in STEPS
        if a in first and b in first
    ]
    return record


def _over(values: list[float], name: str = "value") -> dict[str, Any]:
    mean, low, high = over_seeds(values)
    interval = None if low is None else [low, high]
    return {name: mean, f"{name}_interval": interval, f"{name}_by_seed": values}


def over_suite(seeds: list[dict[str, Any]], stage: str, suite: str) -> float | None:
    """A stage's mean over seeds on one suite: pass@1, or the mean reward where none is right."""
    values = [seed[stage]["suites"][suite]["reward" if suite == "everyday" else "pass_at_1"]
              for seed in seeds]  # fmt: skip
    return None if any(value is None for value in values) else sum(values) / len(values)


def tables_of(record: dict[str, Any]) -> str:
    """The page's tables."""
    suites = list(record["stages"][0]["suites"])
    lines = [
        f"Mean over {record['seeds']} seed(s), [95% interval over them].",
        "",
        f"| stage | pass@1 | cons@k | in words | well-formed | length | {' | '.join(suites)} |",
        f"|{'---|' * (6 + len(suites))}",
    ]
    for stage in (record["base"], *record["stages"]):
        cells = [_said(stage, name) for name in ("accuracy", *FIGURES[1:])]
        cells += [_number(stage["suites"][suite]) for suite in suites]
        lines.append(f"| {stage['name']} | {' | '.join(cells)} |")
    lines += ["", *_paper(), ""]
    if record["students"]:
        lines += [f"| student | {' | '.join(TAUGHT.values())} |", f"|{'---|' * (1 + len(TAUGHT))}"]
        for row in record["students"]:
            cells = [_said(row, way) for way in TAUGHT]
            lines.append(f"| {row['name']} | {' | '.join(cells)} |")
        lines += ["", _paper_students(), ""]
    lines += ["| within a seed | mean | by seed |", "|---|---|---|"]
    for row in record["differences"]:
        by_seed = ", ".join(f"{value:+.3f}" for value in row["value_by_seed"])
        lines.append(f"| {row['says']} | {_said(row, 'value')} | {by_seed} |")
    return "\n".join(lines)


def draw(record: dict[str, Any]) -> None:
    """Ours and the paper's, stage by stage, and the students, side by side."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(13, 3.6), layout="constrained")
        ours, paper, students = figure.subplots(1, 3)
        names = [stage["name"] for stage in record["stages"]]
        for key, label, colour in (
            ("accuracy", "pass@1", BLUE), ("language", "in words", ORANGE),
        ):  # fmt: skip
            values = [stage[key] for stage in record["stages"]]
            ours.errorbar(
                names, values, yerr=_whiskers(record["stages"], key), color=colour, marker="o",
                capsize=3, label=label,
            )  # fmt: skip
        everyday = [stage["suites"]["everyday"] for stage in record["stages"]]
        ours.plot(names, everyday, color=GREEN, marker="o", label="everyday requests")
        ours.set_title(f"Ours, mean of {record['seeds']} seeds")
        for row in _table("r1_stages.csv"):
            if row["benchmark"] in DRAWN:
                values = [float(row[name]) for name in ("r1_zero", *STAGES[1:])]
                paper.plot(names, values, "o-", color=DRAWN[row["benchmark"]],
                           label=row["benchmark"])  # fmt: skip
        paper.set_title("The paper's, on its own scale (%)")
        ways = {"before": GREY, "distilled": BLUE, "on_policy": GREEN, "rl_only": ORANGE}
        for place, (way, colour) in enumerate(ways.items()):
            rows = [(at, row) for at, row in enumerate(record["students"]) if way in row]
            students.bar(
                [at + 0.2 * (place - 1.5) for at, _ in rows], [row[way] for _, row in rows], 0.18,
                yerr=_whiskers([row for _, row in rows], way), color=colour, capsize=3,
                label=TAUGHT[way],
            )  # fmt: skip
        students.set_xticks(
            range(len(record["students"])), [row["name"] for row in record["students"]]
        )
        students.set_title("Students, pass@1")
        for axis in (ours, paper, students):
            axis.set_ylim(bottom=0)
            axis.legend(loc="best")
        figure.savefig(PICTURE, dpi=130, metadata={"Software": None})


def _whiskers(rows: list[dict[str, Any]], name: str) -> list[list[float]] | None:
    """Below and above the means, as error bars want them; None with one seed."""
    if any(row[f"{name}_interval"] is None for row in rows):
        return None
    below = [row[name] - row[f"{name}_interval"][0] for row in rows]
    return [below, [row[f"{name}_interval"][1] - row[name] for row in rows]]


def _paper() -> list[str]:
    """The paper's own stages."""
    rows = _table("r1_stages.csv")
    names = list(rows[0])
    return [
        "The paper's (Nature 2025, Table 2, as in arXiv 2501.12948 v2):",
        "",
        f"| {' | '.join(names)} |",
        f"|{'---|' * len(names)}",
        *(f"| {' | '.join(row[name] for name in names)} |" for row in rows),
    ]


def _paper_students() -> str:
    """The paper's one student that was taught both ways."""
    rows = {row["student"]: row for row in _table("r1_distillation.csv")}
    alone = rows["Qwen2.5-32B trained by RL only (R1-Zero recipe)"]
    told = (
        f"{name} {rows['Qwen2.5-32B'][key]} against {alone[key]}"
        for name, key in (
            ("AIME 2024", "aime24_pass_at_1"), ("MATH-500", "math500"),
            ("GPQA Diamond", "gpqa_diamond"), ("LiveCodeBench", "livecodebench"),
        )
    )  # fmt: skip
    return f"The paper's Qwen2.5-32B, distilled against RL alone: {', '.join(told)}."


def _table(name: str) -> list[dict[str, str]]:
    with (ROOT / "data" / "paper" / name).open(encoding="utf-8") as file:
        return list(csv.DictReader(line for line in file if not line.startswith("#")))


def _said(row: dict[str, Any], name: str) -> str:
    """A figure of a row with its interval, where it has one."""
    interval = row.get(f"{name}_interval")
    if interval is None:
        return _number(row.get(name))
    return f"{_number(row[name])} [{_number(interval[0])}, {_number(interval[1])}]"


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}"


def main() -> None:
    """Write the record from folders, where they are named, and the page from the record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", nargs="*", type=Path)
    folders = parser.parse_args().folders
    if folders:
        record = record_of([read_seed(folder) for folder in folders])
        RECORD.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    record = json.loads(RECORD.read_text(encoding="utf-8"))
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    behind = rest.partition(END)[2]
    draw(record)
    PAGE.write_text(f"{before}{BEGIN}\n\n{tables_of(record)}\n\n{END}{behind}", encoding="utf-8")
    print(json.dumps({"stages": [stage["name"] for stage in record["stages"]]}))


if __name__ == "__main__":
    main()
