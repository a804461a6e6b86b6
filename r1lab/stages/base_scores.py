"""What a base can do before any reinforcement learning: its held-out scores by kind of problem."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from r1lab.evaluate import evaluate
from r1lab.model.load import load_base
from r1lab.prompts import TEMPLATES
from r1lab.recipe import (
    EvaluationSettings,
    ModelSettings,
    PretrainRecipe,
    ProblemSettings,
    RewardSettings,
    SourceSettings,
)
from r1lab.registry import load_mixture
from r1lab.rollout.build import build_sampler
from r1lab.rollout.source import encode_prompt
from r1lab.verify import Verifiers

MAX_TOKENS = 128


def score_base(folder: Path, recipe: PretrainRecipe) -> dict[str, Any]:
    """pass@1, cons@k, greedy accuracy, form and length of each kind of problem, for the card."""
    _, tokenizer, _ = load_base(ModelSettings(path=str(folder), dtype=recipe.dtype))
    sampler = build_sampler(recipe.card_engine, folder, tokenizer, dtype=recipe.dtype)
    template, settings = TEMPLATES["compact"], EvaluationSettings()
    rewards = (RewardSettings(reward="problem"), RewardSettings(reward="format"))
    verifiers = Verifiers(rewards, template=template)
    kinds = {}
    for kind in recipe.card_sources:
        sources = ProblemSettings(sources=(SourceSettings(source=kind),))
        problems = load_mixture(sources, "test", settings.seed).distinct(recipe.card_problems)
        result = evaluate(
            sampler, problems, verifiers, encode=partial(encode_prompt, tokenizer), template=template,
            settings=settings, max_tokens=MAX_TOKENS, greedy=True,
        )  # fmt: skip
        figures = result.headline()
        kinds[kind] = {
            "pass_at_1": figures["pass_at_1"], "cons_at_k": figures[f"cons_at_{result.k}"],
            "greedy": figures["greedy"], "format": figures["format"], "length": figures["length"],
        }  # fmt: skip
    sampler.close()
    return {
        "num_problems": recipe.card_problems, "num_samples": settings.num_samples, "kinds": kinds,
    }  # fmt: skip
