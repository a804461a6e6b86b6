"""A training run from its recipe: set up, evaluate, step, checkpoint, evaluate, sum up."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from r1lab.evaluate import EvalResult, evaluate
from r1lab.grpo.checkpoint import (
    newest_checkpoint,
    random_states,
    save_checkpoint,
    set_random_states,
)
from r1lab.grpo.policy import Policy
from r1lab.grpo.step import StepResult, rl_step
from r1lab.model.adapters import add_lora
from r1lab.model.load import load_base
from r1lab.model.weights import save_checkpoint_folder
from r1lab.prompts import TEMPLATES
from r1lab.recipe import TrainRecipe
from r1lab.registry import load_mixture
from r1lab.report.metrics import RunFolder
from r1lab.rollout.build import build_sampler
from r1lab.rollout.source import RolloutSource
from r1lab.types import Problem, R1labError, SamplingSettings
from r1lab.verify import Verifiers

if TYPE_CHECKING:
    from accelerate import Accelerator

log = logging.getLogger(__name__)


def train(recipe: TrainRecipe, *, resume: bool = False) -> Path:
    """Run a recipe to its end and return its run folder.

    `resume` goes on from the newest checkpoint in the run folder; without it a run folder that
    holds a run already is refused. Raises R1labError.
    """
    run = Run(recipe, resume=resume)
    try:
        run.go()
    finally:
        run.close()
    return run.folder.path


class Run:
    """One process's part of a run: the pieces, put together in the order they need each other."""

    def __init__(self, recipe: TrainRecipe, *, resume: bool) -> None:
        from accelerate import Accelerator
        from accelerate.utils import set_seed

        self.recipe = recipe
        self.began = time.monotonic()
        self.template = TEMPLATES[recipe.template]
        self.folder = RunFolder(recipe.run_folder)
        self.accelerator = Accelerator(
            cpu=not torch.cuda.is_available(),
            log_with=list(recipe.tracking.trackers) or None,
            project_dir=recipe.run_folder,
        )
        set_seed(recipe.seed)
        self.train_problems = load_mixture(recipe.problems, "train")
        self.held_out = load_mixture(recipe.problems, "test", recipe.evaluation.seed).distinct(
            recipe.evaluation.num_problems
        )
        self.verifiers = Verifiers(recipe.rewards, template=self.template)
        self.model, self.tokenizer, self.base_folder = load_base(recipe.model)
        if recipe.model.lora is not None:
            self.model = add_lora(self.model, recipe.model.lora, seed=recipe.seed)
        self.policy = Policy(
            self.model.to(self.accelerator.device),
            optimizer=recipe.optimizer,
            total_updates=recipe.steps * recipe.algorithm.num_minibatches,
            temperature=recipe.sampling.temperature,
            accelerator=self.accelerator,
            pad_token_id=self.tokenizer.pad_token_id or 0,
        )
        self.source = self._build_source()
        self.step = self._restore() if resume else 0
        if self.step == 0:
            self.folder.start(recipe, resume=resume)

    def _build_source(self) -> RolloutSource:
        recipe, rank = self.recipe, self.accelerator.process_index
        sampler = build_sampler(
            recipe.sampling.engine,
            self.base_folder,
            self.tokenizer,
            dtype=recipe.model.dtype,
            max_model_len=recipe.sampling.max_model_len,
            kv_cache_gib=recipe.sampling.kv_cache_gib,
            gpu_memory_utilization=recipe.sampling.gpu_memory_utilization,
            seed=recipe.seed * 1000 + rank,
        )
        return RolloutSource(
            self.train_problems, sampler, self.tokenizer, self.template, recipe.sampling,
            rank=rank, world_size=self.accelerator.num_processes,
        )  # fmt: skip
