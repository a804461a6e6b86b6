"""Scoring a base or a trained model outside a run: `r1lab eval`."""

from __future__ import annotations

from functools import partial

from r1lab.evaluate.result import EvalResult
from r1lab.evaluate.run import evaluate
from r1lab.model.load import load_base
from r1lab.prompts import TEMPLATES
from r1lab.recipe import TrainRecipe
from r1lab.registry import load_mixture
from r1lab.rollout.build import build_sampler
from r1lab.rollout.source import encode_prompt
from r1lab.verify import IsolatedRunner, Verifiers


def evaluate_recipe(recipe: TrainRecipe) -> EvalResult:
    """Score the model that the recipe names, on the held-out problems of a run with that recipe.

    The same problems, seeds and limits as the run's own evaluations. Raises R1labError.
    """
    settings, template = recipe.evaluation, TEMPLATES[recipe.template]
    problems = load_mixture(recipe.problems, "test", settings.seed).distinct(settings.num_problems)
    runner = IsolatedRunner(recipe.reward_workers)
    verifiers = Verifiers(recipe.rewards, template=template, runner=runner, max_steps=recipe.steps)
    _, tokenizer, folder = load_base(recipe.model)
    sampler = build_sampler(
        recipe.sampling.engine,
        folder,
        tokenizer,
        dtype=recipe.model.dtype,
        max_model_len=recipe.sampling.max_model_len,
        kv_cache_gib=recipe.sampling.kv_cache_gib,
        gpu_memory_utilization=recipe.sampling.gpu_memory_utilization,
        seed=settings.seed,
    )
    try:
        return evaluate(
            sampler,
            problems,
            verifiers,
            encode=partial(encode_prompt, tokenizer),
            template=template,
            settings=settings,
            max_tokens=recipe.sampling.max_tokens,
            greedy=settings.greedy,
        )
    finally:
        runner.close()
        sampler.close()
