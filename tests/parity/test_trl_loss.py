"""Our loss and gradient against TRL 1.16's GRPOTrainer: same weights, same batch, fp32.

TRL pads prompts on the left and scores the whole batch in one forward; we pack, drop what has no
gradient, and go through micro-batches. Old log-probs are perturbed, so that ratios leave 1 and some
are clipped.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from tiny import VOCAB, llama_config, tokenizer, v3_config
from torch import Tensor
from transformers import DeepseekV3ForCausalLM, LlamaForCausalLM, PreTrainedModel

from r1lab.grpo.advantage import group_advantages
from r1lab.grpo.batch import microbatches, pack
from r1lab.grpo.loss import LossStats, policy_loss, token_logprobs
from r1lab.types import Batch, Completion, Problem, Rollout, Scored, Verdict

# Our name, TRL's name.
SAME = {"grpo": "grpo", "dr_grpo": "dr_grpo", "token_mean": "dapo"}
MAX_TOKENS = 16
CLIP_LOW, CLIP_HIGH = 0.2, 0.28
SMALL: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 96, "initializer_range": 0.15}


def build(kind: str) -> PreTrainedModel:
    torch.manual_seed(0)
    if kind == "llama":
        return LlamaForCausalLM(llama_config(**SMALL))
    config = v3_config(moe_intermediate_size=48, kv_lora_rank=32, **SMALL)
    model = DeepseekV3ForCausalLM._from_config(config, experts_implementation="eager")
    for name, buffer in model.named_buffers():
        if name.endswith("e_score_correction_bias"):
            buffer.copy_(0.02 * torch.randn(buffer.shape))
    return model


def scored_groups() -> list[Scored]:
    """Three groups of four, prompts and lengths all different, one group without variance."""
    draw = torch.Generator().manual_seed(1)
    scores = [[1.1, 0.0, 0.1, 1.0], [0.5, 0.5, 0.5, 0.5], [0.0, 1.0, 1.0, 1.0]]

    def tokens(count: int) -> tuple[int, ...]:
        return tuple(torch.randint(8, VOCAB, (count,), generator=draw).tolist())

    groups = []
    for index, of_group in enumerate(scores):
        lengths = torch.randint(1, MAX_TOKENS + 1, (len(of_group),), generator=draw).tolist()
        completions = tuple(Completion(tokens(n), "", "stop", 0) for n in lengths)
        rollout = Rollout(Problem(str(index), "", "", ""), tokens(5 + 3 * index), completions)
        groups.append(Scored(rollout, tuple(Verdict(score) for score in of_group)))
    return groups


GROUPS = scored_groups()
SEQUENCES = [
    (group.rollout.prompt_token_ids, completion.token_ids)
    for group in GROUPS
    for completion in group.rollout.completions
]
ADVANTAGES = group_advantages(GROUPS, "group_std")
NOISE = [
    0.25 * torch.randn(len(completion), generator=torch.Generator().manual_seed(i))
    for i, (_, completion) in enumerate(SEQUENCES)
]


def one_by_one(model: PreTrainedModel) -> list[Tensor]:
    """Log-probs of each completion's tokens, a sequence at a time, from the plain forward."""
    logprobs = []
    for prompt, completion in SEQUENCES:
        ids = torch.tensor([[*prompt, *completion]])
        with torch.no_grad():
            every = model(input_ids=ids).logits[0, :-1].log_softmax(-1)
        every = every.gather(-1, ids[0, 1:, None])[:, 0]
        logprobs.append(every[len(prompt) - 1 :])
    return logprobs


def trl_trainer(model: PreTrainedModel, loss_type: str, folder: str) -> Any:
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    arguments = GRPOConfig(
        output_dir=folder, loss_type=loss_type, beta=0.0, epsilon=CLIP_LOW, epsilon_high=CLIP_HIGH,
        max_completion_length=MAX_TOKENS, num_generations=4, per_device_train_batch_size=12,
        gradient_accumulation_steps=1, bf16=False, use_cpu=True, report_to=[], disable_tqdm=True,
        gradient_checkpointing=False,
    )  # fmt: skip
    return GRPOTrainer(
        model=model, reward_funcs=lambda completions, **_: [0.0] * len(completions),
        args=arguments, processing_class=tokenizer(),
        train_dataset=Dataset.from_dict({"prompt": ["w1"] * 12}),
    )  # fmt: skip


def trl_inputs(old: list[Tensor]) -> dict[str, Tensor]:
    from trl.trainer.utils import pad

    prompts = [torch.tensor(prompt) for prompt, _ in SEQUENCES]
    completions = [torch.tensor(completion) for _, completion in SEQUENCES]

    def ones(rows: list[Tensor]) -> list[Tensor]:
        return [torch.ones_like(row) for row in rows]

    return {
        "prompt_ids": pad(prompts, 0, "left"),
        "prompt_mask": pad(ones(prompts), 0, "left"),
        "completion_ids": pad(completions, 0, "right"),
        "completion_mask": pad(ones(completions), 0, "right"),
        "old_per_token_logps": pad(old, 0.0, "right"),
        "advantages": torch.tensor([a for group in ADVANTAGES for a in group]),
        "num_items_in_batch": torch.tensor(sum(len(c) for _, c in SEQUENCES)),
    }


def our_batch(loss: str, old: list[Tensor]) -> Batch:
    batch = pack(GROUPS, ADVANTAGES, loss=loss, max_tokens=MAX_TOKENS)
    flat = [a for group in ADVANTAGES for a in group]
    kept = [i for i, advantage in enumerate(flat) if advantage != 0.0]
    logp_old = [piece for i in kept for piece in (torch.zeros(len(SEQUENCES[i][0])), old[i])]
    return replace(batch, logp_old=torch.cat(logp_old))


def our_gradient(model: Any, batch: Batch, loss: str) -> tuple[LossStats, float]:
    """Loss summed in the stats, gradient left in the model, and the mean |token term|."""
    stats = LossStats.zeros()
    terms = 0.0
    for micro in microbatches(batch, 48):
        hidden = model.get_decoder()(input_ids=micro.token_ids, use_cache=False).last_hidden_state
        logp, entropy = token_logprobs(
            hidden, model.get_output_embeddings(), micro.token_ids, micro.completion_mask
        )
        value, part = policy_loss(
            logp, micro.logp_old, micro.advantages, micro.completion_lens, loss=loss,
            denominator=batch.denominator, clip_low=CLIP_LOW, clip_high=CLIP_HIGH, entropy=entropy,
        )  # fmt: skip
        value.backward()
        stats = stats + part
        assert micro.logp_old is not None
        ratio = (logp.detach() - micro.logp_old).exp()
        terms += float(
            (ratio * micro.advantages.repeat_interleave(micro.completion_lens)).abs().sum()
        )
    return stats, terms / stats.means()["tokens"]


def take_gradient(model: PreTrainedModel) -> Tensor:
    flat = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]).double()
    model.zero_grad()
    return flat


@pytest.mark.parametrize("loss", SAME)
@pytest.mark.parametrize("kind", ["v3", "llama"])
def test_loss_and_gradient_equal_trl(
    kind: str, loss: str, tmp_path: Any, record_property: Any
) -> None:
    model = build(kind)
    old = [logp + noise for logp, noise in zip(one_by_one(model), NOISE, strict=True)]

    model.eval()
    stats, scale = our_gradient(model, our_batch(loss, old), loss)
    ours, our_loss = take_gradient(model), stats.means()["loss"]

    trainer = trl_trainer(model, SAME[loss], str(tmp_path))
    trainer.current_gradient_accumulation_steps = 1
    model.train()  # TRL's normaliser asks; the configuration has no dropout
    trl_loss = trainer._compute_loss(model, trl_inputs(old))
    trl_loss.backward()
    theirs = take_gradient(model)

    difference = abs(our_loss - float(trl_loss.detach())) / scale
    cosine = float(torch.nn.functional.cosine_similarity(ours, theirs, dim=0))
    length = float(ours.norm() / theirs.norm())
    record_property("loss_difference", difference)
    record_property("gradient_cosine", cosine)
    print(f"{kind} {loss}: loss {our_loss:.6g}, difference {difference:.2e}, "
          f"1 - cosine {1 - cosine:.2e}, norm ratio - 1 {length - 1:.2e}")  # fmt: skip
    assert float(ours.norm()) > 0
    assert difference <= 1e-6
    assert cosine >= 0.99999
    assert length == pytest.approx(1.0, abs=1e-5)

    # What both count: share of clipped tokens. TRL's mean is over all tokens, ours over those kept.
    logged = trainer._metrics["train"]
    dropped = stats.means()["tokens"] / sum(len(c) for _, c in SEQUENCES)
    assert stats.means()["clipped_low"] * dropped == pytest.approx(
        logged["clip_ratio/low_mean"][-1], abs=1e-6
    )
    assert stats.means()["clipped_high"] * dropped == pytest.approx(
        logged["clip_ratio/high_mean"][-1], abs=1e-6
    )
    assert stats.means()["clipped_low"] > 0 and stats.means()["clipped_high"] > 0


@pytest.mark.parametrize("kind", ["v3", "llama"])
def test_logprobs_equal_the_plain_forward(kind: str) -> None:
    model = build(kind).eval()
    expected = one_by_one(model)
    kept = pack(GROUPS, ADVANTAGES, loss="grpo", max_tokens=MAX_TOKENS, drop_zero_advantage=False)
    flat = torch.zeros(kept.token_ids.numel())
    with torch.no_grad():
        for micro in microbatches(kept, 60):
            hidden = model.get_decoder()(input_ids=micro.token_ids).last_hidden_state
            flat[micro.positions], _ = token_logprobs(
                hidden, model.get_output_embeddings(), micro.token_ids, micro.completion_mask
            )
    wanted = [
        piece
        for (prompt, _), logp in zip(SEQUENCES, expected, strict=True)
        for piece in (torch.zeros(len(prompt)), logp)
    ]
    torch.testing.assert_close(flat, torch.cat(wanted), atol=2e-6, rtol=0)


def test_advantages_equal_trl() -> None:
    """TRL 1.16, GRPOTrainer._generate_and_score_completions, scale_rewards "group" and "none"."""
    from trl.trainer.utils import nanstd

    scores = [0.1, 1.1, 0.0, 1.1, 0.1, None, 1.0, 0.3]
    verdicts = tuple(Verdict(score) for score in scores)
    completions = tuple(Completion((1,), "", "stop", 0) for _ in scores)
    group = Scored(Rollout(Problem("0", "", "", ""), (1,), completions), verdicts)
    rewards = torch.tensor([float("nan") if s is None else s for s in scores])[None]
    centred = rewards - torch.nanmean(rewards, dim=1, keepdim=True)
    scaled = centred / (nanstd(rewards, dim=1)[:, None] + 1e-4)
    for kind, expected in (("group_std", scaled), ("mean_only", centred)):
        wanted = torch.nan_to_num(expected, nan=0.0)[0].tolist()
        assert group_advantages([group], kind)[0] == pytest.approx(wanted, abs=1e-6)
