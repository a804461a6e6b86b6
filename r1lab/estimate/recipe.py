"""The estimate of a recipe: its model's configuration from where it lies, its prompts measured."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from r1lab.config.recipe import TrainRecipe
from r1lab.estimate.hardware import Cluster
from r1lab.estimate.plan import RunEstimate, estimate, known_sizes, mean_assumption
from r1lab.estimate.shape import shape_of
from r1lab.estimate.timing import Layout
from r1lab.estimate.workload import workload_of
from r1lab.hints import nearest
from r1lab.model.files import quick_tokenizer
from r1lab.model.load import resolve_folder, shipped_models
from r1lab.problems.registry import load_mixture
from r1lab.prompts import TEMPLATES
from r1lab.types import R1labError, RecipeError

_NUM_PROMPTS = 64  # whose mean length is taken
_LETTERS_PER_TOKEN = 4  # of English, where there is no tokenizer to ask
_UNKNOWN_PROMPT = 200.0  # tokens of a prompt where the problems do not lie here
_OF_SIZE = {f"deepseek-ai/DeepSeek-{name}": "v3" for name in ("V3", "V3-Base", "R1", "R1-Zero")}


def estimate_recipe(
    recipe: TrainRecipe,
    cluster: Cluster,
    *,
    price: float | None = None,
    mean: float | None = None,
    layout: Layout | None = None,
) -> RunEstimate:
    """What `recipe` needs on `cluster`; `mean` response tokens where they are known.

    Reads config.json and, where it is there, tokenizer.json: no weights, no network. Raises
    RecipeError, in one line, where there is no configuration.
    """
    path = recipe.model.path
    values, folder = find_config(path, gguf=recipe.model.gguf_file is not None)
    bytes_each, said = _precision(recipe, cluster)
    prompt, prompts = _prompt_tokens(recipe, folder)
    shape = shape_of(values, path)
    work = workload_of(
        recipe, kind=shape.kind, prompt=prompt, mean=mean, bytes_each=bytes_each
    )  # fmt: skip
    assumed = [said, prompts, *([mean_assumption(work)] if mean is None else [])]
    return estimate(path, shape, work, cluster, layout=layout, price=price, assumed=assumed)


def find_config(path: str, *, gguf: bool = False) -> tuple[Mapping[str, Any], Path | None]:
    """(values of config.json, its folder or None) of a shipped base, a folder, size or hub name.

    A size is a name of r1lab.model.config.SIZES (v3: DeepSeek-V3, also by its names on the hub).
    Other hub names are looked for in the hub's cache alone. Raises RecipeError.
    """
    if gguf:
        raise RecipeError(
            "model.gguf_file: a GGUF holds no config.json to estimate from; name the folder of the "
            "same model in model.path"
        )
    path = _OF_SIZE.get(path, path)
    sizes = known_sizes()
    is_place = path in shipped_models() or Path(path).expanduser().is_dir()
    if path in sizes and not is_place:
        values = sizes[path]
        if "vocab_size" not in values:
            raise RecipeError(f"model.path: {path!r} has no vocabulary of its own; name a folder")
        return values, None
    if not is_place and path.count("/") == 1 and not Path(path).parent.is_dir():
        folder = _cached(path)
    elif is_place:
        folder = resolve_folder(path)
    else:
        names = [*shipped_models(), *sizes]
        raise RecipeError(
            f"model.path: {path!r} is neither a folder nor one of {', '.join(dict.fromkeys(names))}"
            f"{nearest(path, names)}"
        )
    file = folder / "config.json"
    if not file.is_file():
        raise RecipeError(f"model.path: {path!r} holds no config.json; give a model's own folder")
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise RecipeError(f"model.path: {path!r}: its config.json is no JSON ({error})") from None
    if not isinstance(values, dict):
        raise RecipeError(f"model.path: {path!r}: its config.json is no object")
    return values, folder


def _cached(name: str) -> Path:
    """The folder of a hub name in the hub's cache."""
    try:
        from huggingface_hub import try_to_load_from_cache
    except ImportError:
        found = None
    else:
        found = try_to_load_from_cache(name, "config.json")
    if not isinstance(found, str):
        raise RecipeError(
            f"model.path: {name!r} is no folder here and not in the hub's cache; fetch its "
            f"configuration (hf download {name} config.json tokenizer.json), or name a folder"
        )
    return Path(found).parent


def _precision(recipe: TrainRecipe, cluster: Cluster) -> tuple[int, str]:
    # `auto` was settled for this machine when the recipe was read; GPUs multiply in bfloat16.
    said = "dtype" in recipe.model.model_fields_set or cluster.device.is_cpu
    name = recipe.model.dtype if said else "bfloat16"
    return (2 if name == "bfloat16" else 4), f"working weights in {name}"


def _prompt_tokens(recipe: TrainRecipe, folder: Path | None) -> tuple[float, str]:
    """(mean tokens of the first prompts, how they were counted)."""
    template = TEMPLATES[recipe.template]
    try:
        mixture = load_mixture(recipe.problems, "train")
        texts = [template.prompt(mixture[i].question) for i in range(_NUM_PROMPTS)]
    except R1labError:  # a set that has to be fetched first
        note = f"prompts of {_UNKNOWN_PROMPT:.0f} tokens, as the problems could not be loaded"
        return _UNKNOWN_PROMPT, note
    tokenizer = None if folder is None else quick_tokenizer(folder, recipe.model.path)
    if tokenizer is None:
        letters = sum(map(len, texts)) / len(texts)
        note = f"prompts at {_LETTERS_PER_TOKEN} letters a token, for lack of a tokenizer"
        return letters / _LETTERS_PER_TOKEN, note
    count = sum(len(tokenizer.encode(text)) for text in texts)
    return count / len(texts), f"prompts as long as the first {len(texts)} of the recipe"
