"""The evaluation commands: `r1lab eval` and `r1lab compare`."""

from __future__ import annotations

import argparse
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from r1lab.cli.arguments import finite, positive, whole
from r1lab.precision import CHOICES, settled
from r1lab.types import R1labError, RecipeError

if TYPE_CHECKING:
    from r1lab.config.reading import Override
    from r1lab.evaluate.standalone import EvalOptions


def add_eval_options(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `r1lab eval`."""
    parser.usage = f"{parser.prog} MODEL [--suite NAME] [options] [--section.key VALUE ...]"
    parser.add_argument(
        "model", metavar="MODEL", nargs="?",
        help="a run folder (its trained model), a recipe (its base), a checkpoint, an adapter, a "
        "model folder, a shipped base model, a hub name, or the URL of a running server",
    )  # fmt: skip
    add = parser.add_argument
    add(
        "--suite", action="append", default=[], metavar="NAME",
        help="suite to evaluate on, repeatable (default: held-out problems of the run or recipe)",
    )  # fmt: skip
    add("--list", action="store_true", help="list the suites and exit")
    add("--path", metavar="PLACE", help="location of the suite's data: folder, file or hub name")
    add("--columns", metavar="NAMES", help="columns of a table: question=COLUMN,answer=COLUMN")
    add("--settings", choices=["paper"], help="temperature 0.6, top-p 0.95, k 64 or 16")
    add(
        "--k",
        type=whole(1),
        help="samples per problem (default: 4; for held-out problems, the recipe's)",
    )
    add("--num", type=whole(1), help="problems (default: all of a finite suite, else 240)")
    add("--temperature", type=finite, help="sampling temperature (default: 1.0); 0: greedy")
    add("--top-p", type=positive, help="nucleus sampling threshold (default: 1.0)")
    add("--max-tokens", type=whole(1), help="maximum tokens of a response (default: the suite's)")
    add(
        "--seed", type=whole(0), default=1234,
        help="random seed for problems and sampling (default: 1234)",
    )  # fmt: skip
    add(
        "--template", default="auto", metavar="NAME",
        help="prompt template: auto, chat, few-shot, r1-zero, compact, plain (auto: as trained, "
        "else the chat template, else r1-zero)",
    )  # fmt: skip
    add(
        "--shots", type=whole(0), default=0,
        help="solved examples placed before the question (default: 0)",
    )  # fmt: skip
    add("--greedy", action="store_true", help="also score one greedy answer per problem")
    add(
        "--budgets", metavar="TOKENS",
        help="also evaluate with thinking cut off after N tokens, for each N: 32,64,128",
    )  # fmt: skip
    add("--grader", metavar="REWARD", help="second reward to score with, e.g. math_verify")
    add(
        "--trained-on", metavar="WHAT",
        help="training data (a run, recipe or table) to check the suite against for contamination",
    )  # fmt: skip
    add(
        "--against", action="append", default=[], metavar="FILE",
        help="result to compare with; repeat it for runs with other seeds",
    )  # fmt: skip
    add("--engine", choices=["vllm", "transformers"], help="sampling engine (default: vllm)")
    add(
        "--dtype", type=settled, choices=CHOICES,
        help="dtype of the weights (default: the faster one on this machine)",
    )  # fmt: skip
    add("--gguf-file", metavar="FILE", help="GGUF file inside MODEL")
    add("--kv-cache-gib", type=positive, help="vLLM's KV cache on the CPU, in GiB (default: 1)")
    add("--served-model", metavar="NAME", help="model name, if the server serves several models")
    add(
        "--out", metavar="FOLDER",
        help="folder for the results (default: RUN/eval/suites or evals/MODEL)",
    )  # fmt: skip
    add("--json", metavar="FILE", help="also write the result to FILE (one suite only)")
    add(
        "--summary", metavar="FILE",
        help="when all suites are done, write their metrics to FILE, without samples",
    )  # fmt: skip
    add("--dry-run", action="store_true", help="check everything, print the plan and exit")
    parser.epilog = (
        "Every metric is reported with its 95% interval over problems. Run the same command again\n"
        "to resume an interrupted evaluation. docs/evaluation.md explains the metrics."
    )


def add_compare_options(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `r1lab compare`."""
    parser.set_defaults(takes_overrides=False)
    parser.add_argument("first", metavar="FIRST", nargs="+", help="results, or folders of results")
    parser.add_argument(
        "--with", dest="second", metavar="SECOND", nargs="+", default=[],
        help="results of the same suites to compare with; without it, compare FIRST across seeds",
    )  # fmt: skip
    parser.epilog = (
        "Several files of one suite on the same side are treated as runs with different seeds.\n"
        "Every difference is printed with its interval and p-value, paired by problem."
    )


def evaluate(options: argparse.Namespace, overrides: list[Override]) -> int:
    """`r1lab eval MODEL`."""
    from r1lab.evaluate.suites import suite_names

    if options.list:
        print("\n".join(suite_names()))
        return 0
    if options.model is None:
        raise R1labError("eval: name a MODEL (see r1lab eval --help)")
    chosen = _chosen(options)
    against = _results_of(options.against)
    if options.json:
        _check_writable(options.json, len(chosen.suites))
    if options.summary:
        _check_writable(options.summary, 1, "--summary")
    if importlib.util.find_spec("torch") is None:
        raise RecipeError("torch is not installed here; install r1lab's extra [cpu] or [gpu]")
    from r1lab.evaluate.standalone import evaluate_target, prepare_target
    from r1lab.evaluate.target import find_target
    from r1lab.report.eval_table import print_comparison, print_result

    target = find_target(options.model, overrides)
    if options.dry_run:
        for line in prepare_target(target, chosen):
            print(line)
        return 0
    progress = _EvalProgress()
    try:
        done = evaluate_target(target, chosen, progress)
    finally:
        progress.close()
    for path, result in done:
        print_result(result)
        print(f"  {path}")
        if options.json:
            from r1lab.evaluate.result_store import write_json

            write_json(Path(options.json), result)
        others = [other for other in against if other.get("suite") == result.get("suite")]
        if against and not others and len(done) == 1:
            others = against
        if others:
            print_comparison(others, [result])
    if options.summary:
        from r1lab.evaluate.result_store import write_json

        rows = [
            {"file": str(path), **{key: value for key, value in result.items()
                                   if key not in ("problems", "plan", "extras")}}
            for path, result in done
        ]  # fmt: skip
        write_json(Path(options.summary), {"suites": rows})
    return 0


def compare(options: argparse.Namespace, _: object) -> int:
    """`r1lab compare FIRST ... --with SECOND ...`."""
    from r1lab.report.eval_table import HELD_OUT, print_across_seeds, print_comparison

    first, second = _results_of(options.first), _results_of(options.second)
    if not options.second:
        print_across_seeds(first)
        return 0
    suites = list(dict.fromkeys(result.get("suite") for result in first))
    shared = [s for s in suites if any(result.get("suite") == s for result in second)]
    if not shared:
        raise R1labError(
            f"no suite in common: {', '.join(map(str, suites))} against "
            f"{', '.join(sorted({str(result.get('suite')) for result in second}))}"
        )
    for suite in shared:
        sides = [[r for r in side if r.get("suite") == suite] for side in (first, second)]
        print(f"{suite or HELD_OUT}:")
        print_comparison(*sides)
    return 0


class _EvalProgress:
    """A progress bar in a terminal, otherwise one line per chunk."""

    def __init__(self) -> None:
        self._bar: Any = None
        self._suite = ""

    def __call__(self, suite: str, done: int, total: int) -> None:
        if not sys.stderr.isatty():
            print(f"r1lab eval: {suite} {done}/{total} samples", file=sys.stderr, flush=True)
            return
        from tqdm import tqdm

        if suite != self._suite:
            self.close()
            self._suite = suite
            self._bar = tqdm(total=total, unit="sample", desc=suite, dynamic_ncols=True)
        self._bar.n = done
        self._bar.refresh()

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
        self._bar = None


def _chosen(options: argparse.Namespace) -> EvalOptions:
    from r1lab.evaluate.standalone import EvalOptions

    for name in ("k", "num", "max_tokens", "kv_cache_gib"):
        value = getattr(options, name)
        if value is not None and value <= 0:
            raise R1labError(f"--{name.replace('_', '-')}: {value} must be above 0")
    if options.shots < 0:
        raise R1labError(f"--shots: {options.shots} must be at least 0")
    if options.temperature is not None and options.temperature < 0:
        raise R1labError(f"--temperature: {options.temperature:g} must be at least 0")
    if options.top_p is not None and not 0 < options.top_p <= 1:
        raise R1labError(f"--top-p: {options.top_p:g} must be above 0 and at most 1")
    return EvalOptions(
        suites=tuple(dict.fromkeys(options.suite)), path=options.path,
        columns=_columns(options.columns), paper=options.settings == "paper", k=options.k,
        num=options.num, temperature=options.temperature, top_p=options.top_p,
        max_tokens=options.max_tokens, seed=options.seed, template=options.template,
        shots=options.shots, greedy=options.greedy, engine=options.engine, dtype=options.dtype,
        gguf_file=options.gguf_file, kv_cache_gib=options.kv_cache_gib,
        served_model=options.served_model, budgets=_budgets(options.budgets),
        grader=options.grader, trained_on=options.trained_on, out=options.out,
    )  # fmt: skip


def _columns(text: str | None) -> tuple[tuple[str, str], ...]:
    pairs = [pair.partition("=") for pair in text.split(",")] if text else []
    for name, equals, column in pairs:
        if name.strip() not in ("question", "answer", "id") or not equals or not column:
            raise R1labError(f"--columns: {text!r}; write question=COLUMN,answer=COLUMN,id=COLUMN")
    return tuple((name.strip(), column.strip()) for name, _, column in pairs)


def _budgets(text: str | None) -> tuple[int, ...]:
    words = text.split(",") if text else []
    if not all(word.strip().isdigit() and int(word) > 0 for word in words):
        raise R1labError(f"--budgets: {text!r} must be token counts separated by commas: 32,64,128")
    return tuple(sorted({int(word) for word in words}))


def _check_writable(file: str, num_suites: int, key: str = "--json") -> None:
    """Check before any work that the results can be written."""
    from r1lab.cli.checks import check_writable_file

    if num_suites > 1:
        raise R1labError("--json: one file holds one suite; --out FOLDER takes several")
    check_writable_file(Path(file).expanduser(), key)


def _results_of(places: Sequence[str]) -> list[dict[str, Any]]:
    """Read the results in the given files, and in all JSON files of the given folders."""
    from r1lab.evaluate.result_store import read_result

    files: list[Path] = []
    for place in places:
        path = Path(place).expanduser()
        inside = sorted(path.glob("*.json")) if path.is_dir() else [path]
        if not inside:
            raise R1labError(f"{place} contains no results (*.json)")
        files += inside
    return [read_result(path) for path in files]
