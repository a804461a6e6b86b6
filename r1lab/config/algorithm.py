"""The section `algorithm` of a training recipe: loss, advantage and their settings."""

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
        1.0, ge=1e-3, le=100, description="gate temperature for advantages above 0"
    )
    temperature_negative: float = Field(
        1.05, ge=1e-3, le=100, description="gate temperature for advantages of 0 or below"
    )


class VespoSettings(Section):
    """The weight W^k e^(lambda (1 - W)) of the loss vespo (arXiv 2602.10693)."""

    k_positive: float = Field(2.0, gt=0, le=100, description="k for advantages of 0 or above")
    lambda_positive: float = Field(
        3.0, gt=0, le=100, description="lambda for advantages of 0 or above"
    )
    k_negative: float = Field(3.0, gt=0, le=100, description="k for advantages below 0")
    lambda_negative: float = Field(2.0, gt=0, le=100, description="lambda for advantages below 0")


class AlgorithmSettings(Section):
    """GRPO and its variants. docs/algorithms.md lists the papers and equations."""

    loss: Name = Field(
        "token_mean",
        examples=[*get_args(LossName), "path/to/file.py:function"],
        description="policy loss. GRPO's clipped term averaged per output, then over outputs "
        "(grpo), divided by a constant (dr_grpo), averaged over all tokens of the step "
        "(token_mean: DAPO) or of the mini-batch (bnpo); with one ratio per sequence (gspo, "
        "luspo), clipped weights (cispo), a soft gate (sapo) or a sequence weight (vespo); or "
        "your own (docs/howto/own-loss.md)",
    )
    advantage: Name = Field(
        "group_std",
        examples=[*get_args(AdvantageName), "path/to/file.py:function"],
        description="advantage estimator: (r - mean) / std of the group, r - mean (Dr. GRPO), "
        "(r - mean) / std of all scores, r - mean of the others (RLOO), (r - mean) / its std over "
        "the step (REINFORCE++); or your own (docs/howto/own-loss.md)",
    )
    clip_low: float = Field(0.2, gt=0, le=1, description="the ratio is clipped at 1 - clip_low")
    clip_high: float = Field(
        0.2,
        gt=0,
        le=100,
        description="the ratio (cispo: its weight) is clipped at 1 + clip_high",
    )
    ratio_cap: float | None = Field(
        None,
        gt=1,
        le=1000,
        description="dual clip: upper bound on the ratio for negative advantages; null: none",
    )
    importance_level: Literal["token", "sequence"] | None = Field(
        None, description="one ratio per token or per sequence; null: the loss's own choice"
    )
    sapo: SapoSettings = SapoSettings()
    vespo: VespoSettings = VespoSettings()
    kl_coefficient: float = Field(
        0.0,
        ge=0,
        le=100,
        description="weight of the k3 estimate of KL(policy, reference); 0: no reference model",
    )
    kl_corrected: bool = Field(
        False,
        description="multiply the KL estimate by the ratio (the unbiased estimate of "
        "DeepSeek-V3.2)",
    )
    reference_every: NonNegative = Field(
        0, description="steps between updates of the reference to the policy; 0: keep the base"
    )
    overlong_filter: bool = Field(
        False, description="exclude responses cut off at max_tokens from the loss"
    )
    correction: Literal[
        "none", "token_truncate", "token_mask", "sequence_truncate", "sequence_mask"
    ] = Field(
        "none",
        description="importance weights for the mismatch between sampler and trainer: truncated "
        "at (truncate), or set to 0 outside (mask), the bounds correction_low and correction_high",
    )
    correction_low: float | None = Field(
        None, gt=0, lt=1, description="lower bound of the correction weights; null: none"
    )
    correction_high: float | None = Field(
        2.0, gt=1, le=1000, description="upper bound of the correction weights; null: none"
    )
    dynamic_sampling: bool = Field(
        False,
        description="drop groups whose scores are all equal and sample further prompts in their "
        "place, while other groups are still being sampled (DAPO)",
    )
    max_refills: Positive = Field(
        3,
        le=100,
        description="maximum number of further prompts in a step, as a multiple of "
        "questions_per_step; the step then continues with the groups it has",
    )
    router_bias_speed: float = Field(
        0.0,
        ge=0,
        le=1,
        description="update speed of the routing bias that balances expert load (DeepSeek-V3); "
        "0: fixed bias",
    )
    router_replay: Literal["none", "old", "sampler"] = Field(
        "none",
        description="reuse each token's routed experts from the forward pass of the old log-probs "
        "(old) or from the sampler (sampler; not with vLLM on a CPU)",
    )
    num_epochs: Positive = Field(1, le=1000, description="passes over each rollout")
    num_minibatches: Positive = Field(
        1, description="random mini-batches per epoch, each with one optimiser update"
    )
    tokens_per_microbatch: Positive = Field(
        2048,
        description="padded tokens per forward pass; lower it if memory runs out, raise it on GPUs",
    )
    max_skipped: Positive = Field(
        3, description="consecutive updates without a finite gradient that stop the run"
    )
    max_sync_kl: float | None = Field(
        None,
        gt=0,
        description="upper bound on the k3 estimate of KL(sampler, trainer); null: five times the "
        "baseline measured at the start",
    )

    @field_validator("loss", mode="before")
    @classmethod
    def _dapo_is_more_than_a_loss(cls, value: object) -> object:
        if value == "dapo":
            raise ValueError(
                "'dapo' (TRL's name) is called token_mean here; recipes/algorithms/dapo.yaml is "
                "the full DAPO recipe"
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
            raise ValueError(
                f"ratio_cap: not supported by {self.loss}, which has no clip; use null"
            )
        if self.ratio_cap is not None and self.ratio_cap <= 1 + self.clip_high:
            raise ValueError(
                f"ratio_cap: {self.ratio_cap} must be above 1 + clip_high ({1 + self.clip_high:g})"
            )
        if self.loss == "vespo" and self.importance_level is not None:
            raise ValueError(
                "importance_level: not supported by vespo, which weights whole sequences; use null"
            )
        if self.loss == "vespo" and self.correction.startswith("sequence"):
            raise ValueError(
                f"correction: {self.correction} is not supported by vespo, which multiplies token "
                "weights; use token_truncate, token_mask or none"
            )
        if self.reference_every and not self.kl_coefficient:
            raise ValueError(
                "reference_every: has no effect while kl_coefficient is 0; set it to 0 or set "
                "kl_coefficient"
            )
        if self.router_replay == "old" and self.updates_per_step == 1:
            raise ValueError(
                "router_replay: old has no effect with a single update per step; raise "
                "num_minibatches or num_epochs, or set it to none"
            )
        return self

    @property
    def updates_per_step(self) -> int:
        """Number of optimiser updates per rollout."""
        return self.num_minibatches * self.num_epochs
