"""The maths checker beside Math-Verify: agreement, gold against itself, hostile text, throughput.

    python scripts/bench_verifiers.py            about five minutes on two cores
    python scripts/bench_verifiers.py --quick    fewer rows, to see that it runs

The last line of the output is one JSON object. Labelled sets and problem sets are read from
`shared/` beside the checkout; none of them is part of the project.
"""

from __future__ import annotations

import argparse
import json
import logging
import multiprocessing
import random
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from hostile_strings import children, hostile_strings
from respell import respelled

from r1lab.rewards.math import judge, settled_fast
from r1lab.rewards.math.read import read_answer
from r1lab.types import Completion, Outcome, Problem, ScoringFailure, Verdict
from r1lab.verify import IsolatedRunner, Reward, RewardCall, load_reward
from r1lab.verify.hostile import hostile_items

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"
SETS = (
    "math_verify_tests", "lighteval_tests", "nemo_skills_tests", "hendrycks_tests",
    "gsm8k_solutions",
)  # fmt: skip
Pair = tuple[str, str]  # gold answer, given answer


def rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSONL file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def item(gold: str, given: str) -> RewardCall:
    """An answer to judge against a gold answer."""
    completion = Completion((), "", "stop", 0, thinking="", answer=given)
    return RewardCall(Problem("bench", "", gold, "math"), completion, "")


def accepted(outcome: Outcome) -> bool:
    """Whether an outcome is a full score."""
    return isinstance(outcome, Verdict) and outcome.score == 1.0


# Math-Verify


def start_math_verify() -> None:
    """Import it, quietly, in a process of its own."""
    import_module("math_verify")

    logging.disable(logging.CRITICAL)


def math_verify_judges(pair: Pair) -> bool:
    """Math-Verify's verdict, an exception being a no, with its defaults."""
    from math_verify import parse, verify

    try:
        return bool(verify(parse(pair[0]), parse(pair[1])))
    except Exception:
        return False


def boxed(text: str) -> str:
    """Bare LaTeX in a box, which Math-Verify needs to see; a text with formulas as it is."""
    return (
        text
        if any(mark in text for mark in ("$", "\\boxed", "\\(", "\\["))
        else rf"\boxed{{{text}}}"
    )


class MathVerify:
    """Math-Verify in as many processes as the runner beside it."""

    def __init__(self, num_workers: int) -> None:
        self.pool = ProcessPoolExecutor(
            num_workers, multiprocessing.get_context("spawn"), start_math_verify
        )
        list(self.pool.map(math_verify_judges, [("1", "1")] * num_workers * 4))

    def judge(self, pairs: Sequence[Pair]) -> list[bool]:
        return list(self.pool.map(math_verify_judges, pairs, chunksize=16))


def agreement(runner: IsolatedRunner, reward: Reward, theirs: MathVerify) -> dict[str, Any]:
    """Rows judged as labelled, [ours, Math-Verify's], without and with the classed rows.

    Math-Verify gets each set as it stands and, for the small sets, in boxes too; its better run
    counts.
    """
    classes = json.loads((ROOT / "docs/verifier_classes.json").read_text())
    result: dict[str, Any] = {"agreement": {}, "raw_agreement": {}, "agreement_rows": {}}
    for name in SETS:
        labelled = rows(SHARED / "verifier" / f"{name}.jsonl")
        pairs = [(row["gold"], row["pred"]) for row in labelled]
        ways = [pairs]
        if len(pairs) < 1000:
            ways += [[(boxed(g), p) for g, p in pairs], [(boxed(g), boxed(p)) for g, p in pairs]]
        ours = [accepted(o) for o in runner.run(reward, [item(*pair) for pair in pairs])]
        runs = [ours, *(theirs.judge(way) for way in ways)]
        classed = {int(line) - 1 for line in classes[name]}
        assert len(classed) <= len(labelled) / 10, name
        kept = [i for i in range(len(labelled)) if i not in classed]

        def right(verdicts: list[bool], among: Sequence[int], labelled: Any = labelled) -> int:
            return sum(verdicts[i] == bool(labelled[i]["label"]) for i in among)

        best = max(runs[1:], key=lambda run: right(run, kept))
        result["agreement"][name] = [right(ours, kept), right(best, kept)]
        raw = max(right(run, range(len(labelled))) for run in runs[1:])
        result["raw_agreement"][name] = [right(ours, range(len(labelled))), raw]
        result["agreement_rows"][name] = [len(kept), len(labelled)]
        print(name, result["agreement"][name], "of", result["agreement_rows"][name], flush=True)
    return result


def known_cases(runner: IsolatedRunner, reward: Reward) -> dict[str, Any]:
    """The cases that other checkers get wrong: how many of them this one gets wrong."""
    cases = json.loads((ROOT / "docs/verifier_cases.json").read_text())
    items = {
        kind: [
            RewardCall(
                Problem("case", "", case["gold"], "math"),
                Completion((), case["response"], "stop", 0, prefix="<think>"),
                "",
            )
            if "response" in case
            else item(case["gold"], case["given"])
            for case in cases[kind]
        ]
        for kind in ("wrong", "right")
    }
    wrong = [accepted(outcome) for outcome in runner.run(reward, items["wrong"])]
    right = [accepted(outcome) for outcome in runner.run(reward, items["right"])]
    return {
        "known_false_positives": len(wrong),
        "known_false_positives_accepted": sum(wrong),
        "known_false_negatives": len(right),
        "known_false_negatives_rejected": len(right) - sum(right),
    }


def gold_self(runner: IsolatedRunner, reward: Reward) -> dict[str, str]:
    """Each gold answer against itself in a box."""
    golds = {
        "MATH-500": [str(r["answer"]) for r in rows(SHARED / "datasets/math500/test.jsonl")],
        "GSM8K": [
            r["answer"].rpartition("####")[2].strip()
            for r in rows(SHARED / "datasets/gsm8k/test.jsonl")
        ],
        "AIME 2024": [str(r["answer"]) for r in rows(SHARED / "datasets/aime/2024.jsonl")],
        "AIME 2025": [str(r["answer"]) for r in rows(SHARED / "datasets/aime/2025.jsonl")],
    }
    found = {}
    for name, answers in golds.items():
        items = [item(gold, rf"so it is $\boxed{{{gold}}}$.") for gold in answers]
        equal = sum(accepted(outcome) for outcome in runner.run(reward, items))
        found[name] = f"{equal}/{len(answers)}"
    return found


# Hostile text


def hostile(reward: Reward, num_workers: int, num_generated: int) -> dict[str, int]:
    """Bombs and generated strings, with right answers among them that have to stay in place."""
    folder = Path(tempfile.mkdtemp(prefix="r1lab-bench-"))
    canary = folder / "canary"
    listed = [(h.gold, form) for h in hostile_items(canary) for form in (h.answer, boxed(h.answer))]
    generated = [("42", text) for text in hostile_strings(num_generated, str(canary))]
    before = children()
    over_limit = shifted = faults = scored = 0
    limit = reward.limits.seconds + 0.5
    with IsolatedRunner(num_workers) as runner:
        runner.run(reward, [item("1", "1")])
        for batch in _batches([*listed, *generated]):
            # Every third place holds an answer that is right or wrong in a known way.
            items, known = [], {}
            for place, pair in enumerate(batch):
                if place % 3 == 0:
                    known[len(items)] = bool(place % 2)
                    items.append(item(str(place), str(place if place % 2 else place + 1)))
                items.append(item(*pair))
            started = time.monotonic()
            outcomes = runner.run(reward, items)
            # All of the batch together is held to the limit of a single item.
            over_limit += time.monotonic() - started > limit
            shifted += sum(accepted(outcomes[at]) != right for at, right in known.items())
            shifted += len(outcomes) != len(items)
            faults += sum(isinstance(outcome, ScoringFailure) for outcome in outcomes)
            scored += sum(accepted(o) for i, o in enumerate(outcomes) if i not in known)
    for _ in range(50):
        if not children() - before:
            break
        time.sleep(0.1)
    return {
        "items": len(listed) + len(generated), "over_limit": over_limit,
        "executed": int(any(folder.iterdir())), "left_processes": len(children() - before),
        "shifted": shifted, "faults": faults, "scored_above_0": scored,
    }  # fmt: skip


def _batches(pairs: list[Pair]) -> Iterator[list[Pair]]:
    for start in range(0, len(pairs), 50):
        yield pairs[start : start + 50]


# Throughput


def pairs_to_time(num_rounds: int) -> list[tuple[Pair, bool]]:
    """(pair, whether it is right): MATH-500's answers spelled anew, and answers of others."""
    golds = [str(row["answer"]) for row in rows(SHARED / "datasets/math500/test.jsonl")]
    rng, found = random.Random(0), {}
    for _ in range(num_rounds):
        for gold in golds:
            if (other := respelled(gold, rng)) is not None:
                found[gold, other] = True
            wrong = respelled(rng.choice(golds), rng)
            if wrong is not None and not judge(gold, wrong)[0]:
                found[gold, wrong] = False
    pairs = list(found.items())
    rng.shuffle(pairs)
    return pairs


def throughput(reward: Reward, num_workers: int, theirs: MathVerify, rounds: int) -> dict[str, Any]:
    """Verifications a second of both, each in `num_workers` processes, ours behind its wall."""
    timed = pairs_to_time(rounds)
    slow = [t for t in timed if settled_fast(read_answer(t[0][0], gold=True), t[0][1]) is None]
    result: dict[str, Any] = {"throughput_rows": [len(timed), len(slow)]}
    for key, chosen in (("", timed), ("_without_fast_path", slow)):
        pairs = [(gold, rf"$\boxed{{{given}}}$") for (gold, given), _ in chosen]
        with IsolatedRunner(num_workers) as fresh:  # new workers: nothing is cached
            fresh.run(reward, [item("1", str(n)) for n in range(200)])
            started = time.monotonic()
            ours = [accepted(o) for o in fresh.run(reward, [item(*pair) for pair in pairs])]
            our_rate = len(pairs) / (time.monotonic() - started)
        started = time.monotonic()
        their = theirs.judge([(boxed(gold), given) for gold, given in pairs])
        their_rate = len(pairs) / (time.monotonic() - started)
        result[f"throughput_ratio{key}"] = round(our_rate / their_rate, 2)
        result[f"verifications_per_second{key}"] = [round(our_rate), round(their_rate)]
        result[f"timed_rows_right{key}"] = [
            sum(verdict == right for verdict, (_, right) in zip(verdicts, chosen, strict=True))
            for verdicts in (ours, their)
        ]
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer rows")
    parser.add_argument("--workers", type=int, default=2, help="processes of each checker (2)")
    options = parser.parse_args()
    if not (SHARED / "verifier").is_dir():
        sys.exit(f"skipped: no labelled sets at {SHARED / 'verifier'}")
    if find_spec("math_verify") is None:
        sys.exit("skipped: Math-Verify is not here; pip install 'r1lab[grade]'")
    reward = load_reward("math")
    theirs = MathVerify(options.workers)
    result: dict[str, Any] = {
        "math_verify": version("math-verify"),
        "workers": options.workers,
        "gmpy2": find_spec("gmpy2") is not None,
    }
    with IsolatedRunner(options.workers) as runner:
        result |= throughput(reward, options.workers, theirs, 1 if options.quick else 2)
        result |= known_cases(runner, reward)
        result["gold_self"] = gold_self(runner, reward)
        result |= agreement(runner, reward, theirs)
    theirs.pool.shutdown()
    result["hostile"] = hostile(reward, options.workers, 500 if options.quick else 10_000)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
