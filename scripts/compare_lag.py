"""Does a run with a lag learn as well? `python scripts/compare_lag.py [--steps 30] [--seeds 3]`.

The quickstart's problems and learning rate, shortened: for each seed one run with
`sampling.max_lag` 0 and one with each of --lags, everything else alike (the correction is on in
all). The same questions, responses and updates, and the same held-out problems, on which
differences are paired. A run that stands already in --out is not repeated, so the script can be
interrupted. In process nothing is sampled beside the training, so the times say nothing of what a
lag gains (scripts/simulate_cluster.py does). Prints a table in Markdown, and one JSON object as its
last line.
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

from r1lab.evaluate.compare import compare_figure
from r1lab.run_folder import RunFolder

ROOT = Path(__file__).resolve().parents[1]
BUDGET = (
    "--sampling.questions_per_step", "16", "--sampling.group_size", "16",
    "--algorithm.correction", "token_truncate", "--evaluation.every", "0",
    "--evaluation.num_problems", "200", "--evaluation.num_samples", "8", "--evaluation.greedy",
    "false", "--checkpoints.every", "0", "--checkpoints.keep", "1", "--tracking.trackers", "[]",
)  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=30, help="of each run (30)")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each lag (3)")
    parser.add_argument("--lags", type=int, nargs="*", default=[1], help="beside 0 (1)")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "lag")
    parser.add_argument("--dtype", default="float32", help="model.dtype (float32)")
    parser.add_argument("--prefix", default="", help="a command put before each run's")
    parser.add_argument("more", nargs="*", metavar="-- OPTION", help="further options of the runs")
    options = parser.parse_args()
    rows = []
    for lag in (0, *options.lags):
        folders = []
        for seed in range(options.seeds):
            folder = options.out / f"lag{lag}-seed{seed}"
            if not (folder / "summary.json").exists() and not train(lag, seed, folder, options):
                print(f"compare_lag: lag {lag} failed: {folder}.log", file=sys.stderr)
                return 1
            folders.append(RunFolder(folder))
        rows.append(figures(lag, folders))
    differences = [differs(rows[0], row) for row in rows[1:]]
    print(table(rows, differences))
    runs = [{name: value for name, value in row.items() if name != "results"} for row in rows]
    print(json.dumps({"steps": options.steps, "seeds": options.seeds, "lags": runs,
                      "differences": differences}))  # fmt: skip
    return 0


def train(lag: int, seed: int, folder: Path, options: argparse.Namespace) -> bool:
    """One run, its output beside its folder; whether it came to its end."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    command = [
        *shlex.split(options.prefix), sys.executable, "-m", "r1lab", "train", "quickstart",
        "--output", str(folder), "--steps", str(options.steps), "--seed", str(seed),
        "--sampling.max_lag", str(lag), "--resume", "--model.dtype", options.dtype,
        *BUDGET, *options.more,
    ]  # fmt: skip
    with Path(f"{folder}.log").open("w") as log:
        return subprocess.run(command, stdout=log, stderr=log, check=False).returncode == 0


def figures(lag: int, runs: list[RunFolder]) -> dict[str, Any]:
    """What the runs of a lag came to; `results` the last evaluation of each."""
    metrics = [line for run in runs for line in run.metrics()]
    measured = [line["sync_kl"] for line in metrics if line["sync_kl"] is not None]
    evaluations = [run.evals() for run in runs]
    first, last = (
        [of_run[place] for of_run in evaluations] for place in (0, -1)
    )  # fmt: skip
    return {
        "lag": lag,
        "lag_mean": fmean(line["lag"] for line in metrics if line["lag"] is not None),
        "lag_max": max(line["lag_max"] for line in metrics if line["lag_max"] is not None),
        "pass_at_1_before": fmean(e["overall"]["pass_at_1"]["value"] for e in first),
        "pass_at_1_after": fmean(e["overall"]["pass_at_1"]["value"] for e in last),
        "correction_cut": fmean(line["correction_cut"] for line in metrics),
        "max_sync_kl": max(measured, default=None),
        "results": last,
    }


def differs(base: dict[str, Any], row: dict[str, Any]) -> dict[str, Any]:
    """pass@1 at the end, of a lag less that of none, with its interval."""
    found = compare_figure(base["results"], row["results"], "pass_at_1")
    assert found is not None
    return {
        "lag": row["lag"], "difference": found.value, "low": found.low, "high": found.high,
        "p_value": found.p_value, "num_problems": found.num_problems,
    }  # fmt: skip


def table(rows: list[dict[str, Any]], differences: list[dict[str, Any]]) -> str:
    """The lags in Markdown."""
    said = {
        d["lag"]: f"{d['difference']:+.3f} [{d['low']:+.3f}, {d['high']:+.3f}]"
        for d in differences
    }  # fmt: skip
    lines = ["| lag | mean | pass@1 before | after | difference | cut | max sync KL |",
             "|---|---|---|---|---|---|---|"]  # fmt: skip
    for row in rows:
        sync = "" if row["max_sync_kl"] is None else f"{row['max_sync_kl']:.1e}"
        lines.append(
            f"| {row['lag']} | {row['lag_mean']:.2f} | {row['pass_at_1_before']:.3f} | "
            f"{row['pass_at_1_after']:.3f} | {said.get(row['lag'], '')} | "
            f"{row['correction_cut']:.4f} | {sync} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
