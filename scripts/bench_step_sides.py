"""The two sides of scripts/bench_step.py: r1lab's step, and TRL's GRPOTrainer on the same work."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import PrinterCallback, TrainerCallback

from r1lab.config.recipe import TrainRecipe
from r1lab.grpo.advantage import group_advantages
from r1lab.grpo.batch import pack
from r1lab.grpo.policy import Policy
from r1lab.grpo.step import StepResult, rl_step
from r1lab.model.load import end_tokens, load_config, load_model
from r1lab.prompts import TEMPLATES
from r1lab.rollout.build import build_sampler
from r1lab.rollout.sampler import as_completion
from r1lab.rollout.source import RolloutSource
from r1lab.types import Batch, Completion, Problem, Rollout, ScoredGroup
from r1lab.verify import Verifiers

RATE, BETAS = 1e-6, (0.9, 0.99)  # so small that lengths stay what they are


@dataclass(frozen=True)
class Work:
    """What both sides are asked to do in a step."""

    folder: str
    recipe: TrainRecipe
    problems: tuple[Problem, ...]
    pad_token_id: int = 0

    @property
    def num_sequences(self) -> int:
        return len(self.problems) * self.recipe.sampling.group_size

    def model(self) -> Any:
        dtype = getattr(torch, self.recipe.model.dtype)
        return load_model(Path(self.folder), load_config(Path(self.folder), self.folder), dtype)

    def tokenizer(self) -> Any:
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(self.folder)


class Endless:
    """The same questions at every step."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self._problems = problems

    def __getitem__(self, index: int) -> Problem:
        return self._problems[index % len(self._problems)]


class Ours:
    """r1lab: `rl_step` as a run takes it, or its update alone on given groups."""

    def __init__(self, work: Work, verifiers: Verifiers | None = None) -> None:
        from accelerate import Accelerator

        self.work, self.recipe, self.verifiers = work, work.recipe, verifiers
        self.policy = Policy(
            work.model(), optimizer=work.recipe.optimizer, total_updates=10_000, temperature=1.0,
            accelerator=Accelerator(cpu=not torch.cuda.is_available()),
            pad_token_id=work.pad_token_id,
        )  # fmt: skip
        self.source: RolloutSource | None = None

    def open_sampler(self) -> None:
        work, sampling = self.work, self.recipe.sampling
        tokenizer = work.tokenizer()
        sampler = build_sampler(
            sampling.engine, work.folder, tokenizer, dtype=self.recipe.model.dtype,
            max_model_len=sampling.max_model_len, kv_cache_gib=sampling.kv_cache_gib,
        )  # fmt: skip
        self.source = RolloutSource(
            Endless(work.problems), sampler, tokenizer, TEMPLATES[self.recipe.template], sampling
        )
        self.source.start(self.policy)

    def step(self) -> StepResult:
        assert self.source is not None and self.verifiers is not None
        return rl_step(self.policy, self.source, self.verifiers, self.recipe)

    def batch(self, scored: Sequence[ScoredGroup], *, drop: bool = True) -> Batch:
        algorithm = self.recipe.algorithm
        return pack(
            scored, group_advantages(scored, algorithm.advantage), loss=algorithm.loss,
            max_tokens=self.recipe.sampling.max_tokens, drop_zero_advantage=drop,
        )  # fmt: skip

    def update(self, scored: Sequence[ScoredGroup], *, drop: bool = True) -> float:
        """Seconds of one update on these groups, from advantages to rounded weights."""
        began = time.perf_counter()
        stats = self.policy.forward_backward(self.batch(scored, drop=drop), self.recipe.algorithm)
        self.policy.optimizer_step(loss=stats.means["loss"])
        return time.perf_counter() - began

    def padding(self, scored: Sequence[ScoredGroup]) -> float:
        """Share of the tokens of a forward that are padding."""
        budget = self.recipe.algorithm.tokens_per_microbatch
        masks = [m.attention_mask for m in self.policy.microbatches(self.batch(scored), budget)]
        return 1 - sum(int(m.sum()) for m in masks) / max(1, sum(m.numel() for m in masks))

    def gradient(self, scored: Sequence[ScoredGroup]) -> torch.Tensor:
        """The gradient of the fast path, one vector in float64."""
        self.policy.forward_backward(self.batch(scored), self.recipe.algorithm)
        gradients = [g.flatten().double() for g in self.policy.optimizer.gradients()]
        self.policy.optimizer.zero_grad()
        return torch.cat(gradients)

    def plain_gradient(self, scored: Sequence[ScoredGroup]) -> torch.Tensor:
        """The same from the model's own logits, a sequence at a time, no token shared or left out.

        On policy every ratio is 1, so the clipped term's gradient is that of A * ratio.
        """
        model, total = self.policy.model, 0
        self.policy.optimizer.zero_grad()
        advantages = group_advantages(scored, self.recipe.algorithm.advantage)
        rows = [
            (group.rollout.prompt_token_ids, completion.token_ids, advantage)
            for group, of_group in zip(scored, advantages, strict=True)
            for completion, advantage in zip(group.rollout.completions, of_group, strict=True)
            if advantage is not None
        ]
        total = sum(len(completion) for _, completion, _ in rows)
        for prompt, completion, advantage in rows:
            ids = torch.tensor([prompt + completion])
            logp = model(input_ids=ids).logits[0, :-1].float().log_softmax(-1)
            logp = logp.gather(-1, ids[0, 1:, None])[len(prompt) - 1 :, 0]
            (-(advantage * (logp - logp.detach()).exp()).sum() / total).backward()
        gradients = [g.flatten().double() for g in self.policy.optimizer.gradients()]
        self.policy.optimizer.zero_grad()
        return torch.cat(gradients)


class Timed(TrainerCallback):
    """Seconds of each of TRL's steps; `before` runs ahead of each, outside the clock."""

    def __init__(self, before: Callable[[], None]) -> None:
        self.before, self.seconds, self.parts = before, [], {}
        self._began, self._part = 0.0, {}

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self.before()
        self._part = {}
        self._began = time.perf_counter()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.seconds.append(time.perf_counter() - self._began)
        for name, seconds in self._part.items():
            self.parts.setdefault(name, []).append(seconds)

    def watch(self, trainer: Any, method: str, name: str) -> None:
        """Count the seconds spent in a method of the trainer under `name`."""
        original = getattr(trainer, method)

        def timed(*arguments: Any, **options: Any) -> Any:
            began = time.perf_counter()
            result = original(*arguments, **options)
            self._part[name] = self._part.get(name, 0.0) + time.perf_counter() - began
            return result

        setattr(trainer, method, timed)


class Theirs:
    """TRL's GRPOTrainer, `micro` sequences a forward, the whole step one update.

    Set for speed: no checkpointing of activations, the optimiser's fused kernel, the experts'
    implementation that is fastest on the CPU, one generation call a step. With `scored` it does not
    sample: those groups and their scores are its rollouts.
    """

    def __init__(
        self, work: Work, micro: int, output: str, *, steps: int,
        verifiers: Verifiers | None = None, scored: Sequence[ScoredGroup] | None = None,
        before: Callable[[], None] = lambda: None,
    ) -> None:  # fmt: skip
        from datasets import Dataset
        from trl import GRPOConfig, GRPOTrainer

        self.work, self.tokenizer, self.verifiers = work, work.tokenizer(), verifiers
        self.template = TEMPLATES[work.recipe.template]
        self.lengths: list[int] = []
        self.padding = 0.0
        self._given = {self._prompt(group.rollout.problem): group for group in scored or ()}
        self._scores: list[float] = []
        sampling, cpu = work.recipe.sampling, not torch.cuda.is_available()
        arguments = GRPOConfig(
            output_dir=output, max_steps=steps, beta=0.0, loss_type="dapo",
            epsilon=work.recipe.algorithm.clip_low, epsilon_high=work.recipe.algorithm.clip_high,
            num_generations=sampling.group_size, max_completion_length=sampling.max_tokens,
            per_device_train_batch_size=micro,
            gradient_accumulation_steps=work.num_sequences // micro,
            temperature=1.0, learning_rate=RATE, lr_scheduler_type="constant",
            adam_beta1=BETAS[0], adam_beta2=BETAS[1], max_grad_norm=1.0,
            optim="adamw_torch_fused", gradient_checkpointing=False, bf16=False, use_cpu=cpu,
            report_to=[], disable_tqdm=True, save_strategy="no", logging_strategy="no",
        )  # fmt: skip
        rows = [{"prompt": self._prompt(p), "index": i} for i, p in enumerate(work.problems)]
        self.clock = Timed(before)
        self.trainer = GRPOTrainer(
            model=work.model(), args=arguments, processing_class=self.tokenizer,
            reward_funcs=self._given_scores if scored else self._score,
            rollout_func=self._given_rollouts if scored else None,
            train_dataset=Dataset.from_list(rows), callbacks=[self.clock],
        )  # fmt: skip
        self.trainer.remove_callback(PrinterCallback)
        self.clock.watch(self.trainer, "_generate_single_turn", "rollout")
        self.clock.watch(self.trainer, "_calculate_rewards", "reward")
        self._watch_shapes()
        self.clock.watch(self.trainer, "_generate_and_score_completions", "before_update")

    def run(self) -> None:
        self.trainer.train()

    @property
    def step_seconds(self) -> list[float]:
        return self.clock.seconds

    @property
    def update_seconds(self) -> list[float]:
        """Of each step, without sampling, scoring and what else comes before its first forward."""
        before = self.clock.parts["before_update"]
        return [whole - part for whole, part in zip(self.clock.seconds, before, strict=True)]

    def _prompt(self, problem: Problem) -> str:
        return self.template.prompt(problem.question)

    def _watch_shapes(self) -> None:
        original = self.trainer._generate_and_score_completions

        def watched(inputs: Any) -> Any:
            output = original(inputs)
            masks = torch.cat([output["prompt_mask"], output["completion_mask"]], 1)
            self.padding = 1 - float(masks.float().mean())
            self.lengths += output["completion_mask"].sum(-1).tolist()
            return output

        self.trainer._generate_and_score_completions = watched

    def _score(
        self, prompts: list[str], completions: Any, completion_ids: list[list[int]],
        index: list[int], **_: Any,
    ) -> list[float]:  # fmt: skip
        """The very verifiers of the other side."""
        assert self.verifiers is not None
        ends = end_tokens(self.tokenizer, Path(self.work.folder))
        group_size = self.work.recipe.sampling.group_size
        rollouts = []
        for start in range(0, len(prompts), group_size):
            group = tuple(
                self._completion(ids, ends) for ids in completion_ids[start : start + group_size]
            )
            rollouts.append(Rollout(self.work.problems[index[start]], (0,), group))
        return [score for group in self.verifiers.score(rollouts) for score in scores_of(group)]

    def _completion(self, token_ids: list[int], ends: tuple[int, ...]) -> Completion:
        return as_completion(
            token_ids, None, "stop", tokenizer=self.tokenizer, template=self.template,
            end_tokens=ends, version=0,
        )  # fmt: skip

    def _given_rollouts(self, prompts: list[str], trainer: Any) -> dict[str, Any]:
        self._scores, prompt_ids, completion_ids = [], [], []
        for prompt in prompts[:: self.work.recipe.sampling.group_size]:
            group = self._given[prompt]
            self._scores += scores_of(group)
            for completion in group.rollout.completions:
                prompt_ids.append(list(group.rollout.prompt_token_ids))
                completion_ids.append(list(completion.token_ids))
        return {"prompt_ids": prompt_ids, "completion_ids": completion_ids, "logprobs": None}

    def _given_scores(self, prompts: list[str], **_: Any) -> list[float]:
        return self._scores


def scores_of(group: ScoredGroup) -> list[float]:
    """A number for each completion: a fault or a reward that does not apply counts 0."""
    return [getattr(outcome, "score", None) or 0.0 for outcome in group.outcomes]


def coin(problem: Problem, completion: Completion) -> float:
    """A reward for bases that know nothing: right half the time, so that every group counts."""
    return float(sum(completion.token_ids) % 2)


def with_scores(scored: Sequence[ScoredGroup]) -> list[ScoredGroup]:
    """Faults made verdicts of 0, so that both sides count the same completions."""
    from r1lab.types import Verdict

    return [
        replace(group, outcomes=tuple(Verdict(score) for score in scores_of(group)))
        for group in scored
    ]
