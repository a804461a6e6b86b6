"""Nothing lost: what a run saves when, and how it goes on.

A run can be gone on from at its *boundaries*: after a step is recorded and before the next one
changes anything. What stops it in between (a signal, a fault) is answered by a checkpoint of the
last boundary, as long as the weights are still those of it.
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
    """What a checkpoint needs beside the weights, as it was when the last step was recorded."""

    num_updates: int
    source: dict[str, Any]
    random: dict[str, Any]
    seconds: dict[str, float]


class CheckpointManager:
    """One process's part in keeping a run: its step, its boundary, its checkpoints."""

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
        """What is to be kept; before it is loaded there is nothing to save.

        `inputs`: digests of what the recipe names, as this process found it.
        """
        self._policy, self._source, self._tokenizer = policy, source, tokenizer
        self._inputs = inputs

    def rehearse(self) -> str | None:
        """Write once, on the run's own disk, what a checkpoint holds beside the weights.

        What cannot be written is told here, before the first step, and not at the first checkpoint:
        None where all of it can. What was written is taken away again.
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
        except Exception as error:  # of whatever class, from inside the libraries
            in_folder = str(getattr(error, "filename", "")).startswith(str(self._folder.path))
            if in_folder or is_disk_full(error):
                raise  # the folder's fault, whatever the base
            said = " ".join(str(error).split())[:300]
            return (
                f"model.path: {self._recipe.model.path!r} cannot be saved as a checkpoint "
                f"({type(error).__name__}: {said}); correct its files, or take another base"
            )
        finally:
            shutil.rmtree(place if had_folder else place.parent, ignore_errors=True)
        if self._policy.is_sharded:
            return None  # each process writes its part, of unequal size
        # The model's folder, and the optimiser's float32 copies with both moments.
        masters = sum(master.nbytes for master in self._policy.optimizer.masters)
        needed = sum(weight.nbytes for weight in base.parameters()) + 3 * masters
        if needed <= free:
            return None
        return (
            f"output: a checkpoint takes {needed / 2**30:.2f} GiB and the disk of "
            f"{self._folder.path} has {free / 2**30:.2f} GiB free; make room, or name another "
            "folder with --output"
        )

    def mark(self, step: int) -> None:
        """`step` is recorded: the run can be gone on from here."""
        self.step = step
        self._boundary = Boundary(
            self._policy.num_updates, self._source.state_dict(), random_states(), self.seconds_now()
        )

    def seconds_now(self) -> dict[str, float]:
        """Seconds of training steps, and of all work on the run, over all its resumptions."""
        total = self.seconds["total"] + time.monotonic() - self._began
        return {"training": self.seconds["training"], "total": total}

    def save(self) -> None:
        """Write the checkpoint of the last boundary, unless it stands already."""
        assert self._boundary is not None, "there is no boundary before mark()"
        if self._saved_step == self.step:
            return
        policy = self._policy
        owns_policy = policy.is_sharded or self._is_main
        state = {
            # Where each process has all of it, they have the same.
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
        """Take up the newest whole checkpoint; none leaves the run at its beginning.

        Raises R1labError where the recipe has become another one (unless `force`) or the
        checkpoints are no use; see `newest_checkpoint` and `check_changes`.
        """
        found = newest_checkpoint(self._folder.checkpoints_path)
        if found is None:
            self.say(f"no checkpoint in {self._folder.path} yet, starting from step 0")
            return
        states = load_states(found.folder, found.num_processes)
        rank, world = self._accelerator.process_index, self._accelerator.num_processes
        state = states[rank % found.num_processes]
        inputs = (state.get("inputs", {}), self._inputs)
        changes = check_changes(state["recipe"], self._recipe, force=force, inputs=inputs)
        if found.step > self._recipe.steps:
            raise RecipeError(
                f"steps: {self._recipe.steps} is less than the run has done ({found.step}); take "
                "more, or another folder with --output"
            )
        policies = [saved["policy"] for saved in states if saved["policy"] is not None]
        self._policy.load_state_dict(joined(policies))
        self._source.load_state_dict(
            redistribute_state([saved["source"] for saved in states], rank, world)
        )
        set_random_states(state["random"])
        self.seconds = state["seconds"]
        self.step = self._saved_step = found.step
        if self._is_main:
            self._tell(found, changes)

    def _tell(self, found: Found, changes: Sequence[str]) -> None:
        for torn in found.passed_over:
            set_aside(self._folder.checkpoints_path / torn.name)
            self.say(f"warning: {torn.name} is torn or altered ({torn.fault}), and set aside")
            self._folder.log_event("checkpoint torn", checkpoint=torn.name, fault=torn.fault)
        if found.num_processes != self._accelerator.num_processes:
            self.say(
                f"{found.folder.name} is of another number of processes ({found.num_processes}) "
                f"than this launch ({self._accelerator.num_processes}): it goes on from the same "
                "weights, with other samples"
            )
        for change in changes:
            self.say(f"recipe changed: {change}")
        if changes:
            self._folder.log_event("recipe changed", changes=list(changes))
        self.say(f"going on from step {self.step}")

    def stop(self, why: str) -> None:
        """A signal came: checkpoint where the run stands, and say how to go on."""
        if self._boundary is None:
            self.say(f"{why} before its first step; start it again with the same command")
            return
        self.save()
        if self._is_main:
            self._folder.log_event("stopped", step=self.step, why=why)
        self.say(f"{why}; step {self.step} is saved; go on with: {self._way_on()}")

    def rescue(self, error: Exception, scored: Sequence[ScoredGroup]) -> None:
        """A fault came: save what can be, keep the batch that did it, and say how to go on.

        `scored`: the groups of the step under way.
        """
        if self._boundary is None:
            return
        if self._is_main:
            self._note(error, scored)
        try:
            # Several processes fail one by one, and a checkpoint needs them all; weights that an
            # update has moved are those of no boundary.
            if (
                self._accelerator.num_processes == 1
                and not is_disk_full(error)
                and self._policy.num_updates == self._boundary.num_updates
            ):
                self.save()
        except Exception as fault:
            # The first fault is the one that the run ends with.
            self.say(f"no checkpoint of step {self.step}: {type(fault).__name__}: {fault}")
        if self._is_main and (kept := list_checkpoints(self._folder.checkpoints_path)):
            self.say(f"{kept[-1].name} is whole; go on with: {self._way_on()}")

    def _note(self, error: Exception, scored: Sequence[ScoredGroup]) -> None:
        """Leave what happened in the run folder, as far as it still takes anything."""
        try:
            text = " ".join(str(error).split())[:500]
            self._folder.log_event("fault", step=self.step, error=type(error).__name__, text=text)
            if isinstance(error, NonFiniteError):
                kept = self._folder.write_faulty(self.step + 1, scored)
                self.say(f"the batch is kept for study: {kept}")
        except OSError as fault:
            self.say(f"{self._folder.path} takes no note of it: {fault}")

    def _way_on(self) -> str:
        launch = "" if self._accelerator.num_processes == 1 else "accelerate launch ... -m "
        return f"{launch}r1lab train {shlex.quote(str(self._folder.path))} --resume"
