"""The checks before a run, without heavy imports; `r1lab train --dry-run` runs only these.

They are ordered by how likely a mistake is and how cheap it is to detect: the output folder,
rewards, problems, the base model's folder, context length, gold answers. Every error is a
RecipeError of one line. Nothing here imports torch.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from r1lab.config.algorithm import AdvantageName, LossName
from r1lab.config.recipe import PretrainRecipe, TrainRecipe
from r1lab.hints import nearest, raised
from r1lab.launch import check_launch, num_processes, process_rank
from r1lab.model.attention import check_kernel_precision
from r1lab.model.files import (
    QuickTokenizer,
    check_folder,
    check_gguf,
    check_routers,
    check_trainable,
    check_vocabulary,
    quick_tokenizer,
    unsampled_settings,
)
from r1lab.model.load import resolve_folder
from r1lab.problems.curriculum import Curriculum
from r1lab.problems.mixture import ProblemMixture, placed_problems, repeated_questions
from r1lab.problems.registry import PROBLEM_VERIFIER, check_defined, load_mixture, resolve
from r1lab.prompts import TEMPLATES
from r1lab.rollout.build import check_engine
from r1lab.rollout.limits import (
    Keep,
    check_fit,
    check_max_tokens,
    context_limit,
    encode_all,
    fits,
    keeps_what_fits,
    positions,
    unknown_warning,
    unknown_words,
)
from r1lab.types import Problem, R1labError, RecipeError
from r1lab.verify import IsolatedRunner, load_reward
from r1lab.verify.gold import check_gold

# The trackers that accelerate supports, and the packages that they need.
TRACKERS = {
    "aim": "aim", "clearml": "clearml", "comet_ml": "comet_ml", "dvclive": "dvclive",
    "mlflow": "mlflow", "swanlab": "swanlab", "tensorboard": "tensorboard", "trackio": "trackio",
    "wandb": "wandb",
}  # fmt: skip

_LEAST_FREE_MIB = 64  # minimum free disk space: less is not enough for any run
_GENERATED = 256  # problems of a stream whose prompts are measured; tables are measured whole


def check_run(recipe: TrainRecipe, *, dry_run: bool, writes: bool = True) -> list[str]:
    """Refuse a recipe that cannot run, and return warnings of one line each.

    `dry_run` skips the hub and the check for installed packages; `writes=False` skips the checks
    of the output folder. Raises R1labError.
    """
    check_launch(recipe, num_processes())
    if writes:
        check_trackers(recipe.tracking.trackers, installed=not dry_run)
        check_writable(recipe.run_folder, "output")
    if not dry_run:
        check_installed("torch")
        check_engine(recipe.sampling.engine)
        if recipe.sampling.engine == "server" and recipe.sampling.weights_folder is not None:
            check_shared_folder(Path(recipe.sampling.weights_folder))
    for index, reward in enumerate(recipe.rewards):
        if reward.reward != PROBLEM_VERIFIER:
            load_reward(reward.reward, reward.options, key=f"rewards.{index}")
    if recipe.algorithm.loss not in get_args(LossName):
        check_defined(recipe.algorithm.loss, "loss", key="algorithm.loss")
    if recipe.algorithm.advantage not in get_args(AdvantageName):
        check_defined(recipe.algorithm.advantage, "advantage", key="algorithm.advantage")
    grader = recipe.watch.grader
    if grader is not None and grader.reward != PROBLEM_VERIFIER:
        load_reward(grader.reward, grader.options, key="watch.grader")
    train = load_mixture(recipe.problems, "train")
    if recipe.problems.curriculum is not None:
        Curriculum(train, recipe.problems.curriculum)
    _table_rows(train)  # before the held-out rows, so that an error names the row's place
    evaluation = recipe.evaluation
    tested = load_mixture(recipe.problems, "test", evaluation.seed)
    held_out = tested.distinct(evaluation.num_problems)
    warnings = repeated_questions(
        [*placed_problems(train, "train"), *placed_problems(tested, "test")]
    )
    base = _open_base(recipe, dry_run=dry_run)
    keep = None if base is None else base.keep(recipe)
    if base is not None and keep is not None:
        kept = load_mixture(recipe.problems, "train", keep=keep)
        tested_kept = load_mixture(recipe.problems, "test", evaluation.seed, keep=keep)
        held_out = tested_kept.distinct(evaluation.num_problems)
        warnings += _left_out(recipe, base.limit, (train, kept), (tested, tested_kept))
        train, tested = kept, tested_kept
    first, rows = [train[i] for i in range(_GENERATED)], _table_rows(train)
    _check_enough(train, rows, num_processes())
    if base is not None:
        all_held_out = [*held_out, *_table_rows(tested)]  # another evaluation may use the others
        warnings += _check_prompts(recipe, base, [*rows, *first], all_held_out)
    num = recipe.problems.check_gold
    if num and process_rank() == 0:
        with IsolatedRunner(recipe.reward_workers) as runner:
            tried = {problem.id: problem for problem in (*first[:num], *held_out[:num])}
            warning = check_gold(
                list(tried.values()), recipe.rewards, TEMPLATES[recipe.template], runner
            )
        warnings += [warning] if warning else []
    return warnings


def check_pretraining(recipe: PretrainRecipe, *, dry_run: bool) -> None:
    """Refuse a pre-training recipe that cannot run. Raises RecipeError."""
    check_writable(recipe.run_folder, "output")
    if not dry_run:
        check_installed("torch")
        check_installed("transformers")
    load = resolve(recipe.corpus.source, "source", key="corpus.source")
    try:
        load(seed=recipe.seed, **recipe.corpus.options)[0]
    except R1labError:
        raise
    except (TypeError, ValueError, OSError) as error:  # from the user's options
        raise RecipeError(f"corpus.options: {' '.join(str(error).split())}") from error
    except Exception as error:  # the corpus may be the user's code
        raise RecipeError(f"corpus.source: {recipe.corpus.source!r}: {raised(error)}") from error
    for index, name in enumerate(recipe.card_sources if recipe.card_problems else ()):
        resolve(name, "source", key=f"card_sources.{index}")
    if recipe.card_problems and not dry_run:
        check_engine(recipe.card_engine)


@dataclass(frozen=True, slots=True)
class _Base:
    """The properties of a base model's folder that limit prompts.

    limit      maximum tokens of a prompt and its response
    allowed    positions that the model supports
    """

    folder: Path
    limit: int | None
    allowed: int | None
    tokenizer: QuickTokenizer

    def keep(self, recipe: TrainRecipe) -> Keep | None:
        if self.limit is None:
            return None
        return keeps_what_fits(
            recipe.problems,
            TEMPLATES[recipe.template],
            self.tokenizer.encode,
            max_tokens=recipe.sampling.most_tokens,
            limit=self.limit,
        )


def _open_base(recipe: TrainRecipe, *, dry_run: bool) -> _Base | None:
    """Check the base model's folder; return None if prompts cannot be measured without torch."""
    path = recipe.model.path
    check_kernel_precision(recipe.model)
    if dry_run and is_on_a_hub(path):
        return None
    folder = resolve_folder(path)
    if recipe.model.gguf_file is not None:
        check_gguf(folder, path, recipe.model.gguf_file)
        return None  # its configuration and tokenizer are inside the file
    values = check_folder(folder, path)
    check_trainable(values, path)
    if recipe.algorithm.router_bias_speed or recipe.algorithm.router_replay != "none":
        check_routers(values, path)
    limit = context_limit(values, recipe.sampling.max_model_len)
    if limit is not None:
        check_max_tokens(recipe.sampling.most_tokens, limit)
    tokenizer = quick_tokenizer(folder, path)
    if tokenizer is None:
        return None
    check_vocabulary(tokenizer.num_entries, values, path)
    return _Base(folder, limit, positions(values), tokenizer)


def _check_prompts(
    recipe: TrainRecipe, base: _Base, problems: list[Problem], held_out: list[Problem]
) -> list[str]:
    """Refuse prompts that exceed the context; return warnings of words outside the vocabulary."""
    template, longest = TEMPLATES[recipe.template], recipe.sampling.most_tokens
    encode = base.tokenizer.encode
    for some in (held_out, problems):
        if (limit := base.limit) is None:
            break
        long = [p for p in some if not fits(template.prompt(p.question), encode, limit - longest)]
        prompts = encode_all(long, template, encode)
        check_fit(long, prompts, max_tokens=longest, limit=limit, allowed=base.allowed)
    asked = [*held_out[: recipe.evaluation.num_problems], *problems[-_GENERATED:]]
    path = recipe.model.path
    return _unsampled(base.folder, path) + _warnings(path, base.tokenizer, asked)


def _unsampled(folder: Path, path: str) -> list[str]:
    """Return a warning if transformers would refuse to save the base's generation settings."""
    settings = unsampled_settings(folder)
    if not settings:
        return []
    return [
        f"model.path: the generation_config.json of {path!r} sets {', '.join(settings)} without "
        "do_sample, which transformers refuses to save; checkpoints are saved with do_sample true"
    ]


def _left_out(
    recipe: TrainRecipe, limit: int | None, *pairs: tuple[ProblemMixture, ProblemMixture]
) -> list[str]:
    """Return a warning with the number of rows that `problems.leave_out_long` dropped."""
    counts = [[len(_table_rows(mixture)) for mixture in pair] for pair in pairs]
    left, total = sum(all - kept for all, kept in counts), sum(all for all, _ in counts)
    if not left:
        return []
    return [
        f"problems.leave_out_long: {left} of {total} rows are left out, because their prompts plus "
        f"sampling.max_tokens ({recipe.sampling.most_tokens}) exceed the context of {limit} tokens"
    ]


def _warnings(path: str, tokenizer: QuickTokenizer, problems: list[Problem]) -> list[str]:
    warnings = []
    if not tokenizer.has_padding:
        warnings.append(
            f"model.path: the tokenizer of {path!r} names no pad_token; token 0 is used for "
            "padding, which is masked out of all metrics"
        )
    share, words = unknown_words(problems, tokenizer.encode, tokenizer.unknown)
    warning = unknown_warning(path, share, words)
    return [*warnings, warning] if warning else warnings


def _table_rows(mixture: ProblemMixture) -> list[Problem]:
    """Return all rows of the mixture's tables and lists; streams are endless and left out.

    The rows are read through the mixture, which validates them.
    """
    lengths = [len(getattr(stream, "problems", ())) for stream in mixture.streams]
    return [
        mixture.row(stream, position)
        for stream, length in enumerate(lengths)
        for position in range(length)
    ]


def _check_enough(train: ProblemMixture, rows: list[Problem], world: int) -> None:
    """Refuse tables with fewer problems than processes."""
    are_tables = all(hasattr(stream, "problems") for stream in train.streams)
    if are_tables and len(rows) < world:
        raise RecipeError(
            f"problems.sources: {len(rows)} problems to train on cannot be shared by {world} "
            "processes; add problems, or launch fewer (--num_processes)"
        )


def check_shared_folder(folder: Path) -> None:
    """Refuse a folder that cannot be used to transfer weights. Raises RecipeError."""
    if not folder.is_dir():
        raise RecipeError(
            f"sampling.weights_folder: {str(folder)!r} is not a folder; create it on a disk that "
            "the trainer and all servers share"
        )
    if not os.access(folder, os.W_OK | os.X_OK):
        raise RecipeError(
            f"sampling.weights_folder: {str(folder)!r} is not writable; fix its permissions, or "
            "use another folder"
        )


def check_trackers(trackers: tuple[str, ...], *, installed: bool = True) -> None:
    """Refuse trackers that accelerate lacks, or (`installed`) whose package is missing."""
    for index, name in enumerate(trackers):
        key = f"tracking.trackers.{index}"
        if name not in TRACKERS:
            raise RecipeError(
                f"{key}: {name!r} is not one of {', '.join(TRACKERS)}{nearest(name, TRACKERS)}"
            )
        if installed and importlib.util.find_spec(TRACKERS[name]) is None:
            raise RecipeError(
                f"{key}: {name!r} needs its package: pip install {TRACKERS[name]}; or take it out "
                "(--tracking.trackers '[]')"
            )


def check_writable(path: str | Path, key: str) -> None:
    """Refuse a folder that cannot be created or written. Creates nothing."""
    folder = Path(path)
    if folder.exists() and not folder.is_dir():
        raise RecipeError(f"{key}: {str(path)!r} is a file; name a folder, new or of a run")
    above = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    if not above.is_dir():
        raise RecipeError(f"{key}: {str(path)!r} is inside {str(above)!r}, which is a file")
    read_only = bool(os.statvfs(above).f_flag & os.ST_RDONLY)
    if read_only or not os.access(above, os.W_OK | os.X_OK):
        raise RecipeError(
            f"{key}: {str(path)!r} cannot be written: {str(above)!r} is read-only for this user; "
            "name another folder"
        )
    free = shutil.disk_usage(above).free // 2**20
    if free < _LEAST_FREE_MIB:
        raise RecipeError(
            f"{key}: {str(path)!r} is on a disk with {free} MiB free, and a run needs "
            f"{_LEAST_FREE_MIB} at least; make room, or name another folder"
        )


def check_writable_file(path: str | Path, key: str) -> None:
    """Refuse a file that could not be written when the work is done. Creates nothing."""
    file = Path(path)
    if file.is_dir():
        raise R1labError(f"{key}: {str(path)!r} is a folder; name a file")
    folder = file.absolute().parent
    if not folder.is_dir():
        raise R1labError(f"{key}: there is no folder {str(folder)!r} for {file.name!r}; make it")
    target = file if file.exists() else folder
    if not os.access(target, os.W_OK) or os.statvfs(target).f_flag & os.ST_RDONLY:
        raise R1labError(f"{key}: {str(path)!r} cannot be written; name another file")


def check_installed(package: str) -> None:
    """Raise RecipeError if a package of r1lab's extras is not installed."""
    if importlib.util.find_spec(package) is None:
        raise RecipeError(f"{package} is not installed here; install r1lab's extra [cpu] or [gpu]")


def is_on_a_hub(path: str) -> bool:
    """Return whether a model path looks like a hub name, `owner/model`."""
    return path.count("/") == 1 and not Path(path).parent.is_dir()
