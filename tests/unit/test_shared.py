"""Completions that share the row of their prompt: log-probs and gradient as of separate rows."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest
import tiny
import torch
from records import problem
from torch import Tensor
from transformers import DeepseekV3ForCausalLM, LlamaForCausalLM

from r1lab.grpo import prefix_sharing as shared
from r1lab.grpo.advantage import group_advantages
from r1lab.grpo.batch import MicroBatch, microbatches, pack
from r1lab.grpo.logprobs import token_logprobs
from r1lab.types import Batch, Completion, Rollout, ScoredGroup, Verdict

SMALL: dict[str, Any] = {"hidden_size": 48, "intermediate_size": 64, "initializer_range": 0.2}


def model_of(kind: str) -> Any:
    torch.manual_seed(0)
    if kind == "llama":
        return LlamaForCausalLM(tiny.llama_config(**SMALL))
    config = tiny.v3_config(moe_intermediate_size=32, kv_lora_rank=32, **SMALL)
    return DeepseekV3ForCausalLM._from_config(config, experts_implementation="eager")


def batch_of(prompts: tuple[int, ...] = (5, 30, 2), group: int = 6, longest: int = 12) -> Batch:
    draw = random.Random(0)

    def tokens(count: int) -> tuple[int, ...]:
        return tuple(draw.randrange(8, 128) for _ in range(count))

    groups = []
    for index, prompt_len in enumerate(prompts):
        completions = tuple(
            Completion(row, "", "stop", 0, logprobs=tuple(-draw.random() for _ in row))
            for row in (tokens(draw.randint(1, longest)) for _ in range(group))
        )
        scores = tuple(Verdict(draw.random()) for _ in completions)
        groups.append(ScoredGroup(Rollout(problem(index), tokens(prompt_len), completions), scores))
    batch = pack(
        groups, group_advantages(groups, "group_std"), loss="token_mean", max_tokens=longest
    )
    # Groups need not stand together: mini-batches are drawn at random.
    return replace(batch, logp_old=torch.arange(batch.token_ids.numel()).float())


def gradient(model: Any, micros: list[MicroBatch], num_tokens: int) -> tuple[Tensor, Tensor]:
    """(log-probs of the packed batch, gradient of their weighted sum)."""
    flat = torch.zeros(num_tokens)
    model.zero_grad()
    for micro in micros:
        hidden = model.get_decoder()(
            input_ids=micro.token_ids, attention_mask=micro.mask,
            position_ids=micro.position_ids, use_cache=False,
        ).last_hidden_state  # fmt: skip
        logp, _ = token_logprobs(
            hidden, model.get_output_embeddings(), micro.token_ids, micro.completion_mask,
            predictors=micro.predictors,
        )  # fmt: skip
        flat[micro.positions] = logp.detach()
        (logp * micro.advantages.repeat_interleave(micro.completion_lens)).sum().backward()
    return flat, torch.cat([p.grad.flatten().double() for p in model.parameters()])


@pytest.mark.parametrize("kind", ["v3", "llama"])
@pytest.mark.parametrize("budget", [60, 150, 4096])
def test_log_probs_and_gradient_are_those_of_separate_rows(
    kind: str, budget: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared, "SHORT", 20)  # so that a group makes several rows, and some alone
    model, batch = model_of(kind), batch_of()
    together = list(shared.shared_microbatches(batch, budget, pad_token_id=3))
    assert any(micro.mask is not None for micro in together)
    assert sum(len(micro.completion_lens) for micro in together) == len(batch)
    num_tokens = batch.token_ids.numel()
    logp, ours = gradient(model, together, num_tokens)
    expected, plain = gradient(model, list(microbatches(batch, 4096)), num_tokens)
    torch.testing.assert_close(logp, expected, atol=2e-5, rtol=0)
    assert float(torch.nn.functional.cosine_similarity(ours, plain, dim=0)) > 1 - 1e-8
    assert float(ours.norm() / plain.norm()) == pytest.approx(1.0, abs=1e-5)


def test_what_belongs_to_tokens_and_sequences_goes_with_them() -> None:
    batch = batch_of()
    (micro,) = shared.shared_microbatches(batch, 4096)
    assert micro.logp_old is not None and micro.logp_sampler is not None
    assert batch.logp_sampler is not None
    assert torch.equal(micro.logp_old, micro.positions.float())
    assert torch.equal(micro.logp_sampler, batch.logp_sampler[micro.positions])
    assert torch.equal(micro.token_ids[micro.completion_mask], batch.token_ids[micro.positions])
    assert sorted(micro.advantages.tolist()) == sorted(batch.advantages.tolist())
    real = int(micro.attention_mask.sum())
    prompts = int(batch.prompt_lens.sum()) - 5 * (5 + 30 + 2)  # each of the three stands once
    assert real == int((batch.lengths - batch.prompt_lens).sum()) + prompts


def test_budgets_and_long_completions() -> None:
    batch = batch_of()
    for budget in (45, 80, 300):
        for micro in shared.shared_microbatches(batch, budget):
            assert micro.token_ids.numel() <= budget or len(micro) == 1
    long = batch_of(prompts=(4, 7), group=3, longest=600)
    lone = [m for m in shared.shared_microbatches(long, 4096) if m.mask is None]
    assert lone and all(m.position_ids is None and m.predictors is None for m in lone)
    assert list(shared.shared_microbatches(batch_of(prompts=()), 100)) == []


def test_prescribed_experts_are_not_shared() -> None:
    batch = batch_of()
    given = torch.zeros(batch.token_ids.numel(), 2, 2, dtype=torch.int16)
    micros = list(shared.shared_microbatches(replace(batch, experts=given), 4096))
    assert all(m.mask is None and m.experts is not None for m in micros)


def test_only_models_whose_attention_takes_the_mask() -> None:
    config = tiny.llama_config()
    config._attn_implementation = "sdpa"
    assert shared.can_share(config)
    config._attn_implementation = "flash_attention_2"
    assert not shared.can_share(config)
    config._attn_implementation = "sdpa"
    config.model_type = "mamba"
    assert not shared.can_share(config)
