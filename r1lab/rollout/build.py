"""Build the sampler of a recipe."""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from r1lab.rollout.sampler import Sampler
from r1lab.types import RecipeError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from r1lab.config.recipe import TrainRecipe
    from r1lab.rollout.vllm.engine import Attention

ENGINES = ("vllm", "transformers", "server")


def build_sampler(
    engine: str,
    model_folder: str | Path,
    tokenizer: PreTrainedTokenizerBase,
    *,
    dtype: str = "auto",
    max_model_len: int | None = None,
    kv_cache_gib: float = 1.0,
    gpu_memory_utilization: float = 0.45,
    max_num_seqs: int = 512,
    seed: int = 0,
    attention: Attention = "auto",
    routed_experts: bool = False,
) -> Sampler:
    """Build the sampler of `sampling.engine` with the weights in `model_folder` as version 0.

    A missing engine is not replaced by another: raises RecipeError. `kv_cache_gib`,
    `gpu_memory_utilization`, `attention` and `routed_experts` (whether experts will be requested)
    apply to vLLM only. `build_recipe_sampler` builds samplers over servers, which a recipe names.
    """
    check_engine(engine)
    if engine == "server":
        raise RecipeError(
            "sampling.engine: 'server' is for training runs only; use vllm or transformers"
        )
    if engine == "transformers":
        from r1lab.rollout.hf_sampler import TransformersSampler

        return TransformersSampler(
            model_folder,
            tokenizer,
            dtype=dtype,
            max_model_len=max_model_len,
            max_num_seqs=max_num_seqs,
            seed=seed,
        )
    from r1lab.rollout.vllm.engine import VllmSampler

    return VllmSampler(
        model_folder,
        tokenizer,
        dtype=dtype,
        max_model_len=max_model_len,
        kv_cache_gib=kv_cache_gib,
        gpu_memory_utilization=gpu_memory_utilization,
        max_num_seqs=max_num_seqs,
        seed=seed,
        attention=attention,
        routed_experts=routed_experts,
    )


def build_recipe_sampler(
    recipe: TrainRecipe,
    model_folder: str | Path,
    tokenizer: PreTrainedTokenizerBase,
    *,
    seed: int = 0,
    rank: int = 0,
    run: str = "",
    on_event: Callable[[str], None] = lambda text: None,
) -> Sampler:
    """Build a run's sampler: `build_sampler` with the recipe's settings, or over its servers.

    `rank`, `run` and `on_event` are for servers: see `ServerSampler`.
    """
    sampling = recipe.sampling
    if sampling.engine == "server":
        return _server_sampler(
            recipe, model_folder, tokenizer, seed=seed, rank=rank, run=run, on_event=on_event
        )
    return build_sampler(
        sampling.engine,
        model_folder,
        tokenizer,
        dtype=recipe.model.dtype,
        max_model_len=sampling.max_model_len,
        kv_cache_gib=sampling.kv_cache_gib,
        gpu_memory_utilization=sampling.gpu_memory_utilization,
        seed=seed,
        routed_experts=recipe.algorithm.router_replay == "sampler",
    )


def _server_sampler(
    recipe: TrainRecipe,
    model_folder: str | Path,
    tokenizer: PreTrainedTokenizerBase,
    **options: Any,
) -> Sampler:
    from r1lab.rollout.server.info import KEY_VARIABLE
    from r1lab.rollout.server.sampler import Servers, ServerSampler

    sampling = recipe.sampling
    servers = Servers(
        sampling.servers,
        os.environ.get(KEY_VARIABLE),
        sampling.weights_folder,
        sampling.weight_transfer,
        sampling.server_patience,
    )
    return ServerSampler(
        servers, model_folder, tokenizer, dtype=recipe.model.dtype,
        max_model_len=sampling.max_model_len, **options,
    )  # fmt: skip


def check_engine(engine: str) -> None:
    """Reject an engine that is unknown or not installed, without importing it."""
    if engine not in ENGINES:
        close = difflib.get_close_matches(engine, ENGINES, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise RecipeError(f"sampling.engine: {engine!r} is not one of {', '.join(ENGINES)}{hint}")
    if engine == "vllm" and find_spec("vllm") is None:
        raise RecipeError(
            "sampling.engine: 'vllm' is not installed; pip install 'r1lab[cpu]' (or 'r1lab[gpu]'), "
            "or set sampling.engine to 'transformers' (slower)"
        )
    if engine == "server" and find_spec("httpx") is None:
        raise RecipeError("sampling.engine: 'server' needs httpx; pip install 'r1lab[train]'")
