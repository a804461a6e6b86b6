"""A step of r1lab beside one of TRL's GRPOTrainer: same base, questions, lengths and optimiser.

    python scripts/bench_step.py                      all of it, in processes of their own
    python scripts/bench_step.py --base nano --tail tight --repeats 5
    python scripts/bench_step.py --quick              small, to see that it runs
    python scripts/bench_step.py --base nano --tail long_tailed --profile

The steps of both sides alternate, so that what else the machine does hits both; figures are medians
of step-by-step ratios. TRL samples with transformers (its vLLM path does not run on the CPU), is
given the micro-batch size that its update is fastest with, and scores with the same verifiers. The
update alone is compared on the same rollouts, TRL's without anything before its first forward.
Peak memory is the rise of the resident size in an update that is not the first, in a process of its
own, malloc told to give large blocks back. The last line of the output is one JSON object; a figure
over several workloads is the worst of them.
"""

from __future__ import annotations

import argparse
import json
import os
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
from bench_step_plain import memory, profile, rollout_vs_plain
from bench_step_sides import Ours, Theirs, Work, scores_of, with_scores
from bench_step_work import SHAPES, Shape, prepare

from r1lab.precision import CHOICES, settled
from r1lab.types import ScoredGroup
from r1lab.verify import IsolatedRunner, Verifiers

HERE = Path(__file__)


def main() -> None:
    options = parse()
    if options.memory_of:
        print(json.dumps({"rise_mib": memory(options.memory_of, options.given)}))
        return
    shapes = [s for s in SHAPES if s.base in options.base and s.tail in options.tail]
    if len(shapes) == 1:
        print(json.dumps(measure(shapes[0], options)))
        return
    results = {}
    for shape in shapes:
        command = [*sys.argv, "--base", shape.base, "--tail", shape.tail]
        results[f"{shape.base}_{shape.tail}"] = child(command)
    print(json.dumps({**headline(results), **results}))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    bases, tails = ["nano", "v3_28m"], ["long_tailed", "tight"]
    parser.add_argument("--base", nargs="+", choices=bases, default=bases)
    parser.add_argument("--tail", nargs="+", choices=tails, default=tails)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--dtype", type=settled, choices=CHOICES, default="float32")
    parser.add_argument("--budget", type=int, help="r1lab's tokens_per_microbatch (its default)")
    parser.add_argument("--trl-micro-batch", type=int, help="TRL's (looked for: its fastest)")
    parser.add_argument("--quick", action="store_true", help="2 questions of 4 samples, 1 repeat")
    parser.add_argument("--profile", action="store_true", help="print where the update goes")
    parser.add_argument("--memory-of", choices=["ours", "theirs"], help=argparse.SUPPRESS)
    parser.add_argument("--given", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.quick:
        options.repeats = 1
    return options


def child(command: Sequence[str]) -> dict[str, Any]:
    """The last line of another process of this script, as JSON; its other lines are passed on."""
    # Blocks of 64 KiB and more go back to the system when they are freed: the resident size then
    # follows what is in use.
    environment = {
        **os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536",
    } if "--memory-of" in command else dict(os.environ)  # fmt: skip
    done = subprocess.run(
        [sys.executable, *command], env=environment, stdout=subprocess.PIPE, text=True, check=True
    )
    *said, last = done.stdout.strip().splitlines()
    print("\n".join(said), flush=True)
    result: dict[str, Any] = json.loads(last)
    return result


def headline(results: dict[str, dict[str, Any]]) -> dict[str, float]:
    """The worst of several workloads; tight ones have names of their own."""
    figures: dict[str, list[float]] = {}
    for name, result in results.items():
        for figure, value in result.items():
            if isinstance(value, float) and figure in FLOORS | CEILINGS:
                split = figure in ("ratio_end_to_end", "ratio_update") and name.endswith("tight")
                figures.setdefault(f"{figure}_tight" if split else figure, []).append(value)
    return {f: max(v) if f in CEILINGS else min(v) for f, v in figures.items()}


FLOORS = {"ratio_end_to_end", "ratio_update", "rollout_vs_plain_vllm", "gradient_cosine"}
CEILINGS = {"ratio_peak_memory", "sync_share"}


# ---------------------------------------------------------------------------------- one workload


def measure(shape: Shape, options: argparse.Namespace) -> dict[str, Any]:
    if options.quick:
        shape = replace(shape, questions=2, group_size=4, cap=min(shape.cap, 32))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        work = prepare(shape, folder / "base", options.dtype)
        if options.budget:
            algorithm = work.recipe.algorithm.model_copy(
                update={"tokens_per_microbatch": options.budget}
            )
            work = replace(work, recipe=work.recipe.model_copy(update={"algorithm": algorithm}))
        with IsolatedRunner(2) as runner:
            bench = Bench(work, runner, folder, options)
            result = bench.run()
    print(json.dumps(result, indent=1), flush=True)
    return result


class Bench:
    """One workload, measured part by part."""

    def __init__(
        self, work: Work, runner: IsolatedRunner, folder: Path, options: argparse.Namespace
    ) -> None:
        self.work, self.folder, self.options = work, folder, options
        recipe = work.recipe
        from r1lab.prompts import TEMPLATES

        self.verifiers = Verifiers(
            recipe.rewards, template=TEMPLATES[recipe.template], runner=runner
        )
        self.ours = Ours(work, self.verifiers)
        self.ours.open_sampler()
        self.ours.step()  # the first call of everything is slower
        self.scored = with_scores(self.ours.step().scored)

    def run(self) -> dict[str, Any]:
        lengths = [len(c.token_ids) for g in self.scored for c in g.rollout.completions]
        prompts = [len(g.rollout.prompt_token_ids) for g in self.scored]
        result: dict[str, Any] = {
            "threads": torch.get_num_threads(),
            "sequences": self.work.num_sequences,
            "mean_prompt": sum(prompts) / len(prompts),
            "mean_length": sum(lengths) / len(lengths),
            "share_of_cap": sum(lengths) / len(lengths) / self.work.recipe.sampling.max_tokens,
            "zero_advantage": 1 - len(self.ours.batch(self.scored)) / len(lengths),
            "padding": self.ours.padding(self.scored),
        }
        if self.options.profile:
            profile(self.ours, self.scored)
        parts = self.options.parts
        if {"update", "end_to_end", "memory"} & set(parts):
            micro, seconds = self.best_micro_batch()
            result |= {"trl_micro_batch": micro, "trl_update_by_micro_batch": seconds}
        for part in PARTS:
            if part in parts:
                result |= PARTS[part](self, result)
        return result

    def best_micro_batch(self) -> tuple[int, dict[int, float]]:
        """The micro-batch that TRL's update is fastest with, and what each took."""
        if self.options.trl_micro_batch:
            return self.options.trl_micro_batch, {}
        seconds: dict[int, float] = {}
        num = self.work.num_sequences
        for micro in (size for size in (4, 8, 16, 32, 64, 128, 256) if num // 32 <= size <= num):
            theirs = Theirs(self.work, micro, str(self.folder), steps=2, scored=self.scored)
            theirs.run()
            seconds[micro] = min(theirs.update_seconds)
        return min(seconds, key=lambda micro: seconds[micro]), seconds

    def end_to_end(self, before: dict[str, Any]) -> dict[str, Any]:
        """Each side samples for itself."""
        results = []
        theirs = Theirs(
            self.work, before["trl_micro_batch"], str(self.folder), verifiers=self.verifiers,
            steps=self.options.repeats + 1, before=lambda: results.append(self.ours.step()),
        )  # fmt: skip
        theirs.run()
        ours = [sum(r.seconds.values()) for r in results[1:]]
        other = theirs.step_seconds[1:]
        tokens = median((r.metrics["length"] or 0) * self.work.num_sequences for r in results)
        parts = {name: median(values[1:]) for name, values in theirs.clock.parts.items()}
        return {
            "ratio_end_to_end": median(b / a for a, b in zip(ours, other, strict=True)),
            "sync_share": median(
                r.seconds["sync"] / sum(r.seconds.values()) for r in results[1:]
            ),
            "ours": {
                "step": median(ours), "tokens_per_second": tokens / median(ours),
                "mean_length": median(r.metrics["length"] or 0 for r in results),
                **{n: median(r.seconds[n] for r in results[1:]) for n in results[0].seconds},
            },
            "trl": {
                "step": median(other), "tokens_per_second":
                sum(theirs.lengths) / len(theirs.clock.seconds) / median(other),
                "mean_length": sum(theirs.lengths) / len(theirs.lengths),
                "rollout": parts["rollout"], "reward": parts["reward"],
                "update": median(theirs.update_seconds[1:]),
            },
        }  # fmt: skip

    def update(self, before: dict[str, Any]) -> dict[str, Any]:
        """Both update on the same rollouts."""
        figures = self.update_of(self.work, self.scored, before["trl_micro_batch"])
        return figures

    def update_of(self, work: Work, scored: Sequence[ScoredGroup], micro: int) -> dict[str, Any]:
        ours: list[float] = []
        undropped: list[float] = []

        def both() -> None:
            ours.append(self.ours.update(scored))
            undropped.append(self.ours.update(scored, drop=False))

        theirs = Theirs(
            work, micro, str(self.folder), scored=scored, steps=self.options.repeats + 1,
            before=both,
        )  # fmt: skip
        theirs.run()
        other = theirs.update_seconds
        return {
            "ratio_update": median(b / a for a, b in zip(ours[1:], other[1:], strict=True)),
            "ratio_update_nothing_dropped": median(
                b / a for a, b in zip(undropped[1:], other[1:], strict=True)
            ),
            "update_seconds": median(ours[1:]),
            "trl_update_seconds": median(other[1:]),
            "trl_padding": theirs.padding,
        }

    def growth(self, before: dict[str, Any]) -> dict[str, Any]:
        """The update as the batch grows: half the questions, half the group, half the length."""
        size = self.work.recipe.sampling.group_size
        cuts = {
            "half_the_questions": self.scored[::2],
            "half_the_group": [cut_group(g, size // 2) for g in self.scored],
            "half_the_length": [cut_length(g) for g in self.scored],
        }
        micro, rows = before["trl_micro_batch"], {}
        for name, scored in cuts.items():
            smaller = size // 2 if name == "half_the_group" else size
            work = shrunk(self.work, [g.rollout.problem for g in scored], smaller)
            figures = self.update_of(work, scored, min(micro, work.num_sequences))
            rows[name] = {
                k: figures[k] for k in ("ratio_update", "update_seconds", "trl_update_seconds")
            }
        return {"growth": rows}

    def sampling(self, before: dict[str, Any]) -> dict[str, Any]:
        """The rollout against vLLM's own `generate` on the same requests, log-probs asked alike."""
        return rollout_vs_plain(self.ours, max(3, self.options.repeats))

    def gradient(self, before: dict[str, Any]) -> dict[str, Any]:
        spread = [g for g in self.scored if len(set(scores_of(g))) > 1][:4]
        fast, plain = self.ours.gradient(spread), self.ours.plain_gradient(spread)
        return {
            "gradient_cosine": float(torch.nn.functional.cosine_similarity(fast, plain, dim=0)),
            "gradient_norm_ratio": float(fast.norm() / plain.norm()),
        }

    def memory(self, before: dict[str, Any]) -> dict[str, Any]:
        given = self.folder / "given.pickle"
        given.write_bytes(pickle.dumps((self.work, self.scored, before["trl_micro_batch"])))
        rises = {
            side: child([str(HERE), "--memory-of", side, "--given", str(given)])["rise_mib"]
            for side in ("ours", "theirs")
        }
        return {
            "ratio_peak_memory": rises["ours"] / rises["theirs"],
            "peak_memory_mib": rises["ours"], "trl_peak_memory_mib": rises["theirs"],
        }  # fmt: skip


PARTS = {
    "end_to_end": Bench.end_to_end, "update": Bench.update, "memory": Bench.memory,
    "sampling": Bench.sampling, "gradient": Bench.gradient, "growth": Bench.growth,
}  # fmt: skip


def shrunk(work: Work, problems: Sequence[Any], group_size: int) -> Work:
    sampling = work.recipe.sampling.model_copy(update={"group_size": group_size})
    recipe = work.recipe.model_copy(update={"sampling": sampling})
    return replace(work, recipe=recipe, problems=tuple(problems))


def cut_group(group: ScoredGroup, size: int) -> ScoredGroup:
    rollout = replace(group.rollout, completions=group.rollout.completions[:size])
    return ScoredGroup(rollout, group.outcomes[:size])


def cut_length(group: ScoredGroup) -> ScoredGroup:
    completions = tuple(
        replace(c, token_ids=c.token_ids[: (len(c.token_ids) + 1) // 2], logprobs=None)
        for c in group.rollout.completions
    )
    return replace(group, rollout=replace(group.rollout, completions=completions))


if __name__ == "__main__":
    main()
