"""`r1lab train RECIPE --preflight`: sample a few groups as the run would, and say if it can learn.

Base, sampler, rewards and weight sync are those of the run; only the optimizer takes no step.
"""

from __future__ import annotations

import torch

from r1lab.config.recipe import TrainRecipe
from r1lab.grpo.faults import explained
from r1lab.grpo.setup import build_rollout_source, load_policy
from r1lab.monitor.preflight import BaselineAgreement, PreflightLimits, Prospects, judge_prospects
from r1lab.prompts import TEMPLATES
from r1lab.rollout.build import build_recipe_sampler
from r1lab.rollout.server.weights_folder import new_run
from r1lab.run_folder import RunFolder
from r1lab.verify import IsolatedRunner, Verifiers

# Independent of the step's size: with the usual 16 samples each, a share of responses is accurate
# to 0.05, and a share of groups to 0.18.
NUM_GROUPS = 32


def preflight(recipe: TrainRecipe) -> Prospects:
    """Judge whether a run with this recipe can learn, from the first groups that it would sample.

    The main process also writes the report to preflight.json in the run folder. Every process of a
    launch takes part and returns the same report. Raises R1labError for a recipe that cannot run.
    """
    try:
        return _look(recipe)
    except Exception as error:
        explanation = explained(error, recipe, in_update=False)
        if explanation is None or explanation is error:
            raise
        raise explanation from error


def _look(recipe: TrainRecipe) -> Prospects:
    from accelerate import Accelerator
    from accelerate.utils import gather_object, set_seed

    accelerator = Accelerator(cpu=not torch.cuda.is_available())
    set_seed(recipe.seed)
    template, world = TEMPLATES[recipe.template], accelerator.num_processes
    groups = max(NUM_GROUPS // world, 1) * world
    settings = recipe.sampling.model_copy(update={"questions_per_step": groups, "max_lag": 0})
    policy, tokenizer, folder = load_policy(recipe, accelerator)
    run = gather_object([new_run()])[0] if world > 1 else new_run()
    sampler = build_recipe_sampler(
        recipe, folder, tokenizer, rank=accelerator.process_index, run=run
    )
    source = build_rollout_source(recipe, sampler, tokenizer, policy, settings)
    try:
        with IsolatedRunner(recipe.reward_workers) as runner:
            source.start(policy)
            rollouts = source.next(policy.version)
            verifiers = Verifiers(
                recipe.rewards, template=template, runner=runner, max_steps=recipe.steps
            )
            scored = verifiers.score(rollouts)
        kl, num_tokens = policy.sampler_mismatch(rollouts)
        guard = source.guard
        agreement = BaselineAgreement(kl, num_tokens, guard.bound(num_tokens), guard.advice)
        max_model_len = sampler.max_model_len
    finally:
        source.close()
    report = judge_prospects(
        gather_object(scored) if world > 1 else scored,
        accuracy=verifiers.accuracy,
        limits=PreflightLimits(settings.max_tokens, max_model_len, recipe.max_fault_share),
        agreement=agreement,
    )
    if accelerator.is_main_process:
        RunFolder.create(recipe.run_folder).write_preflight(report.as_dict())
    accelerator.wait_for_everyone()
    return report
