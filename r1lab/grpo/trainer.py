"""A training run: set up, evaluate, step, checkpoint, evaluate, summarise.

`r1lab.grpo.checkpoint_manager` defines what is saved when, and how a run resumes.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from r1lab.config.reading import dump_resolved
from r1lab.config.recipe import TrainRecipe
from r1lab.evaluate import Asked, EvalResult, ask, judge
from r1lab.grpo.advantage import find_advantage
from r1lab.grpo.checkpoint_manager import CheckpointManager
from r1lab.grpo.faults import explained
from r1lab.grpo.loss import find_loss
from r1lab.grpo.mismatch_baseline import measure_mismatch_baseline
from r1lab.grpo.setup import build_rollout_source, kept_problems, load_policy
from r1lab.grpo.signals import StopSignals
from r1lab.grpo.step import StepResult, rl_step
from r1lab.grpo.summary import summary_of
from r1lab.hashing import Inputs, input_digests
from r1lab.monitor.run_monitor import RunMonitor
from r1lab.problems.registry import load_mixture, load_problems
from r1lab.problems.tables import TABLES
from r1lab.prompts import TEMPLATES
from r1lab.report.progress import Progress
from r1lab.rollout.build import build_recipe_sampler
from r1lab.rollout.restart import RestartingSampler
from r1lab.rollout.sampler import Sampler
from r1lab.rollout.server.weights_folder import new_run
from r1lab.rollout.source import RolloutSource
from r1lab.run_folder import RunFolder
from r1lab.types import Interrupted, R1labError, RecipeError, RunStopped, ScoredGroup
from r1lab.verify import IsolatedRunner, Verifiers

if TYPE_CHECKING:
    from accelerate import Accelerator


_SECONDS_TO_APPEAR = 10
_PROBLEMS_LOOKED_AT = 64  # first problems of a stream, to find the verifiers they name


@dataclass(frozen=True, slots=True)
class RunEnd:
    """How a run ended: its folder, its last step, and the signal that stopped it, if any."""

    folder: Path
    step: int
    signal: str | None


def train(recipe: TrainRecipe, *, resume: bool = False, force: bool = False) -> RunEnd:
    """Run a recipe to its end, or until a signal stops it.

    `resume` (or `resume: auto` in the recipe) continues from the newest intact checkpoint in the
    run folder, or from the start if there is none; `force` does so even if the recipe has changed.
    Without `resume`, a folder that already contains a run is rejected. Raises R1labError, after
    saving as much of the run as possible.
    """
    from accelerate import Accelerator

    accelerator = Accelerator(
        cpu=not torch.cuda.is_available(),
        log_with=list(recipe.tracking.trackers) or None,
        project_dir=recipe.run_folder,
    )
    signals = StopSignals(at_once=accelerator.num_processes == 1)
    with ExitStack() as stack:
        stack.enter_context(signals)
        stack.callback(accelerator.end_training)  # last: the sampler needs the process groups
        if accelerator.is_main_process:
            stack.enter_context(RunFolder(recipe.run_folder).locked())
        run = Run(recipe, accelerator, stack, signals)
        try:
            run.prepare(resume=resume or recipe.resume == "auto", force=force)
            run.go()
        except Interrupted as signal:
            signals.hold()
            run.keeper.stop(f"stopped by {signal}")
            return RunEnd(run.folder.path, run.keeper.step, str(signal))
        except Exception as error:
            explanation = explained(error, recipe, in_update=signals.is_held)
            signals.hold()
            run.keeper.rescue(error, run.scored)
            if explanation is None or explanation is error:
                raise
            raise explanation from error
        return RunEnd(run.folder.path, run.keeper.step, None)


class Run:
    """One process's part of a run: its components, built in the order of their dependencies.

    Whatever must be closed at the end is pushed onto `stack` when it is opened.
    """

    def __init__(
        self,
        recipe: TrainRecipe,
        accelerator: Accelerator,
        stack: ExitStack,
        signals: StopSignals,
    ) -> None:
        self.recipe, self.accelerator = recipe, accelerator
        self.stack, self.signals = stack, signals
        self.rank, self.is_main = accelerator.process_index, accelerator.is_main_process
        self.folder = RunFolder(recipe.run_folder)
        self.template = TEMPLATES[recipe.template]
        self.progress = Progress(recipe.steps, recipe.name, disable=not self.is_main)
        stack.callback(self.progress.close)
        self.keeper = CheckpointManager(recipe, self.folder, accelerator, signals, self.progress)
        self.scored: list[ScoredGroup] = []  # of the current step

    # --- setup ---------------------------------------------------------------------------------

    def prepare(self, *, resume: bool, force: bool) -> None:
        """Load and build everything, then restore the state to resume from."""
        from accelerate.utils import set_seed

        recipe = self.recipe
        self._check_folder(resume)
        # Imports a custom loss or advantage, to reject a faulty one before the model loads.
        find_loss(recipe.algorithm.loss)
        find_advantage(recipe.algorithm.advantage)
        set_seed(recipe.seed)
        runner = self.stack.enter_context(IsolatedRunner(recipe.reward_workers))
        self.verifiers = Verifiers(
            recipe.rewards, template=self.template, runner=runner, max_steps=recipe.steps
        )
        self.policy, self.tokenizer, base_folder = load_policy(recipe, self.accelerator)
        self.source = self._build_source(base_folder)
        self.stack.callback(self.source.close)
        keep = kept_problems(recipe, self.source.sampler, self.tokenizer)
        self.held_out = load_mixture(
            recipe.problems, "test", recipe.evaluation.seed, keep=keep
        ).distinct(recipe.evaluation.num_problems)
        self.keeper.take(self.policy, self.source, self.tokenizer, self._inputs())
        messages = self._gather([self.is_main and self.keeper.rehearse()])
        if refusals := [message for message in messages if message]:
            raise RecipeError(refusals[0])
        if resume:
            self.keeper.restore(force=force)
        self.source.check_fit(self.held_out)
        self.source.start(self.policy)
        if recipe.model.lora is not None:
            measure_mismatch_baseline(self.policy, self.source, recipe.seed)
        self._open_folder()
        self.keeper.mark(self.keeper.step)
        self.lookout = RunMonitor(
            recipe, self.folder, self.verifiers, template=self.template,
            runner=runner, say=self.keeper.say,
        )  # fmt: skip

    def _check_folder(self, resume: bool) -> None:
        if not resume:
            self.folder.check_unused()

    def _open_folder(self) -> None:
        if self.is_main:
            self.folder.create(self.folder.path)
            self.folder.truncate(self.step)
            self.folder.recipe_path.write_text(dump_resolved(self.recipe), encoding="utf-8")
            self.folder.log_event(
                "resumed" if self.step else "started",
                step=self.step, folder=os.path.realpath(self.folder.path),
            )  # fmt: skip
        self.accelerator.wait_for_everyone()
        self._check_shared()
        self.accelerator.init_trackers("tracking")

    def _inputs(self) -> Inputs:
        """Return digests of the recipe's inputs, computed once in the main process for all."""
        if not self.is_main:
            from_main: Inputs = self._gather([None])[0]
            return from_main
        first = (self.source.problems[index] for index in range(_PROBLEMS_LOOKED_AT))
        verifiers = {problem.verifier for problem in (*self.held_out, *first)}
        for settings in self.recipe.problems.sources:
            if settings.source.endswith(TABLES):
                rows = load_problems(settings, "train")
                verifiers |= {problem.verifier for problem in getattr(rows, "problems", ())}
        inputs: Inputs = self._gather([input_digests(self.recipe, verifiers)])[0]
        return inputs

    def _build_source(self, base_folder: Path) -> RolloutSource:
        def say_restart(cause: str) -> None:
            self.keeper.say(f"the sampler's engine died ({cause}); restarting it once")
            self.folder.log_event("sampler restarted", step=self.step, cause=cause)

        def say_server(text: str) -> None:
            self.keeper.say(text)
            self.folder.log_event("sampler server", step=self.step, text=text)

        run = self._gather([new_run()])[0]

        def build() -> Sampler:
            return build_recipe_sampler(
                self.recipe, base_folder, self.tokenizer,
                rank=self.rank, run=run, on_event=say_server,
            )  # fmt: skip

        sampler: Sampler
        if self.recipe.sampling.engine == "server":
            sampler = build()  # handles lost servers itself
        else:
            sampler = RestartingSampler(
                build,
                self.policy,
                can_restart=self.accelerator.num_processes == 1,
                on_restart=say_restart,
            )
        return build_rollout_source(self.recipe, sampler, self.tokenizer, self.policy)

    # --- the loop ------------------------------------------------------------------------------

    def go(self) -> None:
        """Evaluate, train step by step, evaluate, summarise."""
        figure = self.verifiers.figures[self.verifiers.names.index(self.verifiers.accuracy)]
        self.progress.start(self.step, accuracy=figure)
        while True:
            self._evaluate_if_due()
            self._save_if_due()
            self._stop_if_watched()
            self._stop_together()
            if self.step == self.recipe.steps:
                break
            self._take_step()
        if self.is_main:
            self.folder.write_summary(summary_of(self.folder, self.keeper.seconds_now()))
        self.accelerator.wait_for_everyone()

    def _take_step(self) -> None:
        """Take one step from boundary to boundary. Signals are deferred from the update on."""

        def before_update(scored: list[ScoredGroup]) -> None:
            self.scored = scored
            self.signals.hold()

        began = time.monotonic()
        result = rl_step(
            self.policy, self.source, self.verifiers, self.recipe, before_update=before_update
        )
        self.keeper.seconds["training"] += time.monotonic() - began
        self._record(self.step + 1, result)
        self.keeper.mark(self.step + 1)
        self.signals.release()

    def _record(self, step: int, result: StepResult) -> None:
        scored = self._gather(result.scored)
        carried_over = self._gather(result.carried_over)
        advantages = self._gather(result.advantages[: len(result.scored)])
        advantages += self._gather(result.advantages[len(result.scored) :])
        if not self.is_main:
            return
        metrics = {
            **result.metrics, **self.verifiers.reported(scored), **self.lookout.grade(scored)
        }  # fmt: skip
        tokens = (result.metrics["length"] or 0.0) * (result.metrics["responses"] or 0.0)
        total = sum(result.seconds.values())
        self.folder.write_rollouts(step, scored, advantages, carried_over=carried_over)
        timings = {**result.seconds, "total": total, "tokens_per_second": tokens / total}
        self.folder.log_timings(step, timings)
        self.folder.log_metrics(step, metrics)
        self.progress.step(metrics, timings)
        self.lookout.see({"step": step, **metrics})
        if result.metrics["skipped"]:
            self.keeper.say(f"step {step}: non-finite loss or gradient, update skipped")
            self.folder.log_event("update skipped", step=step)
        self.accelerator.log(
            {name: value for name, value in metrics.items() if value is not None}, step=step
        )

    def _evaluate_if_due(self) -> None:
        first, last = self.step == 0, self.step == self.recipe.steps
        due = first or last or _is_due(self.step, self.recipe.evaluation.every)
        # The evaluation may predate a stop. The main process decides, so that all agree.
        if due and self._main_says(lambda: not self.folder.has_eval(self.step)):
            self._evaluate(greedy=(first or last) and self.recipe.evaluation.greedy)

    def _evaluate(self, *, greedy: bool) -> None:
        """Sample this process's share of the held-out problems; the main process scores all."""
        share = self.held_out[self.rank :: self.accelerator.num_processes]
        settings = self.recipe.evaluation
        max_tokens = self.recipe.sampling.max_tokens_after(self.step)
        self.source.settle()
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
        metrics = {f"eval/{n}": v for n, v in result.headline().items() if v is not None}
        self.accelerator.log(metrics, step=self.step)
        self.keeper.say(f"step {self.step}, held out: {_headline(result)}")
        if self.step == 0:
            self.lookout.at_start(asked.sampled)

    def _save_if_due(self) -> None:
        last = self.step == self.recipe.steps
        if last or _is_due(self.step, self.recipe.checkpoints.every):
            self.keeper.save()

    def _stop_if_watched(self) -> None:
        """Stop if an alarm that stops the run has fired (in the main process)."""
        if self.recipe.watch.may_stop and self.step < self.recipe.steps:
            reasons = [reason for reason in self._gather([self.lookout.stop_reason]) if reason]
            if reasons:
                self.keeper.save()  # here, with all processes in step: rescue runs in one only
                raise RunStopped(reasons[0])

    @property
    def step(self) -> int:
        """Number of steps taken."""
        return self.keeper.step

    # --- several processes ---------------------------------------------------------------------

    def _gather(self, items: Any) -> list[Any]:
        """Return the items of all processes in one list, on every process."""
        if self.accelerator.num_processes == 1:
            return list(items)
        from accelerate.utils import gather_object

        gathered: list[Any] = gather_object(list(items))
        return gathered

    def _main_says(self, question: Callable[[], bool]) -> bool:
        """Return the main process's answer, on every process."""
        return any(self._gather([self.is_main and question()]))

    def _check_shared(self) -> None:
        """Check that every process sees the main folder: each writes part of a checkpoint."""
        for _ in range(_SECONDS_TO_APPEAR):  # a network folder can appear late
            if self.folder.recipe_path.exists():
                break
            time.sleep(1)
        seen = self._gather([(self.folder.recipe_path.exists(), self.rank, platform.node())])
        for exists, rank, host in seen:
            if not exists:
                raise R1labError(
                    f"output: process {rank} (on {host}) does not see the main process's "
                    f"{self.folder.path}; set --output to a folder that all machines share"
                )

    def _stop_together(self) -> None:
        """With several processes: stop here, at the same step, if any of them received a signal."""
        if self.accelerator.num_processes > 1:
            heard = [name for name in self._gather([self.signals.requested]) if name]
            if heard:
                raise Interrupted(heard[0])


def _is_due(step: int, every: int) -> bool:
    return step > 0 and every > 0 and step % every == 0


def _headline(result: EvalResult) -> str:
    """Format the metrics; failed samples are in none of them, so their number is appended."""
    words = [f"{n} {value:.3f}" for n, value in result.headline().items() if value is not None]
    faults = result.overall.num_faults
    return ", ".join([*words, f"{faults} samples failed"] if faults else words)
