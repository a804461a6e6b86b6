"""Our loss and gradient against TRL 1.16's GRPOTrainer: same weights, same batch, fp32.

TRL pads prompts on the left and scores the whole batch in one forward; we pack, drop what has no
gradient, and go through micro-batches. Old log-probs are perturbed, so that ratios leave 1 and some
are clipped. One TRL trainer serves all cases of a model: its settings are read when the loss is
computed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from tiny import VOCAB, llama_config, tokenizer, v3_config
from torch import Tensor
from transformers import DeepseekV3ForCausalLM, LlamaForCausalLM, PreTrainedModel

from r1lab.config.recipe import LoraSettings
from r1lab.grpo.advantage import group_advantages
from r1lab.grpo.batch import MicroBatch, microbatches, pack
from r1lab.grpo.correction import Correction, correction_weights
from r1lab.grpo.logprobs import token_logprobs
from r1lab.grpo.loss import LOSSES, LossStats, policy_loss
from r1lab.grpo.surrogate import LossOptions, ratio_at_level
from r1lab.model.adapters import add_lora
from r1lab.model.weights import base_model
from r1lab.types import Batch, Completion, Problem, Rollout, ScoredGroup, Verdict

MAX_TOKENS = 16
CLIP_LOW, CLIP_HIGH = 0.2, 0.28
CLIP = LossOptions(CLIP_LOW, CLIP_HIGH)
CORRECTION_LOW, CORRECTION_HIGH = 0.85, 1.15


@dataclass(frozen=True)
class Case:
    """A loss with its options on both sides."""

    loss: str
    theirs: str
    options: LossOptions = CLIP
    correction: Correction | None = None

    @property
    def level(self) -> str:
        """TRL's importance_sampling_level; VESPO wants `token` there."""
        level = self.options.level or LOSSES[self.loss].level
        return "token" if level == "product" else level


def options(**changes: Any) -> LossOptions:
    return replace(CLIP, **changes)


CASES = {
    "grpo": Case("grpo", "grpo"),
    "dr_grpo": Case("dr_grpo", "dr_grpo"),
    "token_mean": Case("token_mean", "dapo"),
    "bnpo": Case("bnpo", "bnpo"),
    "gspo": Case("gspo", "grpo"),
    "luspo": Case("luspo", "luspo"),
    "cispo": Case("cispo", "cispo"),
    "sapo": Case("sapo", "sapo"),
    "vespo": Case("vespo", "vespo"),
    "token_mean, a ratio a sequence": Case("token_mean", "dapo", options(level="sequence")),
    "luspo, a ratio a token": Case("luspo", "luspo", options(level="token")),
    "sapo, a ratio a sequence": Case("sapo", "sapo", options(level="sequence")),
    "two-sided clip": Case("grpo", "grpo", options(ratio_cap=1.3)),
    "kl": Case("grpo", "grpo", options(kl_coefficient=0.1)),
    "kl, corrected": Case("token_mean", "dapo", options(kl_coefficient=0.1, kl_corrected=True)),
    "kl, corrected by sequence": Case(
        "gspo", "grpo", options(kl_coefficient=0.1, kl_corrected=True)
    ),
    "kl of vespo": Case("vespo", "vespo", options(kl_coefficient=0.1, kl_corrected=True)),
    "token_truncate": Case("token_mean", "dapo", correction="token_truncate"),
    "token_mask": Case("token_mean", "dapo", correction="token_mask"),
    "sequence_truncate": Case("grpo", "grpo", correction="sequence_truncate"),
    "sequence_mask": Case("luspo", "luspo", correction="sequence_mask"),
    "token_truncate of vespo": Case("vespo", "vespo", correction="token_truncate"),
    "token_mask of vespo": Case("vespo", "vespo", correction="token_mask"),
}
SMALL: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 96, "initializer_range": 0.15}


def build(kind: str, way: str = "full") -> Any:
    """A model in float32, or one with adapters that are not zero."""
    torch.manual_seed(0)
    if way == "lora":
        model = add_lora(build(kind), LoraSettings(rank=4), seed=0)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.requires_grad and "lora_B" in name:
                    parameter.normal_(std=0.05)
        return model
    if kind == "llama":
        return LlamaForCausalLM(llama_config(**SMALL))
    config = v3_config(moe_intermediate_size=48, kv_lora_rank=32, **SMALL)
    model = DeepseekV3ForCausalLM._from_config(config, experts_implementation="eager")
    for name, buffer in model.named_buffers():
        if name.endswith("e_score_correction_bias"):
            buffer.copy_(0.02 * torch.randn(buffer.shape))
    return model


def scored_groups() -> list[ScoredGroup]:
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
        groups.append(ScoredGroup(rollout, tuple(Verdict(score) for score in of_group)))
    return groups


GROUPS = scored_groups()
SEQUENCES = [
    (group.rollout.prompt_token_ids, completion.token_ids)
    for group in GROUPS
    for completion in group.rollout.completions
]
ADVANTAGES = group_advantages(GROUPS, "group_std")


def noise(size: float, seed: int) -> list[Tensor]:
    """[tokens of the completion] for each sequence."""
    draw = torch.Generator().manual_seed(seed)
    return [size * torch.randn(len(completion), generator=draw) for _, completion in SEQUENCES]


@dataclass(frozen=True)
class Logprobs:
    """Of each completion's tokens, in the order of SEQUENCES."""

    old: list[Tensor]
    reference: list[Tensor]
    sampler: list[Tensor]

    @classmethod
    def around(cls, logp: list[Tensor]) -> Logprobs:
        old = add(logp, noise(0.2, 0))
        return cls(old, add(logp, noise(0.4, 1)), add(old, noise(0.1, 3)))


def add(one: list[Tensor], two: list[Tensor]) -> list[Tensor]:
    return [a + b for a, b in zip(one, two, strict=True)]


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


def trl_trainer(model: Any, folder: str) -> Any:
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    arguments = GRPOConfig(
        output_dir=folder, beta=0.0, epsilon=CLIP_LOW, epsilon_high=CLIP_HIGH,
        max_completion_length=MAX_TOKENS, num_generations=4, per_device_train_batch_size=12,
        gradient_accumulation_steps=1, bf16=False, use_cpu=True, report_to=[], disable_tqdm=True,
        gradient_checkpointing=False,
    )  # fmt: skip
    trainer = GRPOTrainer(
        model=model, reward_funcs=lambda completions, **_: [0.0] * len(completions),
        args=arguments, processing_class=tokenizer(),
        train_dataset=Dataset.from_dict({"prompt": ["w1"] * 12}),
    )  # fmt: skip
    trainer.current_gradient_accumulation_steps = 1
    return trainer


def trl_loss(trainer: Any, model: Any, case: Case, logprobs: Logprobs) -> Tensor:
    chosen = case.options
    trainer.loss_type, trainer.importance_sampling_level = case.theirs, case.level
    trainer.beta, trainer.args.use_bias_correction_kl = chosen.kl_coefficient, chosen.kl_corrected
    trainer.args.delta = chosen.ratio_cap
    # TRL's epsilon_high of CISPO is the largest weight itself.
    trainer.epsilon_high = CLIP_HIGH + (case.loss == "cispo")
    trainer.use_vllm = trainer.vllm_importance_sampling_correction = case.correction is not None
    inputs = trl_inputs(logprobs)
    if case.correction is not None:
        inputs["importance_sampling_ratio"] = trl_correction(case.correction, logprobs, inputs)
    loss: Tensor = trainer._compute_loss(model, inputs)
    return loss


def trl_correction(kind: str, logprobs: Logprobs, inputs: dict[str, Tensor]) -> Tensor:
    """As GRPOTrainer._generate_and_score_completions, whose lines cannot be called alone."""
    from trl.trainer.utils import pad

    gap = inputs["old_per_token_logps"] - pad(logprobs.sampler, 0.0, "right")
    gap = gap * inputs["completion_mask"]
    ratio = (gap.sum(-1, keepdim=True) if kind.startswith("sequence") else gap).exp()
    if kind.endswith("truncate"):
        return ratio.clamp(CORRECTION_LOW, CORRECTION_HIGH)
    return ratio.masked_fill((ratio < CORRECTION_LOW) | (ratio > CORRECTION_HIGH), 0.0)


def trl_inputs(logprobs: Logprobs) -> dict[str, Tensor]:
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
        "old_per_token_logps": pad(logprobs.old, 0.0, "right"),
        "ref_per_token_logps": pad(logprobs.reference, 0.0, "right"),
        "advantages": torch.tensor([a for group in ADVANTAGES for a in group]),
        "num_items_in_batch": torch.tensor(sum(len(c) for _, c in SEQUENCES)),
    }


def our_batch(case: Case, logprobs: Logprobs) -> Batch:
    drop = not case.options.kl_coefficient
    batch = pack(
        GROUPS, ADVANTAGES, loss=case.loss, max_tokens=MAX_TOKENS, drop_zero_advantage=drop
    )
    flat = [a for group in ADVANTAGES for a in group]
    kept = [i for i, advantage in enumerate(flat) if advantage != 0.0 or not drop]

    def packed(values: list[Tensor]) -> Tensor:
        pieces = [p for i in kept for p in (torch.zeros(len(SEQUENCES[i][0])), values[i])]
        return torch.cat(pieces)

    return replace(
        batch, logp_old=packed(logprobs.old), logp_ref=packed(logprobs.reference),
        logp_sampler=packed(logprobs.sampler),
    )  # fmt: skip


def our_gradient(model: Any, batch: Batch, case: Case) -> tuple[LossStats, float]:
    """Loss summed in the stats, gradient left in the model, and the mean |token term|.

    The mean is taken as the loss takes it: LUSPO's is over sequences, of the sum of their tokens.
    """
    stats, terms = LossStats.zeros(), 0.0
    base = base_model(model)
    for micro in microbatches(batch, 48):
        hidden = base.get_decoder()(input_ids=micro.token_ids, use_cache=False).last_hidden_state
        logp, entropy = token_logprobs(
            hidden, base.get_output_embeddings(), micro.token_ids, micro.completion_mask
        )
        assert micro.logp_old is not None and micro.logp_sampler is not None
        weights = None if case.correction is None else correction_weights(
            micro.logp_old, micro.logp_sampler, micro.completion_lens, case.correction,
            low=CORRECTION_LOW, high=CORRECTION_HIGH,
        )  # fmt: skip
        value, part = policy_loss(
            logp, micro.logp_old, micro.advantages, micro.completion_lens, loss=case.loss,
            denominator=batch.denominator, options=case.options, entropy=entropy,
            logp_ref=micro.logp_ref, correction=weights,
        )  # fmt: skip
        value.backward()
        stats = stats + part
        terms += sum_of_terms(logp.detach(), micro, case)
    return stats, terms / batch.denominator


def sum_of_terms(logp: Tensor, micro: MicroBatch, case: Case) -> float:
    """Of the policy's terms, each as large as it is."""
    assert micro.logp_old is not None and micro.logp_sampler is not None
    chosen, lengths = LOSSES[case.loss], micro.completion_lens
    old = micro.logp_old if case.correction is None else micro.logp_sampler
    log_ratio = ratio_at_level(logp - old, lengths, case.options.level or chosen.level)
    advantages = micro.advantages.repeat_interleave(lengths)
    terms = chosen.surrogate(log_ratio, advantages, logp, case.options).abs()
    if chosen.aggregation == "sequence_mean":
        terms = terms / lengths.repeat_interleave(lengths)
    return float(terms.sum())


def take_gradient(model: Any) -> Tensor:
    flat = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]).double()
    model.zero_grad()
    return flat


@dataclass(frozen=True)
class Pair:
    """A model in TRL's trainer, and the log-probs that all cases share."""

    model: Any
    trainer: Any
    logprobs: Logprobs


@pytest.fixture(
    scope="module", params=[f"{kind}-{way}" for kind in ("v3", "llama") for way in ("full", "lora")]
)
def pair(request: pytest.FixtureRequest, tmp_path_factory: Any) -> Iterator[Pair]:
    model = build(*request.param.split("-"))
    logprobs = Logprobs.around(one_by_one(model))
    yield Pair(model, trl_trainer(model, str(tmp_path_factory.mktemp("trl"))), logprobs)


@pytest.mark.parametrize("name", CASES)
def test_loss_and_gradient_equal_trl(name: str, pair: Pair) -> None:
    case, model = CASES[name], pair.model
    model.zero_grad()
    model.eval()
    stats, scale = our_gradient(model, our_batch(case, pair.logprobs), case)
    means = stats.means()
    ours, our_loss = take_gradient(model), means["loss"]

    model.train()  # TRL's normaliser asks; nothing here has dropout
    loss = trl_loss(pair.trainer, model, case, pair.logprobs)
    loss.backward()
    theirs = take_gradient(model)

    difference = abs(our_loss - float(loss.detach())) / scale
    cosine = float(torch.nn.functional.cosine_similarity(ours, theirs, dim=0))
    length = float(ours.norm() / theirs.norm())
    print(f"{name}: loss {our_loss:.6g}, difference {difference:.2e}, "
          f"1 - cosine {1 - cosine:.2e}, norm ratio - 1 {length - 1:.2e}")  # fmt: skip
    assert float(ours.norm()) > 0
    assert difference <= 1e-6
    assert cosine >= 0.99999
    assert length == pytest.approx(1.0, abs=1e-5)
    if case.correction is not None:
        assert 0 < means["correction_cut"] < 1
    if name in ("grpo", "dr_grpo", "token_mean", "bnpo"):
        compare_clipping(pair.trainer, means)


def compare_clipping(trainer: Any, means: dict[str, float]) -> None:
    """What both count. TRL's mean is over all tokens, ours over those of kept sequences."""
    logged = trainer._metrics["train"]
    kept = means["tokens"] / sum(len(c) for _, c in SEQUENCES)
    for side in ("low", "high"):
        theirs = logged[f"clip_ratio/{side}_mean"][-1]
        assert means[f"clipped_{side}"] * kept == pytest.approx(theirs, abs=1e-6)
        assert theirs > 0


def test_every_loss_of_trl_is_here() -> None:
    """TRL refuses a name it does not have; the names are those of GRPOConfig's help."""
    from dataclasses import fields

    from trl import GRPOConfig

    (loss_type,) = (item for item in fields(GRPOConfig) if item.name == "loss_type")
    for name in {case.theirs for case in CASES.values()}:
        assert f"'{name}'" in loss_type.metadata["help"]
    assert {case.loss for case in CASES.values()} == set(LOSSES)


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
    """TRL 1.16, GRPOTrainer._generate_and_score_completions, scale_rewards group, none, batch."""
    from trl.trainer.utils import nanstd

    nan = float("nan")
    scores = [[0.1, 1.1, 0.0, 1.1], [0.1, None, 1.0, 0.3], [0.5, 0.5, 0.5, 0.5]]
    groups = [
        ScoredGroup(
            Rollout(Problem("0", "", "", ""), (1,), (Completion((1,), "", "stop", 0),) * len(of)),
            tuple(Verdict(score) for score in of),
        )
        for of in scores
    ]
    rewards = torch.tensor([[nan if s is None else s for s in of] for of in scores])
    centred = rewards - torch.nanmean(rewards, dim=1, keepdim=True)
    expected = {
        "group_std": centred / (nanstd(rewards, dim=1)[:, None] + 1e-4),
        "mean_only": centred,
        "batch_std": centred / (nanstd(rewards.flatten()) + 1e-4),
    }
    for kind, of_kind in expected.items():
        for found, wanted in zip(group_advantages(groups, kind), of_kind, strict=True):
            assert found == pytest.approx(torch.nan_to_num(wanted, nan=0.0).tolist(), abs=1e-6)


def test_rloo_advantages_equal_trl() -> None:
    """TRL 1.16, RLOOTrainer: (sum of the group - r) / (G - 1) is the baseline."""
    rewards = torch.tensor([0.1, 1.1, 0.0, 1.1])
    expected = rewards - (rewards.sum() - rewards) / 3
    group = ScoredGroup(
        Rollout(Problem("0", "", "", ""), (1,), (Completion((1,), "", "stop", 0),) * 4),
        tuple(Verdict(score) for score in rewards.tolist()),
    )
    assert group_advantages([group], "rloo")[0] == pytest.approx(expected.tolist(), abs=1e-6)
