"""Build the parts of a run and of its preflight from a recipe."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from r1lab.config.recipe import SamplingRecipe, TrainRecipe
from r1lab.grpo.policy import Policy
from r1lab.launch import wants_shards
from r1lab.model.adapters import add_lora
from r1lab.model.balance import has_experts
from r1lab.model.load import load_base
from r1lab.model.replay import require_routers
from r1lab.model.shard import shard
from r1lab.model.weights import base_model
from r1lab.problems.registry import load_training
from r1lab.prompts import TEMPLATES
from r1lab.rollout.agreement import SyncGuard, advice, highest_floor
from r1lab.rollout.async_source import AsyncRolloutSource
from r1lab.rollout.limits import Keep, keeps_what_fits
from r1lab.rollout.sampler import Sampler
from r1lab.rollout.source import RolloutSource, encode_prompt
from r1lab.types import RecipeError

if TYPE_CHECKING:
    from accelerate import Accelerator
    from transformers import PreTrainedTokenizerBase


def load_policy(
    recipe: TrainRecipe, accelerator: Accelerator
) -> tuple[Policy, PreTrainedTokenizerBase, Path]:
    """Load the base of a recipe; return the policy at version 0, its tokenizer and folder."""
    model, tokenizer, folder = load_base(recipe.model)
    if recipe.algorithm.router_bias_speed or recipe.algorithm.router_replay != "none":
        require_routers(model)
    if recipe.model.lora is not None:
        model = add_lora(model, recipe.model.lora, seed=recipe.seed)
    if wants_shards():
        shard(base_model(model), accelerator.device)
    else:
        model = model.to(accelerator.device)
    policy = Policy(
        model,
        optimizer=recipe.optimizer,
        total_updates=recipe.steps * recipe.algorithm.updates_per_step,
        temperature=recipe.sampling.temperature,
        accelerator=accelerator,
        pad_token_id=tokenizer.pad_token_id or 0,
        with_reference=recipe.algorithm.kl_coefficient > 0,
    )
    check_forward(policy, recipe.model.path)
    return policy, tokenizer, folder


def kept_problems(
    recipe: TrainRecipe, sampler: Sampler, tokenizer: PreTrainedTokenizerBase
) -> Keep | None:
    """Return a filter for the rows of tables that a run uses; None keeps all."""
    return keeps_what_fits(
        recipe.problems,
        TEMPLATES[recipe.template],
        partial(encode_prompt, tokenizer),
        max_tokens=recipe.sampling.most_tokens,
        limit=sampler.max_model_len,
    )


def check_forward(policy: Policy, path: str) -> None:
    """Reject a model whose training log-probs differ from those of its own forward.

    `path` is the value of `model.path`. Raises RecipeError.
    """
    kind = policy.base.config.model_type
    try:
        gap, num_tokens = policy.forward_gap()
        assert gap is not None, "there are tokens"
    # Errors that transformers raises for an architecture whose inputs are not those of a decoder.
    except (TypeError, ValueError, AttributeError, NotImplementedError, LookupError) as error:
        reason = " ".join(str(error).split())[:200]
        raise RecipeError(
            f"model.path: {path!r} is a {kind}, which cannot be trained here ({reason}); use a "
            "decoder-only language model"
        ) from error
    bound = guard_of(policy).bound(num_tokens)
    if not gap <= bound:
        raise RecipeError(
            f"model.path: {path!r} is a {kind}, whose training log-probs would differ from those "
            f"of its own forward (k3 {gap:.2g}, at most {bound:.2g}); use another architecture"
        )


def guard_of(policy: Policy, *, device: str | None = None, **options: Any) -> SyncGuard:
    """Return a guard with the bounds of the policy's precision and of `device` (None: its own)."""
    dtype = str(policy.base.dtype).removeprefix("torch.")
    device = device or policy.accelerator.device.type
    is_exact = (dtype, device) == ("float32", "cpu")
    return SyncGuard(
        highest_floor=highest_floor(dtype, device),
        # Rounding can send a token to another expert in any precision, so allow for chance.
        allow_chance=not is_exact or has_experts(policy.base),
        **options,
    )


def build_rollout_source(
    recipe: TrainRecipe,
    sampler: Sampler,
    tokenizer: PreTrainedTokenizerBase,
    policy: Policy,
    settings: SamplingRecipe | None = None,
) -> RolloutSource:
    """Build this process's rollout source; `settings` replaces the recipe's sampling."""
    settings = settings or recipe.sampling
    stream = AsyncRolloutSource if settings.max_lag else RolloutSource
    return stream(
        load_training(recipe.problems, kept_problems(recipe, sampler, tokenizer)),
        sampler,
        tokenizer,
        TEMPLATES[recipe.template],
        settings,
        rank=policy.accelerator.process_index,
        world_size=policy.accelerator.num_processes,
        seed=recipe.seed,
        guard=guard_of(
            policy,
            # A server's device is unknown here, so use the loosest bound.
            device="cuda" if settings.engine == "server" else None,
            max_kl=recipe.algorithm.max_sync_kl,
            advice=advice(settings.engine, recipe.model.dtype),
        ),
        routed_experts=recipe.algorithm.router_replay == "sampler",
    )
