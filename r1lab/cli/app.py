"""The `r1lab` command.

Cheap checks come first: a recipe that cannot run is refused within a second, in one line, before
torch is imported. Exit codes: 0 done, or saved after a signal; 2 bad input; 3 a reward failed its
check; 4 a run stopped itself or cannot learn; 5 the infrastructure failed; 130 interrupted.
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

_RECIPE_HELP = "a YAML file, a run folder, or the name of a shipped recipe"
_LAUNCH = """\
To use several processes, or to choose devices and precision, launch with accelerate:
  accelerate launch --config_file recipes/accelerate/two_processes_cpu.yaml -m r1lab train RECIPE
"""


# Commands that only print, so a closed pipe ends them with code 0. All others finish their work
# and report the outcome in their exit code.
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
            except SystemExit as end:  # raised by --help after printing
                if isinstance(end.__context__, BrokenPipeError):  # rich exits on a closed pipe
                    return 0
                sys.stdout.flush()
                raise
            sys.stdout.flush()
        except OSError as error:
            # `r1lab show RUN | head` is not an error; a full disk behind `> file` is.
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
    except OSError as error:  # a file, folder or disk problem; the filename says which
        if debug or (isinstance(error, BrokenPipeError) and options.command in _FOR_READERS):
            raise
        name = f"{os.fsdecode(error.filename)}: " if error.filename else ""
        _say_error(R1labError(f"{name}{error.strerror or error}"))
        return R1labError.exit_code


def _print_anything() -> None:
    """Escape characters that the terminal's encoding lacks, so that any text can be printed.

    Responses may contain arbitrary text, partial characters included; printing one must not end a
    run.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # tests and notebooks may replace the stream
            stream.reconfigure(errors="backslashreplace")


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands. `--section.key VALUE` is removed before it parses."""
    parser = Parser(
        prog="r1lab",
        description="Reproduce DeepSeek-R1-Zero on your own problems and your own hardware.",
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
        command.add_argument("--debug", action="store_true", help="show tracebacks of errors")
        for add in parts:
            add(command)
    return parser


def _commands() -> dict[str, Entry]:
    """Return name -> (function, one-line summary, argument adders), in the order of --help."""
    stage_commands: dict[str, Entry] = {
        name: (stages.run_stage, summary, (_add_recipe,))
        for name, summary in stages.COMMANDS.items()
    }
    return {
        "train": (
            _train, "train a base model with reinforcement learning",
            (_add_recipe, _add_train_options),
        ),
        "quickstart": (
            _quickstart, "train the shipped small base model until its accuracy rises",
            (_add_quickstart_options,),
        ),
        "eval": (
            evaluate.evaluate, "evaluate a model on benchmark suites", (evaluate.add_eval_options,)
        ),
        "compare": (
            evaluate.compare, "compare evaluation results",
            (evaluate.add_compare_options,),
        ),
        "lineage": (
            models.lineage, "show what a model was made from", (models.add_lineage_options,)
        ),
        "export": (
            models.export, "export a model as a standard Hugging Face folder",
            (models.add_export_options,),
        ),
        "serve": (
            models.serve, "serve a model with vLLM over the OpenAI protocol",
            (models.add_serve_options,),
        ),
        "chat": (
            models.chat, "chat with a model in the terminal", (models.add_chat_options,)
        ),
        "estimate": (
            estimate, "estimate memory, time and cost of a run",
            (add_estimate_options,),
        ),
        "pretrain": (_pretrain, "pre-train a small base model from scratch", (_add_recipe,)),
        **stage_commands,
        "pipeline": (
            stages.pipeline, "run a multi-stage training pipeline",
            (_add_recipe, stages.add_pipeline_options),
        ),
        "show": (_show, "show a run's samples in the terminal", (_add_show_options,)),
        "report": (
            report.report, "write an HTML report of one or more runs",
            (report.add_report_options,),
        ),
        "reproduce": (
            reproduce.reproduce, "reproduce the papers' curves",
            (reproduce.add_reproduce_options,),
        ),
        "watch": (report.watch, "follow a run live", (report.add_watch_options,)),
        "verify": (
            rewards.verify, "check a reward function without a model",
            (rewards.add_verify_options,),
        ),
        "new": (
            rewards.new, "create a reward function and its test from a template",
            (rewards.add_new_options,),
        ),
        "serve-sampler": (
            serve_sampler, "serve a model as a sampler for training runs", (add_server_options,)
        ),
        "doctor": (
            doctor, "diagnose this machine and suggest fixes",
            (add_doctor_options,),
        ),
        "completion": (
            _completion, "print a shell completion script",
            (start.add_completion_options,),
        ),
    }  # fmt: skip


def _add_train_options(parser: argparse.ArgumentParser) -> None:
    parser.epilog = _LAUNCH
    add = parser.add_argument
    add("--resume", action="store_true", help="continue from the newest checkpoint")
    add("--force", action="store_true", help="resume even if the recipe has changed")
    add(
        "--preflight", action="store_true",
        help="sample a few groups and check whether this run can learn (exit code 0) or not (4)",
    )  # fmt: skip


def _add_quickstart_options(parser: argparse.ArgumentParser) -> None:
    parser.usage = f"{parser.prog} [--dry-run] [--section.key VALUE ...]"
    _add_dry_run(parser)
    parser.epilog = (
        "Writes to runs/quickstart and resumes an interrupted run. On a CPU it starts one process\n"
        "per core; `r1lab train quickstart` is the same run in a single process."
    )


def _add_show_options(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(takes_overrides=False)
    add = parser.add_argument
    add("run", metavar="RUN", help="a run folder")
    add("--step", type=whole(0), help="training step to show (default: the last)")
    add("--problem", metavar="ID", help="show only this problem, with all its samples")
    add("--num", type=whole(1), default=3, help="groups to show (default: 3)")
    add("--samples", type=whole(1), default=2, help="samples to show per group (default: 2)")


def _add_dry_run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--dry-run", action="store_true", help="check everything, print the plan and exit"
    )


def _add_recipe(parser: argparse.ArgumentParser) -> None:
    parser.usage = f"{parser.prog} RECIPE [options] [--section.key VALUE ...]"
    parser.add_argument("recipe", metavar="RECIPE", help=_RECIPE_HELP)
    _add_dry_run(parser)
    parser.add_argument("--keys", action=_PrintKeys, nargs=0, help="list all recipe keys and exit")


class _PrintKeys(argparse.Action):
    """`--keys`: like --help, but for recipe keys. The schema is imported only here."""

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
            meaning = f"{row.meaning} [{row.type}]".lstrip()
            print(f"--{row.key:{width}}  {row.default:<12}  {meaning}")
        parser.exit()


def _options(parser: argparse.ArgumentParser, arguments: Sequence[str]) -> dict[str, bool]:
    """Return the options of the named command, and whether each takes a value."""
    options = {option: False for action in parser._actions for option in action.option_strings}
    commands = next(a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    for word in arguments:
        if word in commands.choices:
            for action in commands.choices[word]._actions:
                options |= dict.fromkeys(action.option_strings, action.nargs != 0)
            break
    return options


def _split_overrides(
    arguments: Sequence[str], known: Mapping[str, bool]
) -> tuple[list[str], list[str]]:
    """Split the command line into the parser's own arguments and `--section.key VALUE`.

    argparse cannot do this: it would take the VALUE of an unknown option for RECIPE.
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
            print(f"r1lab: {hint}")
    from r1lab.grpo.trainer import train

    try:
        ended = train(recipe, resume=options.resume, force=options.force)
    finally:
        # Also after a failure: the curves are the first thing a user looks at.
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
    """Train the shipped base model; on a CPU with as many processes as suit its cores."""
    given = dict(overrides)
    run = Path(given.get("output", f"runs/{given.get('name', 'quickstart')}"))
    options.recipe, options.preflight, options.force = "quickstart", False, False
    options.resume = (run / "metrics.jsonl").is_file()
    cores, processes = usable_cores(), 1
    if num_processes() == 1 and not options.dry_run and not sees_gpu():
        from r1lab.config.reading import load_recipe
        from r1lab.config.recipe import TrainRecipe

        recipe = load_recipe("quickstart", overrides, schema=TrainRecipe)
        _check(recipe, dry_run=False)  # before launching, so bad input is reported once
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
        except Exception as error:  # e.g. disk full; must not mask the error that stopped the run
            print(f"r1lab: could not draw curves and report: {error}", file=sys.stderr)


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

    print(f"the base model is in {pretrain(recipe)}")
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
    """Refuse a recipe that cannot run and print warnings. Does not import torch."""
    from r1lab.cli.checks import check_run

    for warning in check_run(recipe, dry_run=dry_run, writes=writes):
        if process_rank() == 0:
            print(f"r1lab: warning: {warning}", file=sys.stderr)


def _print_resolved(recipe: BaseModel) -> None:
    from r1lab.config.reading import dump_resolved

    print(dump_resolved(recipe), end="")


def _print_plan(recipe: TrainRecipe) -> None:
    """Print the resolved recipe, one prompt, and a summary of the run."""
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
    """Wrap checks that give the same result in every process, so that only rank 0 reports errors.

    The other ranks wait before they exit, because a launcher kills all ranks once one has exited.
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
