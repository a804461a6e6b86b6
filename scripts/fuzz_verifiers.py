"""Shipped rewards under fire: generated hostile answers, behind the wall of worker processes.

    python scripts/fuzz_verifiers.py [--examples 10000] [--seed 0] [--seconds 2] [--memory-mib 1024]

Hypothesis puts answers together from the pieces that checkers have tripped over (towers of powers,
brackets without partners, commands cut off, odd characters, text that would write a file where it
is run); the items of `r1lab.verify.hostile` join them. Each goes through each shipped reward twice:
alone, for its time, and in a batch with gold answers between, for the places. Last comes JSON:

    items            answers judged, over all rewards
    faults           by kind: a timeout here was killed at its limit
    over_limit       answers that took longer than the limit and half a second
    over_memory      workers whose peak of resident memory lies above their start and the limit
    executed         whether a canary file was written
    left_processes   that were still there when the workers had been closed
    shifted          gold answers whose full score did not stand in their place, and responses that
                     came out of a batch otherwise than alone
    worst_seconds    {reward: seconds}
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
import uuid
from collections import Counter
from pathlib import Path

from hostile_strings import own_rewards
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from r1lab.config.recipe import SourceSettings
from r1lab.problems.mixture import ProblemStream
from r1lab.problems.registry import load_problems
from r1lab.prompts import TEMPLATES
from r1lab.types import Outcome, Problem, ScoringFailure, Verdict
from r1lab.verify import IsolatedRunner, Reward, RewardCall, RewardLimits, load_reward
from r1lab.verify.check import respond
from r1lab.verify.hostile import hostile_items

TEMPLATE = TEMPLATES["r1-zero"]
MARK = "R1LAB_FUZZ"
MIB = 2**20

# Rewards that need problems of their own kind; the others get arithmetic.
SOURCES = {
    "boxes": "boxes", "division": "division", "derivation": "derivations",
    "countdown": "countdown",
}  # fmt: skip

OPTIONS = {"length": {"max_tokens": 1000, "buffer": 100}}

PIECES = (
    r"\frac{", r"\frac", r"\dfrac12", r"\sqrt[", r"\sqrt{", r"\boxed{", r"\left(", r"\right)",
    r"\begin{pmatrix}", r"\end{pmatrix}", r"\text{", r"\mathrm{", r"\overline{", r"\binom{",
    r"\sum_{n=1}^{", r"\int_0^", r"\lim_{x\to", r"\log_", r"\sin", r"\pi", r"\infty", r"\cup",
    r"\cdot", r"\times", r"\div", r"\pm", r"\%", r"\\", r"\{", r"\}", "{", "}", "(", ")", "[", "]",
    "^", "^{", "**", "_", "_{", "!", "%", "$", "$$", "|", "&", "=", "<", ">", r"\le", r"\ne", ",",
    ";", ":", ".", "..", "-", "+", "/", "//", "*", "e", "E", "i", "x", "y", "e999999", "nan", "inf",
    "0", "1", "2", "9", "10", "42", "999999999", "1e9", "0.333", ",000", "9^{9^{9}}", "9**9**9",
    "99999999!", "cm", "m", "red", "blue", "and", "or", "remainder", " r ", "<think>", "</think>",
    "<answer>", "</answer>", " ", "\n", "\t", "\x00", "\u200b", "\u0663", "\u00bd", "\u2212",
    "\ud800", "\U0001d7d8", "__import__('os').system('touch {canary}')",
    "open('{canary}','w').write('x')", "().__class__", "lambda:0", "eval(", "exec(",
)  # fmt: skip


def answers(canary: Path) -> st.SearchStrategy[str]:
    """Hostile answers: pieces in any order, repeated pieces, nested ones, and plain text."""
    piece = st.sampled_from([p.replace("{canary}", str(canary)) for p in PIECES])
    number = st.integers(-(10**40), 10**40).map(str)
    loose = st.lists(st.one_of(piece, number, st.text(max_size=3)), max_size=40).map("".join)
    repeated = st.tuples(loose, st.integers(1, 3_000)).map(
        lambda pair: (pair[0] * pair[1])[:60_000]
    )
    nested = st.tuples(piece, loose, piece, st.integers(1, 2_000)).map(
        lambda parts: parts[0] * parts[3] + parts[1] + parts[2] * parts[3]
    )
    tower = st.lists(st.integers(2, 10**6), min_size=2, max_size=9).map(
        lambda numbers: "^{".join(map(str, numbers)) + "}" * (len(numbers) - 1)
    )
    return st.one_of(loose, loose, repeated, nested, tower, st.text(max_size=200))


def generate(num: int, start: int, canary: Path) -> list[str]:
    found: list[str] = []

    @seed(start)
    @settings(
        max_examples=num, database=None, deadline=None, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(answers(canary))
    def collect(answer: str) -> None:
        found.append(answer)

    collect()
    return found


def problems_for(reward: str) -> ProblemStream:
    source = SourceSettings(source=SOURCES.get(reward, "arithmetic"))
    return load_problems(source, "test")


def item(problem: Problem, answer: str) -> RewardCall:
    return RewardCall(problem, respond(TEMPLATE, answer), TEMPLATE.prompt(problem.question))


def alike(one: Outcome, other: Outcome) -> bool:
    if isinstance(one, Verdict) and isinstance(other, Verdict):
        return one == other
    # A limit may be met once and missed once; a fault is never a score of another response.
    return isinstance(one, ScoringFailure) or isinstance(other, ScoringFailure)


def fuzz(
    name: str, reward: Reward, runner: IsolatedRunner, texts: list[str], counts: Counter[str]
) -> float:
    """Every answer through one reward; the worst seconds of one."""
    problems, worst = problems_for(name), 0.0
    batch = [item(problems[index % 50], text) for index, text in enumerate(texts)]
    alone: list[Outcome] = []
    for one in batch:
        began = time.perf_counter()
        alone += runner.run(reward, [one])
        seconds = time.perf_counter() - began
        worst = max(worst, seconds)
        counts["over_limit"] += seconds > reward.limits.seconds + 0.5
    for start in range(0, len(batch), 500):
        mixed: list[RewardCall] = []
        for index, one in enumerate(batch[start : start + 500]):
            gold = problems[index % 50]
            mixed += [one, item(gold, gold.answer)]
        outcomes = runner.run(reward, mixed)
        for index, outcome in enumerate(outcomes):
            if index % 2 == 0:
                counts["shifted"] += not alike(outcome, alone[start + index // 2])
                if isinstance(outcome, ScoringFailure):
                    counts[f"fault {outcome.kind}"] += 1
            else:
                (expected,) = GOLD.setdefault(
                    (name, mixed[index].problem.id), runner.run(reward, [mixed[index]])
                )
                counts["shifted"] += outcome != expected
    return worst


GOLD: dict[tuple[str, str], list[Outcome]] = {}


def peaks() -> list[int]:
    """The peak of resident memory of each process that descends from this one, in bytes."""
    found = []
    for folder in marked():
        try:
            status = (folder / "status").read_text()
        except OSError:
            continue
        found += [int(line.split()[1]) * 1024 for line in status.splitlines() if "VmHWM" in line]
    return found


def marked() -> list[Path]:
    """Other processes that carry this run's mark in their environment."""
    mark, found = f"{MARK}={os.environ[MARK]}".encode(), []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if mark in (folder / "environ").read_bytes() and int(folder.name) != os.getpid():
                found.append(folder)
        except OSError:
            continue
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--examples", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=2.0, help="limit of an answer")
    parser.add_argument("--memory-mib", type=int, default=1024, help="likewise")
    parser.add_argument("--rewards", nargs="*", default=own_rewards())
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp())
    os.chdir(folder)
    canary = folder / "canary"
    # The mark is read from /proc, which shows the environment that a process was started with.
    os.environ[MARK] = uuid.uuid4().hex
    texts = generate(options.examples, options.seed, canary)
    texts += [hostile.answer for hostile in hostile_items(canary)]
    counts: Counter[str] = Counter()
    worst: dict[str, float] = {}
    peak = 0
    limits = RewardLimits(options.seconds, options.memory_mib)
    with IsolatedRunner() as runner:
        for name in options.rewards:
            began = time.perf_counter()
            reward = load_reward(name, OPTIONS.get(name), limits=limits)
            worst[name] = round(fuzz(name, reward, runner, texts, counts), 4)
            peak = max([peak, *peaks()])
            print(
                f"{name}: worst {worst[name]:.4f} s, {time.perf_counter() - began:.0f} s in all",
                flush=True,
            )
    result = {
        "items": len(texts) * len(options.rewards),
        "faults": {k.removeprefix("fault "): n for k, n in counts.items() if "fault" in k},
        "over_limit": counts["over_limit"],
        "over_memory": int(peak > (options.memory_mib + 200) * MIB),
        "executed": canary.exists(),
        "left_processes": len(marked()),
        "shifted": counts["shifted"],
        "worst_seconds": worst,
        "peak_mib": round(peak / MIB),
        "limit_seconds": options.seconds,
        "seed": options.seed,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
