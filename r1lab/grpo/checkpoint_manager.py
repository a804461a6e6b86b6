"""Checkpointing policy: what a run saves when, and how it resumes.

A run can be resumed from its *boundaries*: after a step is recorded and before the next one changes
anything. If a signal or an error stops it in between, the last boundary is saved as a checkpoint,
provided that the weights have not changed since.
"""

from __future__ import annotations

import shlex
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from r1lab.config.diff import check_changes
from r1lab.config.recipe import TrainRecipe
from r1lab.grpo.checkpoint import (
    Found,
    list_checkpoints,
    load_states,
    newest_checkpoint,
    random_states,
    save_checkpoint,
    set_aside,
    set_random_states,
)
from r1lab.grpo.policy import NonFiniteError, Policy
from r1lab.grpo.signals import StopSignals
from r1lab.hashing import Inputs
from r1lab.model.shard import joined, parts_of
from r1lab.model.weights import base_model, save_checkpoint_folder, save_settings
from r1lab.report.progress import Progress
from r1lab.rollout.source import RolloutSource, redistribute_state
from r1lab.run_folder import RunFolder
from r1lab.shortages import is_disk_full
from r1lab.types import RecipeError, ScoredGroup

if TYPE_CHECKING:
    from accelerate import Accelerator
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class Boundary:
    """Checkpoint state besides the weights, captured when the last step was recorded."""

    num_updates: int
    source: dict[str, Any]
    random: dict[str, Any]
    seconds: dict[str, float]


class CheckpointManager:
    """One process's part in saving a run: its step, its boundary, its checkpoints."""

    def __init__(
        self,
        recipe: TrainRecipe,
        folder: RunFolder,
        accelerator: Accelerator,
        signals: StopSignals,
        progress: Progress,
    ) -> None:
        self.step = 0
        self.seconds = {"training": 0.0, "total": 0.0}
        self._recipe, self._folder, self._signals = recipe, folder, signals
        self.say = progress.say
        self._accelerator, self._is_main = accelerator, accelerator.is_main_process
        self._began, self._saved_step = time.monotonic(), -1
        self._boundary: Boundary | None = None

    def take(
        self,
        policy: Policy,
        source: RolloutSource,
        tokenizer: PreTrainedTokenizerBase,
        inputs: Inputs,
    ) -> None:
        """Set the objects to save; until they are loaded there is nothing to save.

        `inputs` are digests of the recipe's inputs, as computed at the start of this process.
        """
        self._policy, self._source, self._tokenizer = policy, source, tokenizer
        self._inputs = inputs

    def rehearse(self) -> str | None:
        """Write everything in a checkpoint except the weights once, then delete it.

        This reports what cannot be saved before the first step, instead of at the first checkpoint.
        Returns an error message, or None if everything can be saved.
        """
        place = self._folder.checkpoints_path / "rehearsal.tmp"
        had_folder = place.parent.exists()
        state = {"source": self._source.state_dict(), "random": random_states()}
        base = base_model(self._policy.model)
        try:
            place.mkdir(parents=True, exist_ok=True)
            torch.save(state, place / "state.pt")
            torch.load(place / "state.pt", weights_only=True)
            save_settings(base, self._tokenizer, place)
            free = shutil.disk_usage(place).free
        except Exception as error:  # libraries raise errors of any class here
            in_folder = str(getattr(error, "filename", "")).startswith(str(self._folder.path))
            if in_folder or is_disk_full(error):
                raise  # the folder is at fault, not the base
            reason = " ".join(str(error).split())[:300]
            return (
                f"model.path: {self._recipe.model.path!r} cannot be saved as a checkpoint "
                f"({type(error).__name__}: {reason}); correct its files, or use another base"
            )
        finally:
            shutil.rmtree(place if had_folder else place.parent, ignore_errors=True)
        if self._policy.is_sharded:
            return None  # each process writes its own part, and the sizes differ
        # The model's folder, and the optimizer's float32 copies with both moments.
        masters = sum(master.nbytes for master in self._policy.optimizer.masters)
        needed = sum(weight.nbytes for weight in base.parameters()) + 3 * masters
        if needed <= free:
            return None
        return (
            f"output: a checkpoint needs {needed / 2**30:.2f} GiB, but the disk of "
            f"{self._folder.path} has {free / 2**30:.2f} GiB free; free some space, or choose "
            "another folder with --output"
        )

    def mark(self, step: int) -> None:
        """Record `step` as a boundary: the run can be resumed from here."""
        self.step = step
        self._boundary = Boundary(
            self._policy.num_updates, self._source.state_dict(), random_states(), self.seconds_now()
        )

    def seconds_now(self) -> dict[str, float]:
        """Return seconds of training steps, and of the whole run, over all resumptions."""
        total = self.seconds["total"] + time.monotonic() - self._began
        return {"training": self.seconds["training"], "total": total}

    def save(self) -> None:
        """Write the checkpoint of the last boundary, unless it already exists."""
        assert self._boundary is not None, "there is no boundary before mark()"
        if self._saved_step == self.step:
            return
        policy = self._policy
        owns_policy = policy.is_sharded or self._is_main
        state = {
            # An unsharded policy is the same in every process, so the main one saves it.
            "policy": parts_of(policy.state_dict()) if owns_policy else None,
            "source": self._boundary.source,
            "random": self._boundary.random,
            "seconds": self._boundary.seconds,
            "recipe": self._recipe.model_dump(mode="json"),
            "inputs": self._inputs,
        }
        with self._signals.held():
            if self._is_main:
                self._folder.sync()
            save_checkpoint(
                self._folder.checkpoints_path,
                self.step,
                state,
                keep=self._recipe.checkpoints.keep,
                write_model=lambda to: save_checkpoint_folder(
                    policy.model, self._tokenizer, to, is_main=self._is_main
                ),
                rank=self._accelerator.process_index,
                num_processes=self._accelerator.num_processes,
                wait=self._accelerator.wait_for_everyone,
            )
            self._saved_step = self.step

    def restore(self, *, force: bool) -> None:
        """Restore the newest intact checkpoint; without one the run starts at step 0.

        Raises R1labError if the recipe has changed (unless `force`) or no checkpoint is intact; see
        `newest_checkpoint` and `check_changes`.
        """
        newest = newest_checkpoint(self._folder.checkpoints_path)
        if newest is None:
            self.say(f"no checkpoint in {self._folder.path} yet; starting from step 0")
            return
        states = load_states(newest.folder, newest.num_processes)
        rank, world = self._accelerator.process_index, self._accelerator.num_processes
        state = states[rank % newest.num_processes]
        inputs = (state.get("inputs", {}), self._inputs)
        changes = check_changes(state["recipe"], self._recipe, force=force, inputs=inputs)
        if newest.step > self._recipe.steps:
            raise RecipeError(
                f"steps: {self._recipe.steps} is below the {newest.step} steps already taken; "
                "raise it, or choose another folder with --output"
            )
        policies = [saved["policy"] for saved in states if saved["policy"] is not None]
        self._policy.load_state_dict(joined(policies))
        self._source.load_state_dict(
            redistribute_state([saved["source"] for saved in states], rank, world)
        )
        set_random_states(state["random"])
        self.seconds = state["seconds"]
        self.step = self._saved_step = newest.step
        if self._is_main:
            self._tell(newest, changes)

    def _tell(self, newest: Found, changes: Sequence[str]) -> None:
        for torn in newest.passed_over:
            set_aside(self._folder.checkpoints_path / torn.name)
            self.say(
                f"warning: {torn.name} is incomplete or corrupted ({torn.fault}); renamed to "
                f"{torn.name}.torn"
            )
            self._folder.log_event("checkpoint torn", checkpoint=torn.name, fault=torn.fault)
        if newest.num_processes != self._accelerator.num_processes:
            self.say(
                f"{newest.folder.name} was saved by {newest.num_processes} processes, this launch "
                f"has {self._accelerator.num_processes}: it resumes from the same weights, with "
                "different samples"
            )
        for change in changes:
            self.say(f"recipe changed: {change}")
        if changes:
            self._folder.log_event("recipe changed", changes=list(changes))
        self.say(f"resuming from step {self.step}")

    def stop(self, why: str) -> None:
        """Save the last boundary after a signal, and print how to resume."""
        if self._boundary is None:
            self.say(f"{why} before the first step; start the run again with the same command")
            return
        self.save()
        if self._is_main:
            self._folder.log_event("stopped", step=self.step, why=why)
        self.say(f"{why}; step {self.step} is saved; resume with: {self._way_on()}")

    def rescue(self, error: Exception, scored: Sequence[ScoredGroup]) -> None:
        """After an error, save what can be saved, keep the batch, and print how to resume.

        `scored`: the groups of the current step.
        """
        if self._boundary is None:
            return
        if self._is_main:
            self._note(error, scored)
        try:
            # A checkpoint needs all processes, and several fail one by one. Weights that an update
            # has changed no longer match the boundary.
            if (
                self._accelerator.num_processes == 1
                and not is_disk_full(error)
                and self._policy.num_updates == self._boundary.num_updates
            ):
                self.save()
        except Exception as fault:
            # The run must end with the first error, so only report this one.
            self.say(f"no checkpoint of step {self.step}: {type(fault).__name__}: {fault}")
        if self._is_main and (kept := list_checkpoints(self._folder.checkpoints_path)):
            self.say(f"{kept[-1].name} is intact; resume with: {self._way_on()}")

    def _note(self, error: Exception, scored: Sequence[ScoredGroup]) -> None:
        """Record the error in the run folder, if it is still writable."""
        try:
            text = " ".join(str(error).split())[:500]
            self._folder.log_event("fault", step=self.step, error=type(error).__name__, text=text)
            if isinstance(error, NonFiniteError):
                kept = self._folder.write_faulty(self.step + 1, scored)
                self.say(f"the batch is saved for inspection: {kept}")
        except OSError as fault:
            self.say(f"could not record the error in {self._folder.path}: {fault}")

    def _way_on(self) -> str:
        launch = "" if self._accelerator.num_processes == 1 else "accelerate launch ... -m "
        return f"{launch}r1lab train {shlex.quote(str(self._folder.path))} --resume"
