"""Kill a run at random moments, resume it each time, and hold it against the undisturbed one.

    python scripts/torture_resume.py --kills 30
    python scripts/torture_resume.py --kills 5 --variants full

Each variant (full weights, LoRA, ...) is run once in peace. Then the same run is started again and
again; each time SIGKILL hits it somewhere inside a chosen phase (sampling, scoring, update, sync,
recording, evaluation, and each part of writing a checkpoint), at a moment drawn from how long that
phase took in peace. When a run reaches its end before the kills are used up, the next one begins in
a new folder. Each run that reached its end must equal the undisturbed one bit for bit:
metrics.jsonl, the final weights and optimiser state, every rollout file and evaluation.

Prints progress, and one JSON line last: `kills`, `by_phase`, `runs` (that reached their end),
`bit_equal`. About 15 seconds a kill on one core.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import itertools
import json
import multiprocessing
import os
import random
import signal
import statistics
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

from r1lab.precision import CHOICES, settled

ROOT = Path(__file__).resolve().parents[1]
STEPS = 16
VARIANTS: dict[str, dict[str, object]] = {
    "full": {},
    "lora": {"model.lora": "{rank: 8}", "optimizer.learning_rate": 2e-3},
    # Every piece of state that an algorithm may carry along.
    "dynamic": {
        "algorithm.dynamic_sampling": True,
        "algorithm.kl_coefficient": 0.01,
        "algorithm.reference_every": 3,
        "algorithm.num_epochs": 2,
        "algorithm.num_minibatches": 2,
        "algorithm.router_bias_speed": 0.001,
    },
}
SETTINGS: dict[str, object] = {
    "steps": STEPS, "sampling.questions_per_step": 4, "sampling.group_size": 4,
    "sampling.max_tokens": 32, "evaluation.num_problems": 4, "evaluation.num_samples": 2,
    "evaluation.every": 4, "checkpoints.every": 2, "tracking.trackers": "[]", "reward_workers": 1,
}  # fmt: skip

# Where each phase is entered: module, and the function in it.
PHASES = {
    "sampling": ("r1lab.rollout.source", "RolloutSource.next"),
    "scoring": ("r1lab.verify.verifiers", "Verifiers.score"),
    "gradient": ("r1lab.grpo.policy", "Policy.forward_backward"),
    "update": ("r1lab.grpo.policy", "Policy.optimizer_step"),
    "sync": ("r1lab.rollout.source", "RolloutSource.sync"),
    "rollout file": ("r1lab.run_folder", "RunFolder.write_rollouts"),
    "metrics line": ("r1lab.run_folder", "RunFolder.log_metrics"),
    "evaluation": ("r1lab.run_folder", "RunFolder.write_eval"),
    "checkpoint": ("r1lab.grpo.checkpoint", "save_checkpoint"),
    "checkpoint: model": ("r1lab.grpo.checkpoint_manager", "save_checkpoint_folder"),
    "checkpoint: manifest": ("r1lab.grpo.checkpoint", "_write_manifest"),
    "checkpoint: to disk": ("r1lab.grpo.checkpoint", "_sync_tree"),
    "checkpoint: clearing": ("r1lab.grpo.checkpoint", "list_checkpoints"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=30, help="for each variant (default: 30)")
    parser.add_argument("--variants", default=",".join(VARIANTS), help="comma-separated")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--dtype", type=settled, choices=CHOICES, default="float32",
                        help="model.dtype (default: float32)")  # fmt: skip
    parser.add_argument("--folder", help="where the runs go (default: a temporary folder)")
    options = parser.parse_args()
    unknown = sorted(set(options.variants.split(",")) - set(VARIANTS))
    if unknown:
        parser.error(f"no variant {', '.join(unknown)}; there are {', '.join(VARIANTS)}")
    os.chdir(ROOT)
    found = {}
    with contextlib.ExitStack() as stack:
        folder = Path(options.folder or stack.enter_context(tempfile.TemporaryDirectory()))
        for variant in options.variants.split(","):
            torture = Torture(variant, folder / variant, options.dtype, options.seed)
            found[variant] = torture.go(options.kills)
    by_phase = sum((Counter(one.pop("by_phase")) for one in found.values()), Counter())
    print(json.dumps({
        "kills": sum(one["kills"] for one in found.values()),
        "bit_equal": all(one["bit_equal"] for one in found.values()),
        "variants": found,
        "by_phase": dict(sorted(by_phase.items())),
    }))  # fmt: skip
    sys.exit(not all(one["bit_equal"] for one in found.values()))


class Torture:
    """One variant: the undisturbed run, and the ones that are killed."""

    def __init__(self, variant: str, folder: Path, dtype: str, seed: int) -> None:
        self.variant, self.folder = variant, folder
        self.settings = {**SETTINGS, **VARIANTS[variant], "model.dtype": dtype}
        self.random = random.Random(f"{variant}/{seed}")
        self.processes = multiprocessing.get_context("forkserver")
        # Imported once for all runs; a run's own state begins with the run.
        self.processes.set_forkserver_preload(["r1lab.grpo.trainer", "vllm"])

    def go(self, kills: int) -> dict[str, object]:
        print(f"{self.variant}: the undisturbed run", flush=True)
        whole = self.folder / "whole"
        durations = self.undisturbed(whole)
        expected = digests(whole)
        hit: Counter[str] = Counter()
        equal, num_runs = True, 0
        while hit.total() < kills:
            num_runs += 1
            run = self.folder / f"killed-{num_runs}"
            while (phase := self.attempt(run, durations, kill=hit.total() < kills)) is not None:
                hit[phase] += 1
                print(f"{self.variant}: kill {hit.total()} in {phase}, {newest(run)}", flush=True)
            differing = [name for name, value in digests(run).items() if expected[name] != value]
            differing += sorted(set(expected) - set(digests(run)))
            print(f"{self.variant}: run {num_runs} ended, differing: {differing}", flush=True)
            equal = equal and not differing
        return {
            "kills": hit.total(), "runs": num_runs, "bit_equal": equal, "steps": STEPS,
            "by_phase": dict(hit),
        }  # fmt: skip

    def undisturbed(self, folder: Path) -> dict[str, float]:
        """Run to the end; median seconds from the entry of each phase to that of the next."""
        process, pipe = self.start(folder)
        marks: list[tuple[str, float]] = []
        with contextlib.suppress(EOFError):
            while True:
                marks.append((pipe.recv(), time.monotonic()))
        process.join()
        assert process.exitcode == 0, f"the undisturbed run failed: exit code {process.exitcode}"
        seconds = defaultdict(list)
        for (phase, began), (_, ended) in itertools.pairwise(marks):
            seconds[phase].append(ended - began)
        return {phase: statistics.median(values) for phase, values in seconds.items()}

    def attempt(self, folder: Path, durations: dict[str, float], *, kill: bool) -> str | None:
        """Start or resume; the phase in which the run was killed, None where it reached its end."""
        target = self.random.choice(sorted(durations))
        # The first entries of a phase after a start, so that few attempts end before their kill.
        entry = self.random.randint(1, 3)
        delay = self.random.uniform(0.0, 1.2) * durations[target]
        process, pipe = self.start(folder)
        with contextlib.suppress(EOFError):
            while entry:
                entry -= pipe.recv() == target and kill
            time.sleep(delay)
            os.kill(process.pid, signal.SIGKILL)
        process.join()
        if process.exitcode == -signal.SIGKILL:
            return target
        assert process.exitcode == 0, f"a resumed run failed: exit code {process.exitcode}"
        return None

    def start(self, folder: Path) -> tuple[multiprocessing.Process, Connection]:
        ours, theirs = self.processes.Pipe(duplex=False)
        process = self.processes.Process(target=child, args=(theirs, folder, self.settings))
        process.start()
        theirs.close()
        return process, ours


def child(pipe: Connection, folder: Path, settings: dict[str, object]) -> None:
    """The run, in a process of its own, which tells of each phase as it enters it."""
    import importlib

    for phase, (module, path) in PHASES.items():
        owner = importlib.import_module(module)
        *parents, name = path.split(".")
        for parent in parents:
            owner = getattr(owner, parent)
        setattr(owner, name, announced(getattr(owner, name), pipe, phase))
    # keeper took it by name.
    importlib.import_module(
        "r1lab.grpo.checkpoint_manager"
    ).save_checkpoint = importlib.import_module("r1lab.grpo.checkpoint").save_checkpoint
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (folder.parent / f"{folder.name}.log").open("a") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
        from r1lab.cli.app import main

        arguments = [f"--{key}={value}" for key, value in settings.items()]
        resume = ["--resume"] if (folder / "recipe.yaml").exists() else []
        code = main(["train", "recipes/quickstart.yaml", f"--output={folder}", *arguments, *resume])
    sys.exit(code)


def announced(function: Callable[..., object], pipe: Connection, phase: str):
    def call(*arguments: object, **named: object) -> object:
        pipe.send(phase)
        return function(*arguments, **named)

    return call


def newest(folder: Path) -> str:
    names = [path.name for path in folder.glob("checkpoints/step-*") if path.suffix != ".tmp"]
    return max(names, key=lambda name: int(name.removeprefix("step-")), default="no checkpoint")


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of all that must not depend on what happened on the way."""
    import torch

    last = folder / "checkpoints" / f"step-{STEPS}"
    paths = [folder / "metrics.jsonl", last / "model" / "model.safetensors",
             *sorted(folder.glob("rollouts/*")), *sorted(folder.glob("eval/*"))]  # fmt: skip
    found = {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in paths
    }
    state = torch.load(last / "rank-0.pt", weights_only=True)
    del state["seconds"], state["recipe"]  # the clock, and the folder's name
    for name, value in state.items():
        found[f"state: {name}"] = hashlib.sha256(flat(value)).hexdigest()
    return found


def flat(value: object) -> bytes:
    """The bytes of a nested state."""
    import torch

    if isinstance(value, torch.Tensor):
        return (
            value.contiguous().view(torch.uint8).numpy().tobytes()
            if value.dim()
            else repr(value.item()).encode()
        )
    if isinstance(value, dict):
        return b"".join(str(key).encode() + flat(item) for key, item in value.items())
    if isinstance(value, list | tuple):
        return b"".join(flat(item) for item in value)
    return repr(value).encode()


if __name__ == "__main__":
    main()
