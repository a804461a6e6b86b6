"""Print evaluation metrics in the terminal, each with its interval."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from r1lab.evaluate.compare import FIGURES, across_seeds, fault_share, settings_that_differ
from r1lab.evaluate.compare import compare as differences
from r1lab.evaluate.result import MAX_FAULT_SHARE

Result = Mapping[str, Any]
HELD_OUT = "held-out"  # what a run's own evaluations are called, which name no suite
_FIGURES = (
    "pass_at_1", "cons_at_k", "reward", "format", "length", "truncated", "unanswered", "unparsable",
)  # fmt: skip


def print_result(result: Mapping[str, Any]) -> None:
    """Print the metrics of a result, each with its interval."""
    overall = result["overall"]
    name = " ".join(str(result[key]) for key in ("model", "suite") if result.get(key))
    print(
        f"{name}: {overall['num_problems']} problems x {result['k']} samples, temperature "
        f"{result['temperature']:g}, top-p {result['top_p']:g}, at most {result['max_tokens']} "
        f"tokens, template {result['template']}, seed {result['seed']}"
    )
    for figure in _FIGURES:
        if figure == "reward" and _value(overall, figure) == _value(overall, "pass_at_1"):
            continue  # the verifier is the only reward
        label = (
            f"cons@{result['k']}" if figure == "cons_at_k" else figure.replace("pass_at_", "pass@")
        )
        _print_figure(label, overall[figure])
    for size, estimate in overall["pass_at_k"].items():
        if size != "1":
            _print_figure(f"pass@{size}", estimate)
    if result.get("greedy"):
        _print_figure("greedy", result["greedy"]["pass_at_1"])
    _print_faults(result)
    _print_extras(result)


def _print_faults(result: Result, name: str = "") -> None:
    """Print how many samples failed, and the effect on the metrics."""
    if share := fault_share(result):
        counted = "counted as wrong"
        if share > MAX_FAULT_SHARE:
            counted = f"above {MAX_FAULT_SHARE:.0%}: no figure that rests on verdicts"
        print(f"  {name}{share:.1%} of the samples faulted, {counted}")


def _print_extras(result: Mapping[str, Any]) -> None:
    if found := result.get("contamination"):
        print(
            f"  contamination: {found['exact']:.1%} of the questions are among the "
            f"{found['num_training']:,} of training, {found['overlapping']:.1%} share a run of "
            f"{found['n']} words"
        )
        for name in ("clean", "overlapping"):
            if found[f"pass_at_1_{name}"]:
                _print_figure(f"pass@1, {name}", found[f"pass_at_1_{name}"])
    if found := result.get("second_grader"):
        gap = found["difference"]
        _print_figure(found["grader"], found["second"])
        print(
            f"  it differs by {gap['value']:+.3f} [{gap['low']:+.3f}, {gap['high']:+.3f}], "
            f"p = {gap['p_value']:.2g}; {len(found['disagreements'])} of {found['num_samples']} "
            "samples are judged differently"
        )
    for point in result.get("budgets", ()):
        label = f"thinking {point['budget']}"
        _print_figure(label, point["pass_at_1"], f"at {point['tokens']['value']:.1f} tokens")


def _value(overall: Mapping[str, Any], figure: str) -> float | None:
    estimate = overall[figure]
    return None if estimate is None else estimate["value"]


def _print_figure(label: str, estimate: Mapping[str, float] | None, more: str = "") -> None:
    if estimate is None:
        print(f"  {label:18} none")
        return
    form = ".1f" if estimate["high"] > 2 else ".4f"
    value, low, high = (f"{estimate[key]:{form}}" for key in ("value", "low", "high"))
    print(f"  {label:18} {value} [{low}, {high}] {more}".rstrip())


def print_comparison(
    first: Sequence[Mapping[str, Any]], second: Sequence[Mapping[str, Any]]
) -> None:
    """Differences of the second side against the first, each with interval and p-value."""
    names = [
        " + ".join(dict.fromkeys(str(r.get("model")) for r in side)) for side in (first, second)
    ]
    print(f"  {names[1]} against {names[0]}:")
    if other := settings_that_differ(first[0], second[0]):
        print(f"  not asked alike: {'; '.join(other)}")
    for name, side in zip(names, (first, second), strict=True):
        for result in side:
            _print_faults(result, f"{name}: ")
    for difference in differences(first, second):
        form = ".1f" if difference.figure == "length" else ".4f"
        print(
            f"  {difference.figure:10} {difference.first:{form}} -> {difference.second:{form}}  "
            f"{difference}"
        )


def print_across_seeds(results: Sequence[Result]) -> None:
    """The figures of each suite over runs, with intervals for another seed and other problems."""
    for suite in dict.fromkeys(result.get("suite") for result in results):
        of_suite = [result for result in results if result.get("suite") == suite]
        print(f"{suite or HELD_OUT}, {len(of_suite)} runs:")
        for figure in FIGURES:
            if all(fault_share(result) <= MAX_FAULT_SHARE for result in of_suite):
                _print_figure(figure, asdict(across_seeds(of_suite, figure)))
        for result in of_suite:
            _print_faults(result)
