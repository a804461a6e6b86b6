"""The `r1lab` command.

What is cheap to check is checked first: a recipe that cannot run is refused within a second, in
one line, before torch is imported. Exit codes: 0 done, or saved after a signal; 2 bad input;
3 a reward that failed its check; 4 a run that stopped itself or cannot learn; 5 a machine that gave
way; 130 interrupted.
"""

from __future__ import annotations

import argparse
import importlib.util
import io
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from r1lab import __version__
from r1lab.cli import evaluate, models, report, reproduce, rewards, stages, start
from r1lab.cli.arguments import Parser, whole
from r1lab.cli.doctor import add_doctor_options, doctor
from r1lab.cli.estimate import add_estimate_options, estimate, print_brief
from r1lab.cli.preflight import preflight
from r1lab.cli.serve_sampler import add_server_options, serve_sampler
from r1lab.doctor.host import usable_cores
from r1lab.launch import cpu_processes, idle_cores, num_processes, process_rank, run_on_cpu
from r1lab.pages import with_page
from r1lab.precision import sees_gpu
from r1lab.report.text import discard, guarded_output, open_standard_streams
from r1lab.types import R1labError

if TYPE_CHECKING:
    from pydantic import BaseModel

    from r1lab.config.reading import Override
    from r1lab.config.recipe import TrainRecipe

Command = Callable[[argparse.Namespace, "list[Override]"], int]
AddOptions = Callable[[argparse.ArgumentParser], None]
Entry = tuple[Command, str, tuple[AddOptions, ...]]

_RECIPE_HELP = "a YAML file, a run folder, or the name of a recipe that ships"
_LAUNCH = """\
On several processes, or to choose devices and precision, start it through accelerate:
  accelerate launch --config_file recipes/accelerate/two_processes_cpu.yaml -m r1lab train RECIPE
"""


# Commands that print for a reader and may end when nobody reads; all others do their work and
# tell by their exit code how it ended.
_FOR_READERS = (
    "chat", "compare", "completion", "estimate", "lineage", "report", "show", "watch",
)  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    open_standard_streams()
    _print_anything()
    command = next((word for word in arguments if not word.startswith("-")), None)
    for_reader = command is None or command in _FOR_READERS or {"-h", "--help"} & {*arguments}
    with guarded_output(stdout=not for_reader):
        try:
            try:
                code = _run(arguments)
            except SystemExit as end:  # of --help, which has printed
                if isinstance(end.__context__, BrokenPipeError):  # rich's answer to a closed pipe
                    return 0
                sys.stdout.flush()
                raise
            sys.stdout.flush()
        except OSError as error:
            # `r1lab show RUN | head` is no fault, a full disk under `> file` is one.
            discard(sys.stdout)
            if isinstance(error, BrokenPipeError):
                return 0
            _say_error(R1labError(f"standard output: {error.strerror or error}"))
            return R1labError.exit_code
    return code


def _run(arguments: list[str]) -> int:
    if not arguments:
        print(start.welcome(Path()), end="")
        return 0
    parser = build_parser()
    known = _options(parser, arguments)
    arguments, overrides = _split_overrides(arguments, known)
    options = parser.parse_args(arguments)
    command: Command = options.call
    debug = options.debug or os.environ.get("R1LAB_DEBUG", "0") not in ("", "0")
    try:
        if overrides and not options.takes_overrides:
            parser.error(f"unrecognized arguments: {' '.join(overrides)}")
        from r1lab.config.reading import parse_overrides

        return command(options, parse_overrides(overrides, known))
    except R1labError as error:
        if debug:
            raise
        _say_error(error)
        return error.exit_code
    except KeyboardInterrupt:
        print("r1lab: interrupted", file=sys.stderr)
        return 130
    except OSError as error:  # a file, a folder or a disk, and its name says which
        if debug or (isinstance(error, BrokenPipeError) and options.command in _FOR_READERS):
            raise
        name = f"{os.fsdecode(error.filename)}: " if error.filename else ""
        _say_error(R1labError(f"{name}{error.strerror or error}"))
        return R1labError.exit_code


def _print_anything() -> None:
    """Let every text be printed, whatever the terminal's encoding: what it lacks is escaped.

    A response holds what a model made up, half characters included, and a run must not end on it.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a test's or a notebook's may be another
            stream.reconfigure(errors="backslashreplace")


def build_parser() -> argparse.ArgumentParser:
    """The whole command line. `--section.key VALUE` is taken out before this parser sees it."""
    parser = Parser(
        prog="r1lab",
        description="Reproduce DeepSeek-R1-Zero on your own problem and your own hardware.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"r1lab {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, (call, summary, parts) in _commands().items():
        command = commands.add_parser(
            name,
            help=summary,
            description=summary[0].upper() + summary[1:] + ".",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        command.set_defaults(call=call, takes_overrides=True)
        command.add_argument("--debug", action="store_true", help="show the traceback of an error")
        for add in parts:
            add(command)
    return parser


def _commands() -> dict[str, Entry]:
    """By name, in the order in which help lists them: what is called, in a line, its arguments."""
    stage_commands: dict[str, Entry] = {
        name: (stages.run_stage, summary, (_add_recipe,))
        for name, summary in stages.COMMANDS.items()
    }
    return {
        "train": (
            _train, "train a base by reinforcement learning", (_add_recipe, _add_train_options)
        ),
        "quickstart": (
            _quickstart, "train the small base that ships, to a rising curve",
            (_add_quickstart_options,),
        ),
        "eval": (evaluate.evaluate, "score a model on a suite", (evaluate.add_eval_options,)),
        "compare": (
            evaluate.compare, "set results of r1lab eval against each other",
            (evaluate.add_compare_options,),
        ),
        "lineage": (
            models.lineage, "say what a model was made from", (models.add_lineage_options,)
        ),
        "export": (
            models.export, "write a model as an ordinary Hugging Face folder",
            (models.add_export_options,),
        ),
        "serve": (
            models.serve, "serve a model over OpenAI's protocol, with vLLM",
            (models.add_serve_options,),
        ),
        "chat": (
            models.chat, "talk to a model in the terminal", (models.add_chat_options,)
        ),
        "estimate": (
            estimate, "say what a run needs: memory, time and cost, before it",
            (add_estimate_options,),
        ),
        "pretrain": (_pretrain, "pre-train a small base from nothing", (_add_recipe,)),
        **stage_commands,
        "pipeline": (
            stages.pipeline, "run stages that hand on models and rows",
            (_add_recipe, stages.add_pipeline_options),
        ),
        "show": (_show, "read the samples of a run in the terminal", (_add_show_options,)),
        "report": (
            report.report, "write a page of one run or several",
            (report.add_report_options,),
        ),
        "reproduce": (
            reproduce.reproduce, "reproduce the papers' curves",
            (reproduce.add_reproduce_options,),
        ),
        "watch": (report.watch, "follow a run while it goes", (report.add_watch_options,)),
        "verify": (
            rewards.verify, "check a reward without a model", (rewards.add_verify_options,)
        ),
        "new": (
            rewards.new, "write a reward of your own, to begin with",
            (rewards.add_new_options,),
        ),
        "serve-sampler": (
            serve_sampler, "serve a model that samples for training runs", (add_server_options,)
        ),
        "doctor": (
            doctor, "say what this machine has and can do, and how to mend it",
            (add_doctor_options,),
        ),
        "completion": (
            _completion, "write a script that completes r1lab in your shell",
            (start.add_completion_options,),
        ),
    }  # fmt: skip


def _add_train_options(parser: argparse.ArgumentParser) -> None:
    parser.epilog = _LAUNCH
    add = parser.add_argument
    add("--resume", action="store_true", help="go on from the newest checkpoint")
    add("--force", action="store_true", help="resume although the recipe has become another")
    add(
        "--preflight", action="store_true",
        help="sample a few groups and say whether this run can learn (exit code 0) or not (4)",
    )  # fmt: skip


def _add_quickstart_options(parser: argparse.ArgumentParser) -> None:
    parser.usage = f"{parser.prog} [--dry-run] [--section.key VALUE ...]"
    _add_dry_run(parser)
    parser.epilog = (
        "Writes runs/quickstart and continues a run that was stopped. On a CPU it starts one\n"
        "process for each core; `r1lab train quickstart` is the same run in one process."
    )


def _add_show_options(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(takes_overrides=False)
    add = parser.add_argument
    add("run", metavar="RUN", help="a run folder")
    add("--step", type=whole(0), help="samples of this step (default: the last)")
    add("--problem", metavar="ID", help="only this problem, with all its samples")
    add("--num", type=whole(1), default=3, help="groups to show (default: 3)")
    add("--samples", type=whole(1), default=2, help="samples of each (default: 2)")


def _add_dry_run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--dry-run", action="store_true", help="check everything, say what would be done, and stop"
    )


def _add_recipe(parser: argparse.ArgumentParser) -> None:
    parser.usage = f"{parser.prog} RECIPE [options] [--section.key VALUE ...]"
    parser.add_argument("recipe", metavar="RECIPE", help=_RECIPE_HELP)
    _add_dry_run(parser)
    parser.add_argument(
        "--keys", action=_PrintKeys, nargs=0, help="list every key of a recipe, and exit"
    )


class _PrintKeys(argparse.Action):
    """`--keys`: like --help, for the keys of a recipe. The schema is imported only here."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object, **__: object) -> None:
        from r1lab.config.keys import describe
        from r1lab.config.recipe import PretrainRecipe, TrainRecipe

        schema: type[BaseModel]
        command = parser.prog.rpartition(" ")[2]
        if command in (*stages.COMMANDS, "pipeline"):
            schema = stages.schema_of(command)
        else:
            schema = PretrainRecipe if command == "pretrain" else TrainRecipe
        rows = describe(schema)
        width = max(len(row.key) for row in rows)
        for row in rows:
            said = f"{row.meaning} [{row.type}]".lstrip()
            print(f"--{row.key:{width}}  {row.default:<12}  {said}")
        parser.exit()


def _options(parser: argparse.ArgumentParser, arguments: Sequence[str]) -> dict[str, bool]:
    """The options of the command that the arguments name, and whether each takes a value."""
    found = {option: False for action in parser._actions for option in action.option_strings}
    commands = next(a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    for word in arguments:
        if word in commands.choices:
            for action in commands.choices[word]._actions:
                found |= dict.fromkeys(action.option_strings, action.nargs != 0)
            break
    return found


def _split_overrides(
    arguments: Sequence[str], known: Mapping[str, bool]
) -> tuple[list[str], list[str]]:
    """Part the command line into what the parser knows and `--section.key VALUE`.

    argparse cannot: it would take the VALUE of an option that it does not know for RECIPE.
    """
    own: list[str] = []
    overrides: list[str] = []
    rest = list(arguments)
    while rest:
        word = rest.pop(0)
        name, given, _ = word.partition("=")
        is_option = word.startswith("--")
        side = overrides if is_option and name not in known else own
        side.append(word)
        takes_value = known.get(name, is_option)
        if takes_value and not given and rest and not rest[0].startswith("--"):
            side.append(rest.pop(0))
    return own, overrides


# --- commands --------------------------------------------------------------------------------


def _train(options: argparse.Namespace, overrides: list[Override]) -> int:
    from r1lab.config.reading import load_recipe
    from r1lab.config.recipe import TrainRecipe
    from r1lab.run_folder import RunFolder

    with _once_over_processes():
        recipe = load_recipe(options.recipe, overrides, schema=TrainRecipe)
        _check(recipe, dry_run=options.dry_run)
        if not (options.preflight or options.resume or recipe.resume == "auto"):
            RunFolder(recipe.run_folder).check_unused()
    if options.dry_run:
        if process_rank() == 0:
            _print_plan(recipe)
        return 0
    if options.preflight:
        return preflight(recipe)
    if process_rank() == 0 and not sees_gpu():
        hint = idle_cores(recipe, num_processes(), usable_cores())
        if hint is not None:
            print(f"r1lab: {hint}", file=sys.stderr)
    from r1lab.grpo.trainer import train

    try:
        ended = train(recipe, resume=options.resume, force=options.force)
    finally:
        # Also of a run that stopped: its curves are where one looks first.
        if process_rank() == 0:
            _draw(Path(recipe.run_folder))
    if process_rank() == 0 and not ended.signal:
        folder = ended.folder
        model = folder / "checkpoints" / f"step-{ended.step}" / "model"
        print(f"{folder}: summary.json, curves.png, rollouts/, eval/; the trained model is {model}")
        print(
            f"open {folder / 'report.html'} in a browser, or read samples with: r1lab show {folder}"
        )
    return 0


def _quickstart(options: argparse.Namespace, overrides: list[Override]) -> int:
    """Train the shipped base; on a CPU in as many processes as suit its cores."""
    given = dict(overrides)
    run = Path(given.get("output", f"runs/{given.get('name', 'quickstart')}"))
    options.recipe, options.preflight, options.force = "quickstart", False, False
    options.resume = (run / "metrics.jsonl").is_file()
    cores, processes = usable_cores(), 1
    if num_processes() == 1 and not options.dry_run and not sees_gpu():
        from r1lab.config.reading import load_recipe
        from r1lab.config.recipe import TrainRecipe

        recipe = load_recipe("quickstart", overrides, schema=TrainRecipe)
        _check(recipe, dry_run=False)  # bad input is one line here, before there are processes
        processes = cpu_processes(recipe, cores)
    start.let_threads_sleep(cores // processes)
    if processes == 1:
        return _train(options, overrides)
    arguments = ["train", "quickstart", *(f"--{key}={text}" for key, text in overrides)]
    print(f"quickstart: {processes} processes on {cores} cores", flush=True)
    return run_on_cpu(processes, [*arguments, *(["--resume"] if options.resume else [])])


def _completion(options: argparse.Namespace, overrides: list[Override]) -> int:
    print(start.completion_script(build_parser(), options.shell))
    return 0


def _draw(folder: Path) -> None:
    from r1lab.report.curves import draw_curves
    from r1lab.report.html import write_report
    from r1lab.run_folder import RunFolder

    run = RunFolder(folder)
    if run.metrics() or run.evals():
        try:
            draw_curves(run)
            write_report([run])
        except Exception as error:  # no disk or memory for it: what stopped the run is to be told
            print(f"r1lab: curves and report are not drawn: {error}", file=sys.stderr)


def _pretrain(options: argparse.Namespace, overrides: list[Override]) -> int:
    from r1lab.cli.checks import check_pretraining
    from r1lab.config.reading import load_recipe
    from r1lab.config.recipe import PretrainRecipe

    with _once_over_processes():
        recipe = load_recipe(options.recipe, overrides, schema=PretrainRecipe)
        check_pretraining(recipe, dry_run=options.dry_run)
    if options.dry_run:
        _print_resolved(recipe)
        print(f"\nwould pre-train on {recipe.tokens:,} tokens into {recipe.run_folder}")
        return 0
    from r1lab.stages.pretrain import pretrain

    print(f"the base lies in {pretrain(recipe)}")
    return 0


def _show(options: argparse.Namespace, overrides: list[Override]) -> int:
    if importlib.util.find_spec("rich") is None:
        raise R1labError("rich is not installed here; install r1lab's extra [train]")
    from r1lab.report.show import show

    show(
        options.run,
        step=options.step,
        problem=options.problem,
        num=options.num,
        samples=options.samples,
    )
    return 0


# --- checks before anything heavy ------------------------------------------------------------


def _check(recipe: TrainRecipe, *, dry_run: bool, writes: bool = True) -> None:
    """Refuse what cannot run, and warn of what may not work out. Imports no torch."""
    from r1lab.cli.checks import check_run

    for warning in check_run(recipe, dry_run=dry_run, writes=writes):
        if process_rank() == 0:
            print(f"r1lab: warning: {warning}", file=sys.stderr)


def _print_resolved(recipe: BaseModel) -> None:
    from r1lab.config.reading import dump_resolved

    print(dump_resolved(recipe), end="")


def _print_plan(recipe: TrainRecipe) -> None:
    """The resolved recipe, one prompt, and what a run would do."""
    from r1lab.problems.registry import load_mixture
    from r1lab.prompts import TEMPLATES

    _print_resolved(recipe)
    problem = load_mixture(recipe.problems, "train")[0]
    prompt = TEMPLATES[recipe.template].prompt(problem.question)
    print(f"\nfirst prompt (source {problem.source}, answer {problem.answer!r}):\n{prompt}")
    sampling, held_out = recipe.sampling, recipe.evaluation
    of_a_step = sampling.questions_per_step * sampling.group_size
    completions = recipe.steps * of_a_step
    most = of_a_step * sum(map(sampling.max_tokens_after, range(recipe.steps)))
    print(
        f"\nwould train {recipe.model.path} for {recipe.steps} steps of "
        f"{sampling.questions_per_step} questions x {sampling.group_size} completions\n"
        f"  at most {most:,} sampled tokens in "
        f"{completions:,} completions\n"
        f"  scored before and after on {held_out.num_problems} held-out problems x "
        f"{held_out.num_samples} samples"
        + (f", and every {held_out.every} steps\n" if held_out.every else "\n")
        + f"  into {recipe.run_folder}\n"
    )
    print_brief(recipe)


# --- several processes -----------------------------------------------------------------------


@contextmanager
def _once_over_processes() -> Iterator[None]:
    """Around checks that go the same way in every process: only rank 0 reports what they find.

    The others wait a moment before they leave, because a launcher ends all as soon as one does.
    """
    try:
        yield
    except R1labError as error:
        if process_rank() > 0:
            time.sleep(5)
            raise SystemExit(error.exit_code) from None
        raise


def _say_error(error: R1labError) -> None:
    process = f" (process {process_rank()})" if process_rank() > 0 else ""
    line = with_page(" ".join(str(error).split()))
    print(f"r1lab: error{process}: {line}", file=sys.stderr)
