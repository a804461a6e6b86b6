"""The algorithm of a training recipe: its loss, its advantage, and what goes with them."""

from __future__ import annotations

from typing import Literal, get_args

from pydantic import Field, ValidationInfo, field_validator, model_validator

from r1lab.config.section import Name, NonNegative, Positive, Section

LossName = Literal[
    "grpo", "dr_grpo", "token_mean", "bnpo", "gspo", "luspo", "cispo", "sapo", "vespo"
]

AdvantageName = Literal["group_std", "mean_only", "batch_std", "rloo", "reinforce_pp"]


class SapoSettings(Section):
    """The soft gate of the loss sapo (arXiv 2511.20347)."""

    temperature_positive: float = Field(
        1.0, ge=1e-3, le=100, description="where the advantage is above 0"
    )
    temperature_negative: float = Field(1.05, ge=1e-3, le=100, description="elsewhere")


class VespoSettings(Section):
    """The weight W^k e^(lambda (1 - W)) of the loss vespo (arXiv 2602.10693)."""

    k_positive: float = Field(2.0, gt=0, le=100, description="where the advantage is 0 or more")
    lambda_positive: float = Field(3.0, gt=0, le=100, description="likewise")
    k_negative: float = Field(3.0, gt=0, le=100, description="where it is below 0")
    lambda_negative: float = Field(2.0, gt=0, le=100, description="likewise")


class AlgorithmSettings(Section):
    """GRPO and its relatives: docs/algorithms.md has the papers and equations."""

    loss: Name = Field(
        "token_mean",
        examples=[*get_args(LossName), "path/to/file.py:function"],
        description="GRPO's clipped term averaged per output, then over outputs (grpo), over a "
        "constant (dr_grpo), over all tokens of the step (token_mean: DAPO) or of the mini-batch "
        "(bnpo); with one ratio a sequence (gspo, luspo); with clipped weights (cispo), a soft "
        "gate (sapo), a weight of the whole sequence (vespo); or your own (docs/howto/own-loss.md)",
    )
    advantage: Name = Field(
        "group_std",
        examples=[*get_args(AdvantageName), "path/to/file.py:function"],
        description="(r - mean) / std of the group, r - mean (Dr. GRPO), (r - mean) / std of all "
        "scores, r - mean of the others (RLOO), (r - mean) / its std over the step "
        "(REINFORCE++); or your own (docs/howto/own-loss.md)",
    )
    clip_low: float = Field(0.2, gt=0, le=1, description="ratio clipped below at 1 - clip_low")
    clip_high: float = Field(
        0.2, gt=0, le=100, description="ratio clipped above at 1 + clip_high (cispo: its weight)"
    )
    ratio_cap: float | None = Field(
        None,
        gt=1,
        le=1000,
        description="two-sided clip: what the ratio counts at most where the advantage is negative",
    )
    importance_level: Literal["token", "sequence"] | None = Field(
        None, description="one ratio a token or a sequence; null: as the loss has it"
    )
    sapo: SapoSettings = SapoSettings()
    vespo: VespoSettings = VespoSettings()
    kl_coefficient: float = Field(
        0.0,
        ge=0,
        le=100,
        description="weight of the k3 estimate of KL(policy, reference); 0: no reference",
    )
    kl_corrected: bool = Field(
        False, description="times the ratio: the unbiased estimate of DeepSeek-V3.2"
    )
    reference_every: NonNegative = Field(
        0, description="steps after which the reference becomes the policy; 0: it stays the base"
    )
    overlong_filter: bool = Field(
        False, description="leave responses that were cut off at max_tokens out of the loss"
    )
    correction: Literal[
        "none", "token_truncate", "token_mask", "sequence_truncate", "sequence_mask"
    ] = Field(
        "none",
        description="weights for the gap between sampler and trainer, cut off at, or 0 outside, "
        "the two bounds below",
    )
    correction_low: float | None = Field(
        None, gt=0, lt=1, description="lower bound of those weights; null: none"
    )
    correction_high: float | None = Field(
        2.0, gt=1, le=1000, description="upper bound of those weights; null: none"
    )
    dynamic_sampling: bool = Field(
        False,
        description="throw groups away whose scores are all equal, and ask further questions in "
        "their place, while others are still being sampled (DAPO)",
    )
    max_refills: Positive = Field(
        3,
        le=100,
        description="further questions of a step, at most, as a multiple of its own; then it goes "
        "on with the groups it has",
    )
    router_bias_speed: float = Field(
        0.0,
        ge=0,
        le=1,
        description="of the experts' bias towards an even load (DeepSeek-V3); 0: it stays fixed",
    )
    router_replay: Literal["none", "old", "sampler"] = Field(
        "none",
        description="hold the experts of each token to those of the forward that gave the old "
        "log-probs (old), or to the sampler's (sampler; not with vLLM on a CPU)",
    )
    num_epochs: Positive = Field(1, le=1000, description="times that a rollout is gone through")
    num_minibatches: Positive = Field(
        1, description="optimiser updates of one rollout in each epoch, on random parts of it"
    )
    tokens_per_microbatch: Positive = Field(
        2048,
        description="padded tokens of one forward; lower it when memory runs out, raise it on GPUs",
    )
    max_skipped: Positive = Field(
        3, description="updates in a row without a finite gradient that stop the run"
    )
    max_sync_kl: float | None = Field(
        None,
        gt=0,
        description="bound on the k3 estimate of KL(sampler, trainer); null: five times the floor "
        "measured at the start",
    )

    @field_validator("loss", mode="before")
    @classmethod
    def _dapo_is_more_than_a_loss(cls, value: object) -> object:
        if value == "dapo":
            raise ValueError(
                "'dapo', as TRL calls it, is token_mean here; recipes/algorithms/dapo.yaml has all "
                "of DAPO"
            )
        return value

    @field_validator("loss", "advantage")
    @classmethod
    def _is_shipped_or_a_path(cls, name: str, info: ValidationInfo) -> str:
        names = get_args(LossName if info.field_name == "loss" else AdvantageName)
        place, _, function = name.partition(":")
        if name not in names and not (place.endswith(".py") or function):
            raise ValueError(
                f"{name!r} is not one of {', '.join(names)}, or path/to/file.py:function"
            )
        return name

    @model_validator(mode="after")
    def _consistent(self) -> AlgorithmSettings:
        clipped = self.loss not in ("cispo", "sapo", "vespo")
        if self.ratio_cap is not None and not clipped:
            raise ValueError(f"ratio_cap: {self.loss} has no clip that it could bound; set it null")
        if self.ratio_cap is not None and self.ratio_cap <= 1 + self.clip_high:
            raise ValueError(
                f"ratio_cap: {self.ratio_cap} must be above 1 + clip_high ({1 + self.clip_high:g})"
            )
        if self.loss == "vespo" and self.importance_level is not None:
            raise ValueError(
                "importance_level: vespo weighs whole sequences by itself; set it null"
            )
        if self.loss == "vespo" and self.correction.startswith("sequence"):
            raise ValueError(
                f"correction: {self.correction} is not possible with vespo, which multiplies "
                "tokens' weights; take token_truncate, token_mask or none"
            )
        if self.reference_every and not self.kl_coefficient:
            raise ValueError(
                "reference_every: nothing is compared with the reference while kl_coefficient is 0"
            )
        if self.router_replay == "old" and self.updates_per_step == 1:
            raise ValueError(
                "router_replay: old does nothing with a single update a step; raise "
                "num_minibatches or num_epochs, or set it to none"
            )
        return self

    @property
    def updates_per_step(self) -> int:
        """Optimiser updates of one rollout."""
        return self.num_minibatches * self.num_epochs
