"""The schemas of the supervised stages and of pipelines. Does not import torch.

Each stage has an ordinary recipe and can be run alone. A pipeline lists stages and where the
inputs of each come from.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from r1lab.config.recipe import (
    ModelSettings,
    ProblemSettings,
    RewardSettings,
    SamplingRecipe,
)
from r1lab.config.section import (
    Dtype,
    Fraction,
    Name,
    NonNegative,
    Positive,
    RunName,
    Section,
    Seed,
)


class RowsSettings(Section):
    """A set of rows: a file, or a function that yields them."""

    path: Name = Field(
        description="source of rows: a .jsonl or .parquet file, path/to/file.py:function or "
        "package.module:function that yields rows"
    )
    num: Positive | None = Field(
        None, description="number of rows, sampled with the seed; null: all (passed to a function)"
    )


class SupervisedRecipe(Section):
    """Keys shared by the stages that train on rows with TRL's trainers."""

    name: RunName = Field(description="name of the stage: letters, digits, `.`, `_` and `-`")
    output: Name | None = Field(None, description="folder of the stage; null: runs/<name>")
    seed: Seed = Field(0, description="random seed for sampling, shuffling and initialisation")
    model: ModelSettings = ModelSettings()
    rows: tuple[RowsSettings, ...] = Field(
        (), description="sets of training rows, concatenated and shuffled"
    )
    epochs: float = Field(2.0, gt=0, le=1000, description="passes over the rows")
    batch_size: Positive = Field(32, le=10**6, description="rows per update, over all processes")
    micro_batch_size: Positive = Field(32, le=10**6, description="rows per forward pass")
    learning_rate: float = Field(
        5e-4, gt=0, le=1, description="peak learning rate, followed by cosine decay"
    )
    warmup_fraction: Fraction = Field(0.03, description="share of the updates used for warm-up")
    weight_decay: float = Field(0.0, ge=0, le=100, description="decoupled from the gradient")
    max_grad_norm: float = Field(1.0, gt=0, description="longer gradients are scaled to this norm")
    max_length: Positive | None = Field(
        None, description="maximum tokens of a row; longer rows are dropped and counted; null: the "
        "model's context length"
    )  # fmt: skip
    checkpoint_every: NonNegative = Field(
        100, description="updates between checkpoints; 0: none before the end"
    )

    @model_validator(mode="after")
    def _fits(self) -> SupervisedRecipe:
        if self.batch_size % self.micro_batch_size:
            raise ValueError(
                f"batch_size: {self.batch_size} must be a multiple of micro_batch_size "
                f"({self.micro_batch_size})"
            )
        return self

    @property
    def run_folder(self) -> str:
        """Where the stage writes: `output`, or runs/<name>."""
        return self.output or f"runs/{self.name}"


class SftRecipe(SupervisedRecipe):
    """Supervised fine-tuning on rows of `prompt` and `completion` (TRL's SFTTrainer)."""


class RewardModelRecipe(SupervisedRecipe):
    """A reward model from rows of `prompt`, `chosen` and `rejected` (TRL's RewardTrainer)."""

    epochs: float = Field(1.0, gt=0, le=1000, description="passes over the rows")
    held_out: Fraction = Field(
        0.1,
        description="share of the rows held out to measure accuracy, by a hash of the prompt",
    )


class DistilRecipe(SupervisedRecipe):
    """On-policy distillation (TRL's DistillationTrainer): the student's own samples, a teacher's
    distribution over each token of them. Rows need a `prompt` only."""

    teacher: ModelSettings = ModelSettings()
    max_tokens: Positive = Field(128, description="maximum new tokens of a student's response")
    temperature: float = Field(1.0, ge=0.01, le=100, description="the student's temperature")
    beta: Fraction = Field(
        1.0, description="0: forward KL, 1: reverse KL, between: Jensen-Shannon (arXiv 2306.13649)"
    )


class KeepSettings(Section):
    """Which sampled responses become training rows."""

    least: dict[Name, float] = Field(
        default_factory=lambda: {"accuracy": 1.0, "format": 1.0},
        description="minimum score of each reward, by name; a response to which a reward does not "
        "apply is dropped",
    )
    per_problem: Positive | None = Field(
        1, description="maximum responses kept per problem; null: all"
    )
    most_alike: Fraction = Field(
        0.8, description="drop a response if the share of three-token pieces that it has in common "
        "with another response to the problem is above this"
    )  # fmt: skip
    prefer: Literal["first", "shortest", "longest"] = Field(
        "first", description="which responses to keep if a problem has more than per_problem"
    )
    clean: Name | None = Field(
        None,
        description="function of (problem, completion) that returns the response to train on, or "
        "None to drop it: path/to/file.py:function or package.module:function",
    )


class SampleRecipe(Section):
    """Rejection sampling: filter a model's responses and write them as training rows."""

    name: RunName = Field(description="name of the stage: letters, digits, `.`, `_` and `-`")
    output: Name | None = Field(None, description="folder of the stage; null: runs/<name>")
    seed: Seed = Field(0, description="random seed for sampling")
    model: ModelSettings = ModelSettings()
    template: Name = Field(
        "compact", description="prompt template, a name in r1lab.prompts.TEMPLATES"
    )
    problems: ProblemSettings
    num_problems: Positive = Field(
        500, description="number of problems to sample, from the training split"
    )
    rewards: tuple[RewardSettings, ...] = Field(
        (RewardSettings(reward="problem"), RewardSettings(reward="format", weight=0.1)),
        min_length=1,
        description="reward functions that score the responses",
    )
    reward_workers: Positive | None = Field(
        None, le=1024, description="reward worker processes; null: one per core"
    )
    sampling: SamplingRecipe = SamplingRecipe()
    keep: KeepSettings = KeepSettings()

    @model_validator(mode="after")
    def _consistent(self) -> SampleRecipe:
        from r1lab.prompts import TEMPLATES

        if self.template not in TEMPLATES:
            raise ValueError(
                f"template: {self.template!r} is not one of {', '.join(sorted(TEMPLATES))}"
            )
        return self

    @property
    def run_folder(self) -> str:
        """Where the stage writes: `output`, or runs/<name>."""
        return self.output or f"runs/{self.name}"


StageKind = Literal["pretrain", "rl", "sft", "sample", "reward_model", "distil"]


class StageSettings(Section):
    """One stage of a pipeline."""

    kind: StageKind = Field(description="what the stage does")
    recipe: Name = Field(description="recipe of the stage, relative to the pipeline's file")
    model: Name | None = Field(
        None, description="stage whose model it starts from or samples; null: the recipe's model"
    )
    teacher: Name | None = Field(None, description="for `distil`: stage whose model is the teacher")
    rows: dict[Name, Positive | None] = Field(
        default_factory=dict,
        description="stages whose rows it trains on, in addition to the recipe's, each with the "
        "number of rows (null: all)",
    )
    reward_model: Name | None = Field(
        None, description="for `rl`: stage whose reward model the reward `reward_model` uses"
    )
    folder: Name | None = Field(
        None, description="folder of the stage; null: inside the pipeline's folder. Set it to "
        "share a stage between pipelines of several seeds"
    )  # fmt: skip
    overrides: dict[Name, Any] = Field(
        default_factory=dict, description="overrides of its recipe, by dotted key"
    )
    evaluate: bool = Field(True, description="evaluate its model on the pipeline's suites")
    minutes: float | None = Field(
        None, gt=0, description="measured duration in core-minutes, shown in the plan"
    )


class SuiteSettings(Section):
    """One suite on which every stage's model is scored."""

    name: Name = Field(description="name of the suite, as in `r1lab eval --suite`")
    overall: bool = Field(True, description="include it in the averages over all suites")


class PipelineRecipe(Section):
    """Stages that pass models and rows to one another."""

    name: RunName = Field(description="name of the pipeline: letters, digits, `.`, `_` and `-`")
    output: Name | None = Field(None, description="folder of the pipeline; null: runs/<name>")
    seed: Seed = Field(0, description="random seed of every stage")
    dtype: Dtype = Field("auto", validate_default=True, description="dtype of every stage")
    engine: Literal["vllm", "transformers"] = Field(
        "vllm", description="sampling engine of every stage"
    )
    stages: dict[RunName, StageSettings] = Field(
        min_length=1, description="the stages by name, in order"
    )
    suites: tuple[SuiteSettings, ...] = Field(
        (), description="evaluation suites for every stage's model"
    )
    num_problems: Positive = Field(100, description="problems per suite")
    num_samples: Positive = Field(8, description="k, samples per problem")
    max_tokens: Positive = Field(128, description="maximum new tokens of a response in evaluations")
    measures: dict[RunName, RewardSettings] = Field(
        default_factory=dict,
        description="rewards computed over the evaluation samples, by name",
    )
    quick: dict[Name, Any] = Field(
        default_factory=dict,
        description="overrides for --quick: STAGE.key, or a key of the pipeline (num_problems)",
    )

    @model_validator(mode="after")
    def _joined(self) -> PipelineRecipe:
        earlier: list[str] = []
        for name, stage in self.stages.items():
            links = {"model": stage.model, "teacher": stage.teacher,
                     "reward_model": stage.reward_model}  # fmt: skip
            links |= {f"rows.{other}": other for other in stage.rows}
            for key, other in links.items():
                if other is not None and other not in earlier:
                    raise ValueError(
                        f"stages.{name}.{key}: {other!r} is not an earlier stage "
                        f"({', '.join(earlier) or 'there is none'})"
                    )
            _check_link(name, "model", self.stages, stage.model, MODELS)
            _check_link(name, "teacher", self.stages, stage.teacher, MODELS)
            _check_link(name, "reward_model", self.stages, stage.reward_model, ("reward_model",))
            for other in stage.rows:
                _check_link(name, f"rows.{other}", self.stages, other, ("sample",))
            if stage.rows and stage.kind not in ("sft", "reward_model", "distil"):
                raise ValueError(f"stages.{name}.rows: not allowed for kind {stage.kind}")
            if stage.kind == "pretrain" and stage.model is not None:
                raise ValueError(f"stages.{name}.model: not allowed for kind pretrain")
            if (stage.kind == "distil") != (stage.teacher is not None):
                raise ValueError(f"stages.{name}.teacher: required for kind distil only")
            if stage.reward_model is not None and stage.kind != "rl":
                raise ValueError(f"stages.{name}.reward_model: only allowed for kind rl")
            earlier.append(name)
        return self

    @property
    def run_folder(self) -> str:
        """Where the pipeline writes: `output`, or runs/<name>."""
        return self.output or f"runs/{self.name}"


MODELS = ("pretrain", "rl", "sft", "distil")  # kinds of stage that produce a language model


def _check_link(
    name: str, key: str, stages: dict[str, StageSettings], other: str | None, kinds: tuple[str, ...]
) -> None:
    if other is not None and stages[other].kind not in kinds:
        raise ValueError(
            f"stages.{name}.{key}: {other!r} is of kind {stages[other].kind}; must be one of "
            f"{', '.join(kinds)}"
        )
