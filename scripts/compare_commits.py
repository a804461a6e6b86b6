"""Train with two commits on one machine, and compare weights and metrics bit by bit.

    python scripts/compare_commits.py OLD NEW
    python scripts/compare_commits.py OLD NEW --renames renames.json --keep /tmp/compared

For a change that must not move a number: 3 steps of the quickstart and 2 of the quickstart with
LoRA, each commit with its own code, then the SHA-256 of every tensor of the trained weights and
every line of metrics.jsonl, clocks left out (those are in timings.jsonl). Kinds of CPU differ, so
figures are compared between two runs here, not with recorded ones. About four minutes on two cores.

`--renames` is a JSON object {"metrics": {old: new}, "keys": {old: new}}, or {old: new} of metrics
alone; keys are those of recipes, dotted, for the options below. Without it, the table that the new
commit holds in RENAMES_FILE, where it has one. Prints one JSON line last; exit status 0: all equal,
1: something differs, 2: a commit could not be run.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RENAMES_FILE = "r1lab/config/renames.json"
RUNS = {"quickstart": 3, "quickstart_lora": 2}  # recipes and their steps
# Small enough for minutes, and enough groups for variance in some; keys as the old commit has them.
OPTIONS = {
    "seed": "11", "sampling.questions_per_step": "8", "sampling.group_size": "8",
    "sampling.max_tokens": "64", "model.dtype": "float32", "evaluation.every": "0",
    "evaluation.num_problems": "8", "evaluation.num_samples": "2", "checkpoints.every": "0",
}  # fmt: skip
MODULES = ("r1lab", "r1lab.data", "r1lab.recipes", "r1lab.rewards")


def main() -> int:
    """Run both commits and print what differs."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("old", metavar="OLD", help="a commit")
    parser.add_argument("new", metavar="NEW", help="a commit")
    parser.add_argument("--renames", metavar="FILE", help="JSON: old names to new ones")
    parser.add_argument("--keep", metavar="FOLDER", help="leave the run folders here")
    options = parser.parse_args()
    try:
        with tempfile.TemporaryDirectory(prefix="compare-commits-") as place:
            result = compare(options, Path(place))
    except (subprocess.CalledProcessError, OSError, ValueError) as error:
        print(f"compare_commits: {error}", file=sys.stderr)
        return 2
    print(json.dumps(result))
    equal = [*result["weights_equal"].values(), *result["metrics_equal"].values()]
    return 0 if all(equal) else 1


def compare(options: argparse.Namespace, place: Path) -> dict[str, Any]:
    """Both commits' runs, and where they differ."""
    out = Path(options.keep).resolve() if options.keep else place / "runs"
    result: dict[str, Any] = {"weights_equal": {}, "metrics_equal": {}, "differences": []}
    with worktree(options.old, place / "old") as old, worktree(options.new, place / "new") as new:
        metrics, keys = renames(options.renames, new)
        for name, steps in RUNS.items():
            before = train(old, name, steps, out / "old" / name, {})
            after = train(new, name, steps, out / "new" / name, keys)
            found = weight_differences(before, after)
            result["weights_equal"][name] = not found
            in_metrics = metric_differences(before, after, metrics)
            result["metrics_equal"][name] = not in_metrics
            result["differences"] += [f"{name}: {text}" for text in [*found, *in_metrics]]
    return result


@contextmanager
def worktree(commit: str, place: Path) -> Iterator[Path]:
    """A checkout of the commit in which `import r1lab` finds its own code."""
    git("worktree", "add", "--quiet", "--detach", str(place), commit)
    try:
        # Packages outside r1lab/ are mapped into it when installed. The environment may have
        # another checkout installed, so links put them where Python looks first.
        project = tomllib.loads((place / "pyproject.toml").read_text())
        folders = project["tool"]["setuptools"].get("package-dir", {})
        for package, folder in folders.items():
            link = place.joinpath(*package.split("."))
            if not link.exists():
                link.symlink_to(place / folder, target_is_directory=True)
        check_imports(place)
        yield place
    finally:
        git("worktree", "remove", "--force", str(place))


def check_imports(place: Path) -> None:
    """Raise ValueError where a module would come from anywhere else."""
    code = f"import importlib as i; [print(*i.import_module(m).__path__) for m in {MODULES}]"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=place, env=environment(place), check=True,
        capture_output=True, text=True,
    )  # fmt: skip
    for line in done.stdout.splitlines():
        if place.resolve() not in Path(line).resolve().parents:
            raise ValueError(f"the code of {place.name} would be imported from {line}")


def environment(place: Path) -> dict[str, str]:
    """One thread and no GPU: sums are taken in the same order each time."""
    fixed = {
        "PYTHONPATH": str(place), "PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1",
        "OMP_WAIT_POLICY": "PASSIVE", "KMP_BLOCKTIME": "0", "CUDA_VISIBLE_DEVICES": "",
        "HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1", "MPLBACKEND": "agg",
        "TOKENIZERS_PARALLELISM": "false", "VLLM_LOGGING_LEVEL": "ERROR",
        "PYTHONDONTWRITEBYTECODE": "1",
    }  # fmt: skip
    return {**os.environ, **fixed}


def renames(file: str | None, new: Path) -> tuple[dict[str, str], dict[str, str]]:
    """Metrics and recipe keys by their old names."""
    path = Path(file) if file else new / RENAMES_FILE
    if not file and not path.exists():
        return {}, {}
    table = json.loads(path.read_text())
    if "metrics" in table or "keys" in table:
        return table.get("metrics", {}), table.get("keys", {})
    return table, {}


def train(place: Path, name: str, steps: int, out: Path, keys: Mapping[str, str]) -> Path:
    """Run a recipe of the checkout at `place`; its run folder."""
    print(f"{place.name}: {name}, {steps} steps", file=sys.stderr, flush=True)
    command = [sys.executable, "-m", "r1lab", "train", f"recipes/{name}.yaml",
               "--output", str(out), "--steps", str(steps)]  # fmt: skip
    for key, value in OPTIONS.items():
        command += [f"--{keys.get(key, key)}", value]
    done = subprocess.run(
        command, cwd=place, env=environment(place), capture_output=True, text=True
    )
    if done.returncode:
        raise ValueError(f"{place.name}: {name} failed ({done.returncode}): {done.stderr[-2000:]}")
    return out


def weight_differences(before: Path, after: Path) -> list[str]:
    """Tensors of the newest checkpoints that are not the same bytes under the same name."""
    old, new = tensor_hashes(before), tensor_hashes(after)
    return [f"weights {name}" for name in sorted({*old, *new}) if old.get(name) != new.get(name)]


def tensor_hashes(run: Path) -> dict[str, str]:
    """The SHA-256 of dtype, shape and bytes of each trained tensor."""
    import torch
    from safetensors import safe_open

    files = sorted(run.glob("checkpoints/step-*/model/*.safetensors"))
    if not files:
        raise ValueError(f"{run} holds no trained weights")
    found = {}
    for path in files:
        with safe_open(path, framework="pt") as file:
            for name in sorted(file.keys()):
                tensor = file.get_tensor(name).contiguous()
                digest = hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
                digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
                found[f"{path.relative_to(run)} {name}"] = digest.hexdigest()
    return found


def metric_differences(before: Path, after: Path, names: Mapping[str, str]) -> list[str]:
    """Figures of metrics.jsonl that are not equal, old names read as new ones."""
    old = [{names.get(key, key): value for key, value in line.items()} for line in lines(before)]
    new = lines(after)
    if len(old) != len(new):
        return [f"metrics of {len(old)} steps and of {len(new)}"]
    return [
        f"step {one['step']}: {key}: {one.get(key, 'missing')} -> {other.get(key, 'missing')}"
        for one, other in zip(old, new, strict=True)
        for key in sorted({*one, *other})
        if (key in one, one.get(key)) != (key in other, other.get(key))
    ]


def lines(run: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl."""
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def git(*arguments: str) -> None:
    """Run git in this checkout; CalledProcessError where it fails."""
    subprocess.run(["git", *arguments], cwd=ROOT, check=True)


if __name__ == "__main__":
    sys.exit(main())
