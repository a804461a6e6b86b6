"""How long scoring takes beside sampling: judging, grouping equal answers, figures with intervals.

    python scripts/bench_scoring.py               100,000 samples, about a minute on two cores
    python scripts/bench_scoring.py --samples N   another number

6,250 problems of arithmetic with number answers, 16 samples of each: right in one of several
spellings, wrong by one of a few numbers, or without an answer. The samples are made up, so that
nothing but scoring is timed. The last line of the output is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import random
import time

from r1lab.config.recipe import RewardSettings
from r1lab.data.arithmetic import load
from r1lab.evaluate.run import Asked, problem_results, result_of
from r1lab.prompts import TEMPLATES
from r1lab.types import Completion, Problem, Rollout, SamplingSettings
from r1lab.verify import IsolatedRunner, Verifiers

K = 16
COMPACT = TEMPLATES["compact"]


def response(problem: Problem, draw: random.Random) -> Completion:
    """A response with a right answer, a wrong one or none."""
    value, chance = int(problem.answer), draw.random()
    if chance < 0.5:
        answer = draw.choice([str(value), f"{value}.0", f"{value:,}", f"${value}$"])
    else:
        answer = str(value + draw.choice([-10, -1, 1, 2, 10]))
    text = " so and so </think>" + ("" if chance > 0.95 else f" <answer> {answer} </answer>")
    read = COMPACT.read(text)
    return Completion(
        (1,) * 20, text, "stop", 0, prefix=COMPACT.prefix, thinking=read.thinking,
        answer=read.answer,
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=100_000)
    parser.add_argument("--workers", type=int, default=2, help="processes that judge (2)")
    options = parser.parse_args()
    draw, stream = random.Random(0), load("test")
    rollouts = [
        Rollout(stream[i], (1,), tuple(response(stream[i], draw) for _ in range(K)))
        for i in range(max(1, options.samples // K))
    ]
    seconds = {}
    began = time.perf_counter()
    with IsolatedRunner(options.workers) as runner:
        verifiers = Verifiers([RewardSettings(reward="problem")], template=COMPACT, runner=runner)
        scored = tuple(verifiers.score(rollouts))
        seconds["judge"] = time.perf_counter() - began
        problems = problem_results(Asked(scored), verifiers)
        seconds["group"] = time.perf_counter() - began - seconds["judge"]
    result = result_of(
        problems, accuracy=verifiers.accuracy, template=COMPACT.name,
        sampling=SamplingSettings(num_samples=K, seed=0),
    )  # fmt: skip
    seconds["figures"] = time.perf_counter() - began - sum(seconds.values())
    assert result.overall.num_samples == K * len(rollouts)
    total = time.perf_counter() - began
    for name, value in seconds.items():
        print(f"{name:8} {value:6.1f} s")
    print(
        json.dumps(
            {
                "samples": result.overall.num_samples,
                "workers": options.workers,
                **{f"{name}_seconds": round(value, 2) for name, value in seconds.items()},
                "seconds": round(total, 2),
                "samples_per_second": round(result.overall.num_samples / total),
            }
        )
    )


if __name__ == "__main__":
    main()
