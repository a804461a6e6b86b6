"""A training run from its recipe: set up, evaluate, step, checkpoint, evaluate, sum up."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from r1lab.evaluate import Asked, EvalResult, ask, judge
from r1lab.grpo.advantage import group_advantages
from r1lab.grpo.checkpoint import (
    list_checkpoints,
    newest_checkpoint,
    random_states,
    save_checkpoint,
    set_random_states,
)
from r1lab.grpo.lookout import Lookout
from r1lab.grpo.policy import Policy
from r1lab.grpo.step import StepResult, rl_step
from r1lab.model.adapters import add_lora
from r1lab.model.load import load_base
from r1lab.model.weights import save_checkpoint_folder
from r1lab.prompts import TEMPLATES
from r1lab.recipe import TrainRecipe
from r1lab.recipe_io import dump_resolved
from r1lab.registry import load_mixture
from r1lab.rollout.build import build_sampler
from r1lab.rollout.source import RolloutSource
from r1lab.run_folder import RunFolder
from r1lab.types import R1labError, RunStopped
from r1lab.verify import IsolatedRunner, Verifiers


def train(recipe: TrainRecipe, *, resume: bool = False) -> Path:
    """Run a recipe to its end and return its run folder.

    `resume` goes on from the newest checkpoint in the run folder (from the start where there is
    none); without it a folder that holds a run already is refused. Raises R1labError.
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

        self.recipe, self.began = recipe, time.monotonic()
        self.template = TEMPLATES[recipe.template]
        self.accelerator = Accelerator(
            cpu=not torch.cuda.is_available(),
            log_with=list(recipe.tracking.trackers) or None,
            project_dir=recipe.run_folder,
        )
        self.rank, self.is_main = self.accelerator.process_index, self.accelerator.is_main_process
        self._check_folder(resume)
        set_seed(recipe.seed)
        self.held_out = load_mixture(recipe.problems, "test", recipe.evaluation.seed).distinct(
            recipe.evaluation.num_problems
        )
        self.reward_runner = IsolatedRunner(recipe.reward_workers)
        self.verifiers = Verifiers(
            recipe.rewards, template=self.template, runner=self.reward_runner,
            max_steps=recipe.steps,
        )  # fmt: skip
        model, self.tokenizer, self.base_folder = load_base(recipe.model)
        if recipe.model.lora is not None:
            model = add_lora(model, recipe.model.lora, seed=recipe.seed)
        self.policy = Policy(
            model.to(self.accelerator.device),
            optimizer=recipe.optimizer,
            total_updates=recipe.steps * recipe.algorithm.num_minibatches,
            temperature=recipe.sampling.temperature,
            accelerator=self.accelerator,
            pad_token_id=self.tokenizer.pad_token_id or 0,
        )
        self.source = self._build_source()
        self.step, self.seconds_training = 0, 0.0
        if resume:
            self._restore()
        self.source.check_fit(self.held_out)
        self.source.start(self.policy)
        self._open_folder()
        self.lookout = Lookout(
            recipe, self.folder, self.verifiers, template=self.template,
            runner=self.reward_runner, say=lambda line: tqdm.write(f"{recipe.name}: {line}"),
        )  # fmt: skip

    def _check_folder(self, resume: bool) -> None:
        folder = RunFolder(self.recipe.run_folder)
        if not resume and folder.metrics():
            raise R1labError(
                f"output: {folder.path} holds a run already; go on with --resume, or name another "
                "folder with --output"
            )

    def _open_folder(self) -> None:
        self.folder = RunFolder(self.recipe.run_folder)
        if self.is_main:
            self.folder = RunFolder.create(self.recipe.run_folder)
            self.folder.truncate(self.step)
            self.folder.recipe_path.write_text(dump_resolved(self.recipe))
        self.accelerator.wait_for_everyone()
        self.accelerator.init_trackers("tracking")

    def _build_source(self) -> RolloutSource:
        recipe = self.recipe
        sampler = build_sampler(
            recipe.sampling.engine,
            self.base_folder,
            self.tokenizer,
            dtype=recipe.model.dtype,
            max_model_len=recipe.sampling.max_model_len,
            kv_cache_gib=recipe.sampling.kv_cache_gib,
            gpu_memory_utilization=recipe.sampling.gpu_memory_utilization,
        )
        return RolloutSource(
            load_mixture(recipe.problems, "train"),
            sampler,
            self.tokenizer,
            self.template,
            recipe.sampling,
            rank=self.rank,
            world_size=self.accelerator.num_processes,
            seed=recipe.seed,
            max_sync_kl=recipe.algorithm.max_sync_kl,
        )

    def go(self) -> None:
        """Evaluate, take the steps, evaluate, sum up."""
        if self.step == 0:
            self._evaluate(greedy=self.recipe.evaluation.greedy)
        bar = tqdm(
            total=self.recipe.steps, initial=self.step, unit="step", desc=self.recipe.name,
            disable=not self.is_main,
        )  # fmt: skip
        with bar:
            while self.step < self.recipe.steps:
                began = time.monotonic()
                result = rl_step(self.policy, self.source, self.verifiers, self.recipe)
                self.seconds_training += time.monotonic() - began
                self.step += 1
                self._record(result)
                bar.update()
                bar.set_postfix_str(_said(result.metrics))
                self._stop_if_watched()
                last = self.step == self.recipe.steps
                if last or _is_due(self.step, self.recipe.evaluation.every):
                    self._evaluate(greedy=last and self.recipe.evaluation.greedy)
                if last or _is_due(self.step, self.recipe.checkpoints.every):
                    self._save()
        if self.is_main:
            self._sum_up()
        self.accelerator.wait_for_everyone()

    def close(self) -> None:
        """Give the sampler's memory back, end the rewards' processes and finish the trackers."""
        self.reward_runner.close()
        self.source.close()
        self.accelerator.end_training()

    def _record(self, result: StepResult) -> None:
        scored = self._gather(result.scored)
        if not self.is_main:
            return
        metrics = {
            **result.metrics, **self.verifiers.reported(scored), **self.lookout.grade(scored)
        }  # fmt: skip
        self.folder.log_metrics(self.step, metrics)
        self.lookout.see({"step": self.step, **metrics})
        tokens = (result.metrics["length"] or 0.0) * (result.metrics["responses"] or 0.0)
        total = sum(result.seconds.values())
        self.folder.log_timings(
            self.step, {**result.seconds, "total": total, "tokens_per_second": tokens / total}
        )
        self.folder.write_rollouts(
            self.step, scored, group_advantages(scored, self.recipe.algorithm.advantage)
        )
        self.accelerator.log(
            {name: value for name, value in metrics.items() if value is not None},
            step=self.step,
        )

    def _evaluate(self, *, greedy: bool) -> None:
        """Each process asks its share of the held-out problems; the main one judges them all."""
        share = self.held_out[self.rank :: self.accelerator.num_processes]
        settings, max_tokens = self.recipe.evaluation, self.recipe.sampling.max_tokens
        asked = ask(
            self.source.sampler, share, self.verifiers, encode=self.source.encode,
            template=self.template, settings=settings, max_tokens=max_tokens, greedy=greedy,
        )  # fmt: skip
        asked = Asked(
            tuple(self._gather(asked.sampled)),
            None if asked.greedy is None else tuple(self._gather(asked.greedy)),
        )
        if not self.is_main:
            return
        result = judge(
            asked, self.verifiers, template=self.template, settings=settings,
            max_tokens=max_tokens, step=self.step,
        )  # fmt: skip
        self.folder.write_eval(self.step, result.as_dict())
        figures = {f"eval/{n}": v for n, v in result.headline().items() if v is not None}
        self.accelerator.log(figures, step=self.step)
        tqdm.write(f"{self.recipe.name} step {self.step}, held out: {_headline(result)}")
        if self.step == 0:
            self.lookout.at_start(asked.sampled)

    def _stop_if_watched(self) -> None:
        """Save and stop where an alarm that stops the run has gone off (in the main process)."""
        if self.recipe.watch.may_stop and self.step < self.recipe.steps:
            reasons = [reason for reason in self._gather([self.lookout.stop_reason]) if reason]
            if reasons:
                self._save()
                raise RunStopped(reasons[0])

    def _gather(self, items: Any) -> list[Any]:
        """The items of all processes in one list, on every process."""
        if self.accelerator.num_processes == 1:
            return list(items)
        from accelerate.utils import gather_object

        gathered: list[Any] = gather_object(list(items))
        return gathered

    def _save(self) -> None:
        state = {
            "policy": self.policy.state_dict(),
            "source": self.source.state_dict(),
            "random": random_states(),
            "seconds_training": self.seconds_training,
        }
        target = save_checkpoint(
            self.folder.checkpoints_path, self.step, state, rank=self.rank,
            keep=self.recipe.checkpoints.keep,
        )  # fmt: skip
        if self.is_main:
            save_checkpoint_folder(self.policy.model, self.tokenizer, target / "model")
        self.accelerator.wait_for_everyone()

    def _restore(self) -> None:
        found = newest_checkpoint(
            RunFolder(self.recipe.run_folder).checkpoints_path, self.accelerator.num_processes
        )
        if found is None:
            if list_checkpoints(RunFolder(self.recipe.run_folder).checkpoints_path):
                raise R1labError(
                    f"output: the checkpoints in {self.recipe.run_folder} are of another number "
                    f"of processes than {self.accelerator.num_processes}; resume with as many as "
                    "wrote them, or name another folder with --output"
                )
            if self.is_main:
                tqdm.write(f"{self.recipe.run_folder}: no checkpoint yet, starting from step 0")
            return
        self.step, folder = found
        # Our own file, written by `save_checkpoint`: it holds random states beside tensors.
        state = torch.load(folder / f"rank-{self.rank}.pt", weights_only=False)
        self.policy.load_state_dict(state["policy"])
        self.source.load_state_dict(state["source"])
        set_random_states(state["random"])
        self.seconds_training = state["seconds_training"]

    def _sum_up(self) -> None:
        self.folder.write_summary(summary_of(self.folder, self.seconds_training, self.began))


def summary_of(folder: RunFolder, seconds_training: float, began: float) -> dict[str, Any]:
    """The run in a few figures: held-out scores before and after, agreement, seconds."""
    evals = folder.evals()
    before, after = evals[0], evals[-1]
    names = {
        "pass_at_1": "pass_at_1", f"cons_at_{before['k']}": "cons_at_k", "length": "length",
        "format": "format",
    }  # fmt: skip
    summary: dict[str, Any] = {"steps": after["step"], "num_problems": None}
    summary["num_problems"] = before["overall"]["num_problems"]
    for name, field in names.items():
        for when, result in (("before", before), ("after", after)):
            estimate = result["overall"][field]
            summary[f"{name}_{when}"] = estimate["value"]
            summary[f"{name}_{when}_interval"] = [estimate["low"], estimate["high"]]
    for when, result in (("before", before), ("after", after)):
        if result["greedy"]:
            summary[f"greedy_{when}"] = result["greedy"]["pass_at_1"]["value"]
    for name in ("sync_kl", "sync_kl_uncapped"):
        gaps = [line[name] for line in folder.metrics() if line[name] is not None]
        summary[f"max_{name}"] = max(gaps, default=None)
    summary["seconds_training"] = round(seconds_training, 1)
    summary["seconds_total"] = round(time.monotonic() - began, 1)
    return summary


def _is_due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def _said(metrics: dict[str, float | None]) -> str:
    shown = {"reward": ".3f", "accuracy": ".3f", "length": ".1f", "sync_kl": ".1e"}
    return " ".join(
        f"{name} {metrics[name]:{form}}"
        for name, form in shown.items()
        if metrics.get(name) is not None
    )


def _headline(result: EvalResult) -> str:
    figures = result.headline().items()
    return ", ".join(f"{name} {value:.3f}" for name, value in figures if value is not None)
