"""Every algorithm on the same short budget: `python scripts/compare_algorithms.py [--steps 20]`.

Each recipe of recipes/algorithms trains the shipped base on box problems: same questions, same
seed, same number of responses and updates, learning rate and evaluation; what differs is the
algorithm section. A run that stands already in --out is not repeated, so the script can be
interrupted. Prints a table in Markdown, and one JSON object as its last line.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
from pathlib import Path
from statistics import fmean
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RECIPES = sorted((ROOT / "recipes" / "algorithms").glob("*.yaml"))
BUDGET = (
    "--problems.sources", "[{source: boxes}]", "--sampling.questions_per_step", "16",
    "--sampling.group_size", "8", "--sampling.max_tokens", "96",
    "--evaluation.every", "0", "--evaluation.num_problems", "120", "--evaluation.num_samples", "4",
    "--evaluation.greedy", "false", "--checkpoints.every", "0", "--checkpoints.keep", "1",
    "--optimizer.schedule", "constant", "--tracking.trackers", "[]",
)  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=20, help="of each run (20)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="*", help="names of recipes (all)")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "algorithms")
    parser.add_argument("--dtype", default="float32", help="model.dtype (float32)")
    parser.add_argument("--prefix", default="", help="a command put before each run's")
    options = parser.parse_args()
    rows = []
    for recipe in RECIPES:
        if options.only and recipe.stem not in options.only:
            continue
        folder = options.out / f"{recipe.stem}-{options.seed}"
        if not (folder / "summary.json").exists() and not train(recipe, folder, options):
            print(f"compare_algorithms: {recipe.stem} failed: {folder}.log", file=sys.stderr)
            continue
        rows.append(figures(recipe.stem, folder))
    print(table(rows))
    print(json.dumps({"steps": options.steps, "seed": options.seed, "runs": rows}))
    return 0 if rows else 1


def train(recipe: Path, folder: Path, options: argparse.Namespace) -> bool:
    """One run, its output beside its folder; whether it came to its end."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    command = [
        *shlex.split(options.prefix), sys.executable, "-m", "r1lab", "train", str(recipe),
        "--output", str(folder), "--steps", str(options.steps), "--seed", str(options.seed),
        "--resume", *BUDGET, "--model.dtype", options.dtype,
    ]  # fmt: skip
    with Path(f"{folder}.log").open("w") as log:
        return subprocess.run(command, stdout=log, stderr=log, check=False).returncode == 0


def figures(name: str, folder: Path) -> dict[str, Any]:
    """What one run came to: held-out scores, and means over its steps."""
    summary = json.loads((folder / "summary.json").read_text())
    steps = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    timings = [json.loads(line) for line in (folder / "timings.jsonl").read_text().splitlines()]
    low, high = summary["pass_at_1_after_interval"]

    def mean(field: str) -> float:
        return fmean(step[field] for step in steps)

    return {
        "name": name,
        "pass_at_1_before": summary["pass_at_1_before"],
        "pass_at_1_after": summary["pass_at_1_after"],
        "low": low,
        "high": high,
        "length_after": summary["length_after"],
        "reward_last_5": fmean(step["reward"] for step in steps[-5:]),
        "clipped": mean("clipped_low") + mean("clipped_high"),
        "kl_old": mean("kl_old"),
        "entropy_last": steps[-1]["entropy"],
        "responses": sum(step["responses"] for step in steps),
        "seconds_a_step": fmean(line["total"] for line in timings[1:]),
    }


def table(rows: list[dict[str, Any]]) -> str:
    """The runs in Markdown, best first."""
    lines = [
        "| algorithm | pass@1 | length | clipped | KL(old) | entropy | responses | s/step |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in sorted(rows, key=lambda row: -row["pass_at_1_after"]):
        score = f"{row['pass_at_1_after']:.3f} [{row['low']:.3f}, {row['high']:.3f}]"
        lines.append(
            f"| {row['name']} | {score} | {row['length_after']:.1f} | {row['clipped']:.3f} | "
            f"{row['kl_old']:.1e} | {row['entropy_last']:.2f} | {row['responses']:.0f} | "
            f"{row['seconds_a_step']:.1f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
