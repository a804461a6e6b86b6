"""The reward commands: `r1lab new reward` and `r1lab verify`."""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from r1lab.cli.arguments import finite, positive, whole
from r1lab.types import Problem, R1labError

if TYPE_CHECKING:
    from r1lab.verify import Reward

CHECK_FAILED = 3  # exit code for a reward that fails its check


def add_verify_options(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `r1lab verify`."""
    parser.set_defaults(takes_overrides=False)
    parser.add_argument(
        "reward", metavar="REWARD", help="boxes, file.py:function, package.module:function, or "
        "`problem` for the verifier that each problem names",
    )  # fmt: skip
    parser.add_argument(
        "--problems", metavar="SOURCE", required=True,
        help="problem source: boxes, problems.jsonl, problems.parquet, file.py:load, "
        "package.module:load",
    )  # fmt: skip
    parser.add_argument("--num", type=whole(1), default=100, help="problems to use (default: 100)")
    parser.add_argument(
        "--columns", metavar="NAMES", help="columns of a file: question=COLUMN,answer=COLUMN"
    )
    parser.add_argument(
        "--options", metavar="YAML", help="options of the reward: '{tolerance: 0.1}'"
    )
    parser.add_argument(
        "--problem-options", metavar="YAML", help="options of the problem source, in the same form"
    )
    parser.add_argument(
        "--template", default="r1-zero", help="template of the responses (default: r1-zero)"
    )
    parser.add_argument(
        "--full", type=finite, default=1.0, help="score of a correct answer (default: 1)"
    )
    parser.add_argument(
        "--seconds", type=positive, default=5.0, help="time limit per response (default: 5)"
    )
    parser.add_argument(
        "--memory-mib", type=whole(1), default=1024,
        help="memory limit per response, in MiB (default: 1024)",
    )  # fmt: skip
    parser.add_argument(
        "--no-isolate", action="store_true", help="run the reward in this process, without limits"
    )
    parser.add_argument("--json", metavar="FILE", help="also write the report to FILE")
    parser.epilog = (
        "Gold answers must get the full score; empty, wrong, hostile and merely well-formed\n"
        f"responses must not. Exits with code {CHECK_FAILED} if any of these checks fails."
    )


def add_new_options(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `r1lab new`."""
    parser.set_defaults(takes_overrides=False)
    parser.add_argument("kind", metavar="KIND", choices=["reward"], help="what to create: reward")
    parser.add_argument("name", metavar="NAME", help="file name: writes NAME.py and test_NAME.py")


def new(options: argparse.Namespace, _: object) -> int:
    """`r1lab new reward NAME`."""
    from r1lab.cli.scaffold import new_reward

    reward, test = new_reward(options.name)
    print(
        f"wrote {reward} and {test}; next:\n"
        f"  python -m pytest {test}\n"
        f"  r1lab verify {reward} --problems SOURCE\n"
        f"and in a recipe:\n"
        f"  rewards: [{{reward: {reward}}}]"
    )
    return 0


def verify(options: argparse.Namespace, _: object) -> int:
    """`r1lab verify REWARD --problems SOURCE`."""
    if importlib.util.find_spec("rich") is None:
        raise R1labError("rich is not installed here; install r1lab's extra [train]")
    from r1lab.cli.checks import check_writable_file
    from r1lab.hints import nearest
    from r1lab.prompts import TEMPLATES
    from r1lab.report.verify_table import as_dict, print_report
    from r1lab.verify import InProcessRunner, IsolatedRunner, RewardLimits
    from r1lab.verify.check import check_reward

    if options.template not in TEMPLATES:
        raise R1labError(
            f"--template: {options.template!r} is not one of {', '.join(sorted(TEMPLATES))}"
            f"{nearest(options.template, TEMPLATES)}"
        )
    if options.json:
        check_writable_file(options.json, "--json")
    limits = RewardLimits(options.seconds, options.memory_mib)
    rewards = _Rewards(options.reward, _yaml("--options", options.options), limits)
    problems = _problems(options)
    rewards.of(problems[0])
    runner = InProcessRunner() if options.no_isolate else IsolatedRunner()
    try:
        with _VerifyProgress() as progress:
            report = check_reward(
                rewards.of, problems, TEMPLATES[options.template], runner, full=options.full,
                say=progress,
            )  # fmt: skip
    finally:
        runner.close()
    print_report(report)
    if options.json:
        Path(options.json).write_text(json.dumps(as_dict(report), indent=1) + "\n")
    return 0 if report.passed else CHECK_FAILED


class _VerifyProgress:
    """Prints progress on stderr during a check: after one second, then at doubling intervals.

    Runs in a thread, so that progress also appears if the reward hangs on the first response.
    """

    def __init__(self) -> None:
        self._done = self._total = 0
        self._began = time.monotonic()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __call__(self, done: int, total: int) -> None:
        self._done, self._total = done, total

    def __enter__(self) -> _VerifyProgress:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        wait = 1.0
        while not self._ended.wait(wait):
            seconds = time.monotonic() - self._began
            line = f"r1lab verify: {self._done} of {self._total or '?'} responses scored"
            if self._done:
                left = seconds * (self._total - self._done) / self._done
                line += f", about {_duration(left)} left"
            with suppress(OSError, ValueError):  # stderr is closed
                print(line, file=sys.stderr, flush=True)
            wait = min(2 * wait, 30.0)


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"


class _Rewards:
    """Loads each reward once: the named one for all problems, or each problem's own verifier."""

    def __init__(self, name: str, options: dict[str, Any], limits: object) -> None:
        self._name, self._options, self._limits = name, options, limits
        self._loaded: dict[str, Reward] = {}

    def of(self, problem: Problem) -> Reward:
        from r1lab.problems.registry import PROBLEM_VERIFIER
        from r1lab.verify import load_reward

        name = problem.verifier if self._name == PROBLEM_VERIFIER else self._name
        if name not in self._loaded:
            self._loaded[name] = load_reward(
                name, self._options, key="", limits=self._limits  # type: ignore[arg-type]
            )  # fmt: skip
        return self._loaded[name]


def _problems(options: argparse.Namespace) -> Sequence[Problem]:
    """Return the first `--num` distinct problems: of the whole file, or of the held-out split."""
    from r1lab.config.recipe import SourceSettings
    from r1lab.problems.mixture import ProblemMixture, placed_problems, repeated_questions
    from r1lab.problems.registry import load_problems
    from r1lab.problems.tables import TABLES

    given = _yaml("--problem-options", options.problem_options)
    is_table = options.problems.endswith(TABLES)
    if is_table:
        given = {"test_fraction": 0.0, **given}
    if options.columns:
        if not is_table:
            raise R1labError(f"--columns: only allowed for a {' or '.join(TABLES)} file")
        pairs = [pair.partition("=") for pair in options.columns.split(",")]
        given["columns"] = {name.strip(): column.strip() for name, _, column in pairs}
    settings = SourceSettings(source=options.problems, options=given)
    stream = load_problems(settings, "train" if is_table else "test", key="--problems")
    whole = ProblemMixture([stream], [1.0], names=[options.problems])
    for line in repeated_questions(placed_problems(whole, "train" if is_table else "test")):
        print(f"r1lab: warning: {line}", file=sys.stderr)
    by_question: dict[str, Problem] = {}
    for index in range(20 * options.num):
        by_question.setdefault(stream[index].question, stream[index])
        if len(by_question) == options.num:
            break
    return list(by_question.values())


def _yaml(option: str, text: str | None) -> dict[str, Any]:
    from r1lab.config.plain_yaml import YamlFault, parse

    try:
        value = parse(text or "{}")
    except YamlFault as fault:
        raise R1labError(f"{option}: {text!r} is {fault}") from None
    if not isinstance(value, dict):
        raise R1labError(f"{option}: {text!r} is not a mapping; write '{{name: value}}'")
    return value
