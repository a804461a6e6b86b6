"""The policy: the model being trained, its log-probs, its gradient and its update.

The gradient is accumulated over micro-batches and processes before each update: every loss is a sum
over tokens divided by a denominator computed once for the whole step, so gradients add up and are
never averaged. Processes sum their gradients explicitly, once per update, so they may have
different numbers of micro-batches, or none. Gradients of sharded weights (`r1lab.model.shard`) are
summed in the backward pass, so each process runs as many passes as the busiest one.
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


_PROBE_TOKENS = 32  # of a sequence on which log-probs are compared with the model's own
_TOKENS_WITHOUT_GRADIENT = 4096  # padded tokens of a forward without backward


@dataclass(frozen=True, slots=True)
class GradientStats:
    """Statistics of one accumulated gradient, over all processes.

    `means` is that of `LossStats.means`. `sync_kl` is the k3 estimate of KL(sampler, trainer) in
    nats per token, with each token's share capped (`r1lab.rollout.agreement` explains why), and
    `sync_kl_uncapped` the plain one; both are None if the batch held no sampler log-probs.
    `num_tokens` is the number of tokens they are computed from.
    """

    means: dict[str, float]
    sync_kl: float | None
    sync_kl_uncapped: float | None
    num_tokens: int

    @property
    def num_sequences(self) -> int:
        """Number of sequences that carried gradient, over all processes."""
        return int(self.means["sequences"])


class NonFiniteError(RunStopped):
    """Raised after several consecutive updates with a non-finite loss or gradient."""

    def __init__(self, num_updates: int) -> None:
        """`num_updates` is the number of consecutive updates."""
        super().__init__(
            f"algorithm.max_skipped: loss or gradient not finite in {num_updates} consecutive "
            "updates; lower optimizer.learning_rate, or check the rewards"
        )


class Policy:
    """A causal LM (full weights or LoRA) with its optimizer and version.

    `version` counts the training steps taken; it is the number that a completion's `weight_version`
    refers to.
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
        """`with_reference` copies the current weights as the reference of a KL term."""
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
        self._load: Tensor | None = None  # expert load of the last accumulated gradient
        # With dropout the trainer would compute another model than the sampler.
        model.eval()

    def checkpoint_weights(self) -> Iterator[tuple[str, Tensor]]:
        """Yield the current weights under checkpoint names, adapters merged, for the sampler."""
        return checkpoint_weights(self.model)

    def logprobs(self, micro: MicroBatch) -> tuple[Tensor, Tensor]:
        """Return log-prob and entropy [M] of each completion token of a micro-batch, flat.

        With sharded weights this is a collective: all processes must call it.
        """
        return self._scored(micro)

    def _score(self, micro: MicroBatch) -> tuple[Tensor, Tensor]:
        # Padding is on the right and attention is causal, so only rows with several completions of
        # a prompt need a mask. Packed rows pass the ends of their sequences instead of a mask.
        rows = {"attention_mask": micro.mask, "position_ids": micro.position_ids}
        # Pass only what is set: not every architecture accepts positions.
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
        """Yield the forward passes of a batch: packed if the model's attention supports it.

        Otherwise completions of one prompt share a row where that is cheaper.
        """
        if self._packs:
            return packed_microbatches(batch, token_budget)
        if not (share_prompts and self._can_share):
            return microbatches(batch, token_budget, pad_token_id=self.pad_token_id)
        return shared_microbatches(
            batch, token_budget, pad_token_id=self.pad_token_id, dtype=self.model.dtype
        )

    def forward_backward(self, batch: Batch, algorithm: AlgorithmSettings) -> GradientStats:
        """Run forward and backward over a batch; the gradient is the sum over all processes."""
        self.optimizer.zero_grad()
        device = self.accelerator.device
        stats, gap = LossStats.zeros(device), torch.zeros(3, dtype=torch.float64, device=device)
        with self._counted_load(algorithm.router_bias_speed > 0) as load:
            # Expert load counts a prompt once per completion, so rows must not share prompts.
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
        """Return the batch with what it needs from the policy before the step's first update.

        With several updates these are the trainer's own log-probs, and the experts it chose if
        routing is replayed (with one update the ratio is 1, and the update's own forward serves).
        With a KL term they include the log-probs of the reference.
        """
        budget = algorithm.tokens_per_microbatch
        if algorithm.updates_per_step > 1:
            record = algorithm.router_replay == "old"
            logp, experts = self.completion_logprobs(batch, budget, record_experts=record)
            batch = replace(batch, logp_old=logp, experts=experts if record else batch.experts)
        if algorithm.kl_coefficient:
            assert self.reference is not None, "a KL term requires with_reference"
            with self.reference.in_place():
                logp, _ = self.completion_logprobs(replace(batch, experts=None), budget)
            batch = replace(batch, logp_ref=logp)
        return batch

    @torch.no_grad()
    def completion_logprobs(
        self, batch: Batch, tokens_per_microbatch: int, *, record_experts: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """Return ([N] float32 log-prob per completion token, 0 at prompt tokens; experts or None).

        With `record_experts` the experts of each token are returned, [N, layers, top_k] int16.
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
                routed = torch.stack(chosen, 1).to("cpu", torch.int16)  # [b * t, layers, top_k]
                if experts is None:
                    experts = routed.new_full((len(flat), *routed.shape[1:]), -1)
                real = micro.attention_mask.bool()
                experts[micro.where[real]] = routed[real.flatten()]
        return flat, experts

    @torch.no_grad()
    def sampler_mismatch(self, rollouts: Sequence[Rollout]) -> tuple[float | None, int]:
        """Return (k3 estimate of KL(sampler, trainer), tokens) of rollouts, over all processes.

        This is what `forward_backward` reports, for rollouts that are not trained on.
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
        """Return (k3, tokens) of `logprobs` against the model's own forward, on random tokens.

        Only rounding remains, unless this class computes an architecture differently from its own
        forward. The model's forward runs one sequence at a time, `logprobs` runs groups of padded
        rows.
        """
        config = self.base.config.get_text_config(decoder=True)
        limit = getattr(config, "max_position_embeddings", None) or _PROBE_TOKENS
        length = min(_PROBE_TOKENS, limit)
        draw = torch.Generator().manual_seed(0)
        rollouts = []
        for group in torch.randint(config.vocab_size, (2, 3, length), generator=draw):
            first = length // 4  # start of the completions; same prompt, different lengths
            group[:, :first] = group[0, :first]
            rows = [row[: length - 2 * number] for number, row in enumerate(group)]
            completions = tuple(self._forced(row, first) for row in rows)
            prompt = tuple(rows[0][:first].tolist())
            rollouts.append(Rollout(Problem("", "", "", ""), prompt, completions))
        return self.sampler_mismatch(rollouts)

    def _forced(self, row: Tensor, first: int) -> Completion:
        """Return the tokens of a row from `first` on, with the model's own log-probs."""
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
        """Take one AdamW update; return gradient norm, learning rate and whether it was skipped.

        Without a gradient (no group of any process has variance) nothing changes: AdamW's momentum
        alone would still move the weights. A non-finite gradient or `loss` changes nothing either:
        the update is skipped and counted, and the `max_skipped`-th in a row raises NonFiniteError
        before it changes anything. `router_bias_speed` also moves the experts' bias, by the expert
        load of the accumulated gradient.
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
        """Increment the version after the step's updates; refresh the reference when due."""
        self.version += 1
        if self.reference is not None and reference_every and self.version % reference_every == 0:
            self.reference.refresh()

    def all_reduce_sum(self, tensor: Tensor) -> Tensor:
        """Return the tensor summed over all processes (itself with one process)."""
        if self.accelerator.num_processes == 1:
            return tensor
        summed: Tensor = self.accelerator.reduce(tensor.to(self.accelerator.device), "sum")
        return summed

    def _in_step(self, micros: Iterator[MicroBatch]) -> Iterator[MicroBatch | None]:
        """Yield the micro-batches; if sharded, then None while another process has more."""
        return equalize_microbatches(micros, self.all_reduce_sum if self.is_sharded else None)

    def _run_dummy_pass(self, load: ExpertLoad | None = None) -> None:
        """Run a pass that adds nothing, for the processes that need this one's shards."""
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
        """Return all state that determines the next update: masters, moments, buffers, counters."""
        return {
            "optimizer": self.optimizer.state_dict(),
            "buffers": dict(base_model(self.model).named_buffers()),
            "version": self.version,
            "num_updates": self.num_updates,
            "skipped_in_a_row": self.skipped_in_a_row,
            "reference": None if self.reference is None else self.reference.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a saved state."""
        self.optimizer.load_state_dict(state["optimizer"])
        for name, buffer in base_model(self.model).named_buffers():
            buffer.copy_(state["buffers"][name])
        self.version, self.num_updates = state["version"], state["num_updates"]
        self.skipped_in_a_row = state["skipped_in_a_row"]
        if self.reference is not None and state["reference"] is not None:
            self.reference.load_state_dict(state["reference"])
