"""Do the statistics hold what they promise? Simulation and brute force, no model.

    python scripts/check_statistics.py            a few minutes on two cores
    python scripts/check_statistics.py --quick    fewer studies, to see that it runs

Coverage: studies of models whose true accuracy is known are drawn again and again, from few
problems to many, from one sample a problem to sixteen, with problems of all kinds of difficulty;
counted is how often the interval holds the truth. The rarest settings (a true accuracy of 5% in 30
problems that are mostly impossible) are shown apart: no interval from so little data covers at its
rate, and the output says by how much it falls short.

The last line of the output is one JSON object.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from r1lab.evaluate.compare import across_runs, paired_ends
from r1lab.evaluate.estimators import maj_at_k, pass_at_k
from r1lab.evaluate.intervals import bootstrap

# Beta distributions of a problem's chance: all alike, hard and easy ones, mostly hopeless ones.
KINDS = {"spread": (2.0, 3.0), "either": (0.3, 0.3), "mostly hard": (0.4, 1.6)}
RARE = ("rare", (0.1, 1.9))
STUDIES = 2000
AT_ONCE = 100


@dataclass(frozen=True)
class Setting:
    """Studies of one kind: `what` is the interval that is tried."""

    what: str  # mean, length, difference, seeds
    kind: str
    beta: tuple[float, float]
    num_problems: int
    k: int


def settings() -> list[Setting]:
    """What is drawn, the rare corner last."""
    grid = itertools.product(KINDS.items(), (30, 100, 500), (1, 4, 16))
    found = [Setting("mean", name, beta, n, k) for (name, beta), n, k in grid]
    for name, beta in KINDS.items():
        found += [Setting("difference", name, beta, n, 4) for n in (30, 200)]
        found += [Setting("length", name, beta, 100, 4), Setting("seeds", name, beta, 200, 4)]
    found += [Setting("mean", RARE[0], RARE[1], n, k) for n in (30, 100, 500) for k in (1, 4, 16)]
    return found


def coverage(setting: Setting, studies: int) -> float:
    """The share of studies whose interval holds the truth."""
    seed = [setting.num_problems, setting.k, *map(ord, setting.what + setting.kind)]
    generator = np.random.default_rng(seed)
    if setting.what in ("mean", "length"):
        return _coverage_of_ratios(setting, generator, studies)
    return float(np.mean([_covers(setting, generator, study) for study in range(studies)]))


def _coverage_of_ratios(setting: Setting, generator: np.random.Generator, studies: int) -> float:
    """Means and lengths: each column of a bootstrap is a study of its own."""
    hits = 0
    for seed, _ in enumerate(range(0, studies, AT_ONCE)):
        columns = [_ratio(setting, generator) for _ in range(AT_ONCE)]
        numerators, denominators = (
            np.stack([column[i] for column in columns], axis=1) for i in (0, 1)
        )
        shares = [setting.what == "mean"] * AT_ONCE
        found = bootstrap(numerators, denominators, seed=seed, shares=shares)
        truth = columns[0][2]
        hits += sum(e is not None and e.low <= truth <= e.high for e in found)
    return hits / (AT_ONCE * -(-studies // AT_ONCE))


def _ratio(setting: Setting, generator: np.random.Generator) -> tuple[Any, Any, float]:
    """One study: what each problem adds above and below the line, and the true ratio."""
    a, b = setting.beta
    num, k = setting.num_problems, setting.k
    chance = generator.beta(a, b, num)
    right = generator.binomial(k, chance)
    if setting.what == "mean":
        return right / k, np.ones(num), a / (a + b)
    # Tokens of right answers over their number: more where problems are harder.
    tokens = right * generator.gamma(4.0, (2.0 - chance) * 10.0)
    mean_square = a * (a + 1) / ((a + b) * (a + b + 1))
    return tokens, right.astype(float), 40.0 * (2 - mean_square * (a + b) / a)


def _covers(setting: Setting, generator: np.random.Generator, study: int) -> bool:
    a, b = setting.beta
    num, k = setting.num_problems, setting.k
    chance = generator.beta(a, b, num)
    if setting.what == "difference":
        right = generator.binomial(k, chance)
        gain = generator.uniform(0.0, 0.2, num)
        better = generator.binomial(k, chance + gain * (1 - chance))
        low, high, _ = paired_ends(right / k, better / k, study, permutations=0)
        return bool(low <= 0.1 * (1 - a / (a + b)) <= high)
    # Three runs whose accuracy differs by their seed, on the same problems.
    shift = generator.normal(0.0, 0.3, size=(3, 1))
    logit = np.log(np.clip(chance, 1e-9, 1 - 1e-9) / np.clip(1 - chance, 1e-9, 1))
    runs = generator.binomial(k, 1 / (1 + np.exp(-(logit + shift)))) / k
    estimate = across_runs(runs)
    return bool(estimate.low <= _seeds_truth(setting.beta) <= estimate.high)


_TRUTHS: dict[tuple[float, float], float] = {}


def _seeds_truth(beta: tuple[float, float]) -> float:
    """The mean accuracy over problems and seeds, by a large draw."""
    if beta not in _TRUTHS:
        generator = np.random.default_rng(7)
        chance = np.clip(generator.beta(*beta, 2_000_000), 1e-9, 1 - 1e-9)
        logit = np.log(chance / (1 - chance)) + generator.normal(0, 0.3, len(chance))
        _TRUTHS[beta] = float((1 / (1 + np.exp(-logit))).mean())
    return _TRUTHS[beta]


def pass_at_k_error() -> float:
    """The largest error of pass@k against all subsets of up to nine samples."""
    worst = 0.0
    for n in range(1, 10):
        for c, k in itertools.product(range(n + 1), range(1, n + 1)):
            subsets = list(itertools.combinations([i < c for i in range(n)], k))
            exact = sum(map(any, subsets)) / len(subsets)
            worst = max(worst, abs(pass_at_k(n, c, k) - exact))
    return worst


def pass_at_k_bias(draws: int) -> float:
    """The largest mean error over many draws of 10 samples, against 1 - (1 - p)^k itself."""
    generator = np.random.default_rng(0)
    worst = 0.0
    for p, k in itertools.product((0.05, 0.3, 0.8), (1, 4, 8)):
        right = generator.binomial(10, p, draws)
        table = np.array([pass_at_k(10, c, k) for c in range(11)])
        worst = max(worst, abs(float(table[right].mean()) - (1 - (1 - p) ** k)))
    return worst


def majority_error(draws: int) -> float:
    """The largest error of maj@k against drawing among the winners, and over orders."""
    generator = np.random.default_rng(0)
    worst = 0.0
    for _ in range(draws):
        groups = [None if g == 3 else int(g) for g in generator.integers(0, 4, 6)]
        correct = [group == 0 for group in groups]
        exact = _vote(groups)
        for order in (range(6), reversed(range(6)), generator.permutation(6)):
            places = list(order)
            given = maj_at_k([groups[i] for i in places], [correct[i] for i in places])
            worst = max(worst, abs(given - exact))
    return worst


def _vote(groups: list[int | None]) -> float:
    """Group 0 is right: its share among the groups with the most votes; None never votes."""
    counts = {g: groups.count(g) for g in set(groups) if g is not None}
    winners = [g for g, count in counts.items() if count == max(counts.values())]
    return winners.count(0) / len(winners) if winners else 0.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer studies")
    parser.add_argument("--workers", type=int, default=2, help="processes (2)")
    options = parser.parse_args()
    studies = 200 if options.quick else STUDIES
    began = time.monotonic()
    tried = settings()
    with ProcessPoolExecutor(options.workers) as pool:
        rates = list(pool.map(coverage, tried, [studies] * len(tried)))
    rows = {"nominal": [], "rare": []}  # type: dict[str, list[float]]
    for setting, rate in zip(tried, rates, strict=True):
        rows["rare" if setting.kind == RARE[0] else "nominal"].append(100 * rate)
        print(
            f"{setting.what:10} {setting.kind:12} {setting.num_problems:4} problems x "
            f"{setting.k:2} samples: {rate:.1%}"
        )
    report = {
        "coverage_percent": round(float(np.mean(rows["nominal"])), 2),
        "coverage_percent_least": round(min(rows["nominal"]), 2),
        "coverage_percent_most": round(max(rows["nominal"]), 2),
        "coverage_percent_rare": [round(min(rows["rare"]), 2), round(max(rows["rare"]), 2)],
        "settings": len(rows["nominal"]),
        "studies_each": studies,
        "pass_at_k_max_error": pass_at_k_error(),
        "pass_at_k_max_bias": round(pass_at_k_bias(100 * studies), 5),
        "maj_at_k_max_error": majority_error(studies),
        "seconds": round(time.monotonic() - began, 1),
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
