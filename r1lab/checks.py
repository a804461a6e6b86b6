"""What a run needs, checked before anything heavy is imported: `r1lab train --dry-run` is this.

The order is that of what a user most likely got wrong, and of what costs least to look at: where
the run writes, rewards, problems, the base's folder, what fits its context, gold answers. Every
refusal is a RecipeError of one line. Nothing here imports torch.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
from pathlib import Path
from typing import get_args

from r1lab.curriculum import Curriculum
from r1lab.hints import nearest, raised
from r1lab.launch import check_launch, num_processes, process_rank
from r1lab.model.files import (
    QuickTokenizer,
    check_folder,
    check_vocabulary,
    quick_tokenizer,
    unsampled_settings,
)
from r1lab.model.load import resolve_folder
from r1lab.problems import ProblemMixture
from r1lab.prompts import TEMPLATES
from r1lab.recipe import PretrainRecipe, TrainRecipe
from r1lab.recipe_algorithm import LossName
from r1lab.registry import PROBLEM_VERIFIER, find, load_mixture, resolve
from r1lab.rollout.build import check_engine
from r1lab.rollout.limits import (
    check_fit,
    check_max_tokens,
    context_limit,
    encode_all,
    unknown_warning,
    unknown_words,
)
from r1lab.types import Problem, R1labError, RecipeError
from r1lab.verify import IsolatedRunner, load_reward
from r1lab.verify.gold import check_gold

# The trackers that accelerate knows, and the packages that they need.
TRACKERS = {
    "aim": "aim", "clearml": "clearml", "comet_ml": "comet_ml", "dvclive": "dvclive",
    "mlflow": "mlflow", "swanlab": "swanlab", "tensorboard": "tensorboard", "trackio": "trackio",
    "wandb": "wandb",
}  # fmt: skip

_LEAST_FREE_MIB = 64  # of the disk: less does not hold a run of any size
_MOST_TRIED = 10_000  # problems of a table whose prompts are measured
_GENERATED = 256  # problems of a stream, likewise


def check_run(recipe: TrainRecipe, *, dry_run: bool, writes: bool = True) -> list[str]:
    """Refuse what cannot run, and return what to warn of, a line each.

    `dry_run` asks no hub and no installed package; without `writes` nothing is said of where a run
    writes. Raises R1labError.
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
        find(recipe.algorithm.loss, "loss", key="algorithm.loss")
    grader = recipe.watch.grader
    if grader is not None and grader.reward != PROBLEM_VERIFIER:
        load_reward(grader.reward, grader.options, key="watch.grader")
    train = load_mixture(recipe.problems, "train")
    if recipe.problems.curriculum is not None:
        Curriculum(train, recipe.problems.curriculum)
    first = [train[i] for i in range(_GENERATED)]
    evaluation = recipe.evaluation
    held_out = load_mixture(recipe.problems, "test", evaluation.seed).distinct(
        evaluation.num_problems
    )
    rows = _table_rows(train)
    _check_enough(train, rows, num_processes())
    warnings = _check_base(recipe, [*rows, *first], held_out, dry_run=dry_run)
    num = recipe.problems.check_gold
    if num and process_rank() == 0:
        with IsolatedRunner(recipe.reward_workers) as runner:
            tried = {problem.id: problem for problem in (*first[:num], *held_out[:num])}
            said = check_gold(
                list(tried.values()), recipe.rewards, TEMPLATES[recipe.template], runner
            )
        warnings += [said] if said else []
    return warnings


def check_pretraining(recipe: PretrainRecipe, *, dry_run: bool) -> None:
    """Refuse a pre-training that cannot run; raises RecipeError."""
    check_writable(recipe.run_folder, "output")
    if not dry_run:
        check_installed("torch")
        check_installed("transformers")
    load = resolve(recipe.corpus.source, "source", key="corpus.source")
    try:
        load(seed=recipe.seed, **recipe.corpus.options)[0]
    except R1labError:
        raise
    except (TypeError, ValueError, OSError) as error:  # the options are the user's
        raise RecipeError(f"corpus.options: {' '.join(str(error).split())}") from error
    except Exception as error:  # and the corpus may be his code
        raise RecipeError(f"corpus.source: {recipe.corpus.source!r}: {raised(error)}") from error
    for index, name in enumerate(recipe.card_sources if recipe.card_problems else ()):
        resolve(name, "source", key=f"card_sources.{index}")
    if recipe.card_problems and not dry_run:
        check_engine(recipe.card_engine)


def _check_base(
    recipe: TrainRecipe, problems: list[Problem], held_out: list[Problem], *, dry_run: bool
) -> list[str]:
    """The base's folder, and what of the problems fits its context and its vocabulary."""
    path = recipe.model.path
    if dry_run and is_on_a_hub(path):
        return []
    folder = resolve_folder(path)
    if recipe.model.gguf_file is not None:
        return []  # its configuration and tokenizer are inside the file
    values = check_folder(folder, path)
    limit = context_limit(values, recipe.sampling.max_model_len)
    if limit is not None:
        check_max_tokens(recipe.sampling.most_tokens, limit)
    tokenizer = quick_tokenizer(folder, path)
    if tokenizer is None:
        return []
    check_vocabulary(tokenizer.num_entries, values, path)
    template = TEMPLATES[recipe.template]
    for some in (held_out, problems):
        if limit is not None:
            prompts = encode_all(some, template, tokenizer.encode)
            check_fit(some, prompts, max_tokens=recipe.sampling.most_tokens, limit=limit)
    unsampled = unsampled_settings(folder)
    kept = [
        f"model.path: the generation_config.json of {path!r} sets {', '.join(unsampled)} without "
        "do_sample, which transformers refuses to save; checkpoints are saved with do_sample true"
    ] if unsampled else []  # fmt: skip
    return kept + _warnings(path, tokenizer, [*held_out, *problems[-_GENERATED:]])


def _warnings(path: str, tokenizer: QuickTokenizer, problems: list[Problem]) -> list[str]:
    found = []
    if not tokenizer.has_padding:
        found.append(
            f"model.path: the tokenizer of {path!r} names no pad_token; token 0 fills padded "
            "places, which no figure counts"
        )
    share, words = unknown_words(problems, tokenizer.encode, tokenizer.unknown)
    said = unknown_warning(path, share, words)
    return [*found, said] if said else found


def _table_rows(mixture: ProblemMixture) -> list[Problem]:
    """The rows of its tables and lists, of very long ones the first; those of streams are endless.

    Read through the mixture, which checks what it hands out.
    """
    lengths = [len(getattr(stream, "problems", ())) for stream in mixture.streams]
    return [
        mixture.row(stream, position)
        for stream, length in enumerate(lengths)
        for position in range(min(length, _MOST_TRIED))
    ]


def _check_enough(train: ProblemMixture, rows: list[Problem], world: int) -> None:
    """Refuse tables that have not a problem for each process."""
    are_tables = all(hasattr(stream, "problems") for stream in train.streams)
    if are_tables and len(rows) < min(world, _MOST_TRIED):
        raise RecipeError(
            f"problems.sources: {len(rows)} problems to train on cannot be shared by {world} "
            "processes; add problems, or launch fewer (--num_processes)"
        )


def check_shared_folder(folder: Path) -> None:
    """Refuse a folder that weights cannot go through; raises RecipeError."""
    if not folder.is_dir():
        raise RecipeError(
            f"sampling.weights_folder: {str(folder)!r} is no folder; make it, on a disk that the "
            "trainer and all servers share"
        )
    if not os.access(folder, os.W_OK | os.X_OK):
        raise RecipeError(
            f"sampling.weights_folder: {str(folder)!r} cannot be written to; name another, or mend "
            "its permissions"
        )


def check_trackers(trackers: tuple[str, ...], *, installed: bool = True) -> None:
    """Refuse trackers that accelerate does not know, or (`installed`) whose package is missing."""
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
    """Refuse a folder that cannot be made, or written in; nothing is made."""
    folder = Path(path)
    if folder.exists() and not folder.is_dir():
        raise RecipeError(f"{key}: {str(path)!r} is a file; name a folder, new or of a run")
    above = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    if not above.is_dir():
        raise RecipeError(f"{key}: {str(path)!r} lies below {str(above)!r}, which is a file")
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
    """Refuse a file that could not be written when the work is done; nothing is made."""
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
    """Refuse to go on without a package of r1lab's extras."""
    if importlib.util.find_spec(package) is None:
        raise RecipeError(f"{package} is not installed here; install r1lab's extra [cpu] or [gpu]")


def is_on_a_hub(path: str) -> bool:
    """Whether a base's name looks like one of a hub, `owner/model`."""
    return path.count("/") == 1 and not Path(path).parent.is_dir()
