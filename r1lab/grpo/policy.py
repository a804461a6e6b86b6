"""The policy: the model being trained, its log-probs, its gradient and its update.

One gradient is gathered over micro-batches and processes before each update: every loss is a sum
over tokens divided by a denominator that was counted once for the whole step, so gradients add up
and are never averaged. Processes sum their gradients by hand, once an update, so they may have
different numbers of micro-batches, or none. Sharded weights (`r1lab.model.shard`) are summed as the
gradient arises, and each process takes part in as many passes as the busiest one has.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from r1lab.config.recipe import AlgorithmSettings, OptimizerSettings
from r1lab.grpo.batch import MicroBatch, microbatches, pack
from r1lab.grpo.distributed import dummy_microbatch, equalize_microbatches
from r1lab.grpo.logprobs import token_logprobs
from r1lab.grpo.loss import LossStats
from r1lab.grpo.micro_loss import micro_loss, sampler_gap_sums
from r1lab.grpo.prefix_sharing import can_share, shared_microbatches
from r1lab.grpo.reference import ReferencePolicy
from r1lab.grpo.sequence_packing import packed_microbatches, varlen_arguments
from r1lab.model.attention import takes_packed_rows
from r1lab.model.balance import ExpertLoad, update_router_bias
from r1lab.model.head import OutputHead
from r1lab.model.optim import MasterAdamW, learning_rate_at
from r1lab.model.replay import RouterReplay
from r1lab.model.shard import as_forward, is_sharded
from r1lab.model.weights import base_model, checkpoint_weights
from r1lab.rollout.agreement import k3_sum
from r1lab.types import Batch, Completion, Problem, Rollout, RunStopped, ScoredGroup, Verdict

if TYPE_CHECKING:
    from accelerate import Accelerator


_PROBE_TOKENS = 32  # of a sequence on which log-probs are held against the model's own
_TOKENS_WITHOUT_GRADIENT = 4096  # padded tokens of a forward without backward


@dataclass(frozen=True, slots=True)
class GradientStats:
    """What one gathered gradient saw, over all processes.

    `means` as `LossStats.means`; `sync_kl` the k3 estimate of KL(sampler, trainer) in nats per
    token with each token's share capped (`r1lab.rollout.agreement` says why), `sync_kl_uncapped`
    the plain one, both None where the batch held no sampler log-probs; `num_tokens` behind them.
    """

    means: dict[str, float]
    sync_kl: float | None
    sync_kl_uncapped: float | None
    num_tokens: int

    @property
    def num_sequences(self) -> int:
        """Sequences that carried gradient, over all processes."""
        return int(self.means["sequences"])


class NonFiniteError(RunStopped):
    """Several updates in a row had a loss or gradient that is not a finite number."""

    def __init__(self, num_updates: int) -> None:
        """`num_updates`: how many in a row."""
        super().__init__(
            f"the loss or its gradient was not finite in {num_updates} updates in a row "
            "(algorithm.max_skipped): lower optimizer.learning_rate, or look at the rewards"
        )


class Policy:
    """A causal LM (full weights or LoRA) with its optimiser and the number of its updates.

    `version` counts the steps whose weights the sampler should have; it is what a completion's
    `weight_version` refers to.
    """

    def __init__(
        self,
        model: Any,
        *,
        optimizer: OptimizerSettings,
        total_updates: int,
        temperature: float,
        accelerator: Accelerator,
        pad_token_id: int = 0,
        with_reference: bool = False,
    ) -> None:
        """`with_reference` keeps the model as it is now for a KL term."""
        self.model, self.accelerator = model, accelerator
        self.settings, self.total_updates = optimizer, total_updates
        self.temperature, self.pad_token_id = temperature, pad_token_id
        self.version, self.num_updates, self.skipped_in_a_row = 0, 0, 0
        base = base_model(model)
        self.base, self._decoder = base, base.get_decoder()
        self._can_share, self._packs = can_share(base.config), takes_packed_rows(base.config)
        self.is_sharded = is_sharded(base)
        self._scored = as_forward(base, self._score)
        self.optimizer = MasterAdamW(
            list(model.parameters()),
            learning_rate=optimizer.learning_rate,
            betas=(optimizer.beta1, optimizer.beta2),
            epsilon=optimizer.epsilon,
            weight_decay=optimizer.weight_decay,
        )
        self.reference = ReferencePolicy(model) if with_reference else None
        self._replay = RouterReplay(base)
        self._load: Tensor | None = None  # of the experts, under the gradient last gathered
        # Dropout would make the trainer another model than the sampler.
        model.eval()

    def checkpoint_weights(self) -> Iterator[tuple[str, Tensor]]:
        """The current weights under checkpoint names, adapters merged, for the sampler."""
        return checkpoint_weights(self.model)

    def logprobs(self, micro: MicroBatch) -> tuple[Tensor, Tensor]:
        """Log-prob and entropy [M] of each completion token of a micro-batch, flat.

        A pass of all processes where weights are sharded.
        """
        return self._scored(micro)

    def _score(self, micro: MicroBatch) -> tuple[Tensor, Tensor]:
        # Padding stands on the right and attention is causal: no mask is needed, but for the rows
        # that hold several completions of a prompt. Packed rows have ends in the place of a mask.
        rows = {"attention_mask": micro.mask, "position_ids": micro.position_ids}
        # Only those that are set: not every architecture has positions to be told.
        options = {name: value for name, value in rows.items() if value is not None}
        with self._replay.replayed(micro.experts):
            output = self._decoder(
                input_ids=micro.token_ids, use_cache=False, **options,
                **varlen_arguments(micro.cu_seqlens),
            )  # fmt: skip
        return token_logprobs(
            output.last_hidden_state, OutputHead(self.base, output), micro.token_ids,
            micro.completion_mask, temperature=self.temperature, predictors=micro.predictors,
        )  # fmt: skip

    def microbatches(
        self, batch: Batch, token_budget: int, *, share_prompts: bool = True
    ) -> Iterator[MicroBatch]:
        """The forward passes of a batch: packed where the model's attention takes that.

        Else completions of one prompt stand together where that pays.
        """
        if self._packs:
            return packed_microbatches(batch, token_budget)
        if not (share_prompts and self._can_share):
            return microbatches(batch, token_budget, pad_token_id=self.pad_token_id)
        return shared_microbatches(
            batch, token_budget, pad_token_id=self.pad_token_id, dtype=self.model.dtype
        )

    def forward_backward(self, batch: Batch, algorithm: AlgorithmSettings) -> GradientStats:
        """Forward and backward over a batch; the gradient then is the sum over all processes."""
        self.optimizer.zero_grad()
        device = self.accelerator.device
        stats, gap = LossStats.zeros(device), torch.zeros(3, dtype=torch.float64, device=device)
        with self._counted_load(algorithm.router_bias_speed > 0) as load:
            # Where load is counted, a prompt counts once for each of its completions.
            for micro in self._in_step(
                self.microbatches(
                    batch, algorithm.tokens_per_microbatch, share_prompts=load is None
                )
            ):
                if micro is None:
                    self._run_dummy_pass(load)
                    continue
                micro = micro.to(device)
                if load is not None:
                    load.mask = micro.attention_mask.bool()
                logp, entropy = self.logprobs(micro)
                loss, micro_stats = micro_loss(micro, logp, entropy, algorithm)
                loss.backward()
                stats += micro_stats
                gap += sampler_gap_sums(micro, logp)
        self._sum_gradients()
        sums = LossStats(self.all_reduce_sum(stats.sums))
        capped, plain, num_tokens = self.all_reduce_sum(gap).tolist()
        return GradientStats(
            sums.means(),
            capped / num_tokens if num_tokens else None,
            plain / num_tokens if num_tokens else None,
            int(num_tokens),
        )

    @contextmanager
    def _counted_load(self, wanted: bool) -> Iterator[ExpertLoad | None]:
        self._load = None
        if not wanted:
            yield None
            return
        with ExpertLoad(self.model) as load:
            yield load
        self._load = self.all_reduce_sum(load.take())

    def with_old_and_ref_logprobs(self, batch: Batch, algorithm: AlgorithmSettings) -> Batch:
        """The batch with what it needs of the policy before the step's first update.

        The trainer's own log-probs, and the experts it chose where they are to be replayed, if
        there are several updates (with one the ratio is 1, and the update's own forward serves);
        those of the reference, if there is a KL term.
        """
        budget = algorithm.tokens_per_microbatch
        if algorithm.updates_per_step > 1:
            record = algorithm.router_replay == "old"
            logp, experts = self.completion_logprobs(batch, budget, record_experts=record)
            batch = replace(batch, logp_old=logp, experts=experts if record else batch.experts)
        if algorithm.kl_coefficient:
            assert self.reference is not None, "a policy with a KL term is made with_reference"
            with self.reference.in_place():
                logp, _ = self.completion_logprobs(replace(batch, experts=None), budget)
            batch = replace(batch, logp_ref=logp)
        return batch

    @torch.no_grad()
    def completion_logprobs(
        self, batch: Batch, tokens_per_microbatch: int, *, record_experts: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """([N] float32 log-prob of each completion token, 0 at prompt tokens; experts or None).

        The experts, where `record_experts` asks for them, are [N, layers, top_k] int16: those that
        each token went through.
        """
        flat = torch.zeros(batch.token_ids.numel())
        experts: Tensor | None = None
        for micro in self._in_step(
            self.microbatches(batch, tokens_per_microbatch, share_prompts=not record_experts)
        ):
            if micro is None:
                self._run_dummy_pass()
                continue
            with self._replay.recorded() as chosen:
                logp, _ = self.logprobs(micro.to(self.accelerator.device))
            flat[micro.positions] = logp.float().cpu()
            if record_experts:
                found = torch.stack(chosen, 1).to("cpu", torch.int16)  # [b * t, layers, top_k]
                if experts is None:
                    experts = found.new_full((len(flat), *found.shape[1:]), -1)
                real = micro.attention_mask.bool()
                experts[micro.where[real]] = found[real.flatten()]
        return flat, experts

    @torch.no_grad()
    def sampler_mismatch(self, rollouts: Sequence[Rollout]) -> tuple[float | None, int]:
        """(k3 estimate of KL(sampler, trainer), tokens) of rollouts with log-probs, all processes.

        What `forward_backward` reports on its way, for rollouts that are not trained on.
        """
        unscored = [ScoredGroup(r, (Verdict(None),) * len(r.completions)) for r in rollouts]
        ones = [[1.0] * len(r.completions) for r in rollouts]
        batch = pack(unscored, ones, loss="token_mean", max_tokens=1)
        gap = torch.zeros(2, dtype=torch.float64, device=self.accelerator.device)
        for micro in self._in_step(self.microbatches(batch, _TOKENS_WITHOUT_GRADIENT)):
            if micro is None:
                self._run_dummy_pass()
                continue
            micro = micro.to(self.accelerator.device)
            assert micro.logp_sampler is not None
            gap += k3_sum(micro.logp_sampler, self.logprobs(micro)[0])
        total, num_tokens = self.all_reduce_sum(gap).tolist()
        return (total / num_tokens if num_tokens else None), int(num_tokens)

    @torch.no_grad()
    def forward_gap(self) -> tuple[float | None, int]:
        """(k3 estimate, tokens) of `logprobs` against the model's own forward, on made-up tokens.

        Only rounding is left unless this class computes an architecture in another way than the
        architecture does. One sequence at a time there, groups of padded rows here.
        """
        config = self.base.config.get_text_config(decoder=True)
        limit = getattr(config, "max_position_embeddings", None) or _PROBE_TOKENS
        length = min(_PROBE_TOKENS, limit)
        draw = torch.Generator().manual_seed(0)
        rollouts = []
        for group in torch.randint(config.vocab_size, (2, 3, length), generator=draw):
            first = length // 4  # of the completions; all have the same prompt, and lengths differ
            group[:, :first] = group[0, :first]
            rows = [row[: length - 2 * number] for number, row in enumerate(group)]
            completions = tuple(self._forced(row, first) for row in rows)
            prompt = tuple(rows[0][:first].tolist())
            rollouts.append(Rollout(Problem("", "", "", ""), prompt, completions))
        return self.sampler_mismatch(rollouts)

    def _forced(self, row: Tensor, first: int) -> Completion:
        """The tokens of a row from `first` on, with their log-probs by the model's own forward."""
        ids = row[None].to(self.accelerator.device)
        logits = self.base(input_ids=ids, use_cache=False).logits[0, :-1].float()
        logp = (logits / self.temperature).log_softmax(-1).gather(-1, ids[0, 1:, None])[:, 0]
        given = tuple(logp[first - 1 :].tolist())
        return Completion(tuple(row[first:].tolist()), "", "stop", 0, logprobs=given)

    def optimizer_step(
        self,
        *,
        has_gradient: bool = True,
        loss: float = 0.0,
        max_skipped: int = 1,
        router_bias_speed: float = 0.0,
    ) -> dict[str, float]:
        """One AdamW update with the gathered gradient; its norm, the learning rate, if skipped.

        Without a gradient (every group of every process without variance) nothing moves: AdamW's
        momentum alone would go on pushing. Nor does anything move where the gradient or the `loss`
        it came from is not finite: such an update is skipped and counted, and the `max_skipped`-th
        in a row raises NonFiniteError before it changes anything. `router_bias_speed` moves the
        experts' bias along, by the load that the gradient was gathered under.
        """
        rate = learning_rate_at(
            self.num_updates, self.num_updates / max(self.total_updates - 1, 1),
            peak=self.settings.learning_rate, schedule=self.settings.schedule,
            warmup_steps=self.settings.warmup_steps, final_fraction=self.settings.final_fraction,
        )  # fmt: skip
        norm = self.optimizer.gradient_norm() if has_gradient else 0.0
        is_finite = math.isfinite(norm) and math.isfinite(loss)
        if not is_finite and self.skipped_in_a_row + 1 >= max_skipped:
            raise NonFiniteError(max_skipped)
        if has_gradient and is_finite:
            self.optimizer.step(rate, self.settings.max_grad_norm, norm)
            if self._load is not None:
                update_router_bias(self.model, self._load, router_bias_speed)
        self.skipped_in_a_row = 0 if is_finite else self.skipped_in_a_row + 1
        self.num_updates += 1
        return {"grad_norm": norm, "learning_rate": rate, "skipped": float(not is_finite)}

    def advance_version(self, reference_every: int) -> None:
        """The step's updates are done: another version; every so many the reference follows it."""
        self.version += 1
        if self.reference is not None and reference_every and self.version % reference_every == 0:
            self.reference.refresh()

    def all_reduce_sum(self, tensor: Tensor) -> Tensor:
        """The tensor summed over all processes (itself where there is one)."""
        if self.accelerator.num_processes == 1:
            return tensor
        summed: Tensor = self.accelerator.reduce(tensor.to(self.accelerator.device), "sum")
        return summed

    def _in_step(self, micros: Iterator[MicroBatch]) -> Iterator[MicroBatch | None]:
        """The micro-batches; of sharded weights then None while another process has more."""
        return equalize_microbatches(micros, self.all_reduce_sum if self.is_sharded else None)

    def _run_dummy_pass(self, load: ExpertLoad | None = None) -> None:
        """A pass that adds nothing, for the processes that need this one's shards."""
        micro = dummy_microbatch(self.pad_token_id).to(self.accelerator.device)
        if load is not None:
            load.mask = micro.attention_mask.bool()
        logp, _ = self.logprobs(micro)
        if torch.is_grad_enabled():
            (0.0 * logp.sum()).backward()

    def _sum_gradients(self) -> None:
        if self.accelerator.num_processes == 1 or self.is_sharded:
            return
        gradients = self.optimizer.gradients()
        flat = self.all_reduce_sum(torch.cat([g.flatten() for g in gradients]))
        for gradient, summed in zip(
            gradients, flat.split([g.numel() for g in gradients]), strict=True
        ):
            gradient.copy_(summed.view_as(gradient))

    def state_dict(self) -> dict[str, Any]:
        """All that decides the next update: masters, moments, buffers, counters."""
        return {
            "optimizer": self.optimizer.state_dict(),
            "buffers": dict(base_model(self.model).named_buffers()),
            "version": self.version,
            "num_updates": self.num_updates,
            "skipped_in_a_row": self.skipped_in_a_row,
            "reference": None if self.reference is None else self.reference.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up a saved state."""
        self.optimizer.load_state_dict(state["optimizer"])
        for name, buffer in base_model(self.model).named_buffers():
            buffer.copy_(state["buffers"][name])
        self.version, self.num_updates = state["version"], state["num_updates"]
        self.skipped_in_a_row = state["skipped_in_a_row"]
        if self.reference is not None and state["reference"] is not None:
            self.reference.load_state_dict(state["reference"])
