"""The schemas of the supervised stages and of a pipeline that joins them: no torch.

A stage has an ordinary recipe of its own, and can be run alone; a pipeline says which stages there
are and where the inputs of each come from.
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
    """A set of rows: a file, or a function that makes them."""

    path: Name = Field(
        description="a .jsonl or .parquet file, path/to/file.py:function or "
        "package.module:function that yields rows"
    )
    num: Positive | None = Field(
        None, description="rows of it, drawn by the seed; null: all (a function is given it)"
    )


class SupervisedRecipe(Section):
    """What the stages have in common that train on rows, with TRL's trainers."""

    name: RunName = Field(description="letters, digits, `.`, `_` and `-`")
    output: Name | None = Field(None, description="the stage's folder; null: runs/<name>")
    seed: Seed = 0
    model: ModelSettings = ModelSettings()
    rows: tuple[RowsSettings, ...] = Field(
        (), description="what is trained on, taken together and shuffled"
    )
    epochs: float = Field(2.0, gt=0, le=1000, description="times that each row is seen")
    batch_size: Positive = Field(32, le=10**6, description="rows an update, over all processes")
    micro_batch_size: Positive = Field(32, le=10**6, description="rows a forward pass")
    learning_rate: float = Field(5e-4, gt=0, le=1, description="at its highest; then a cosine")
    warmup_fraction: Fraction = Field(0.03, description="of the updates")
    weight_decay: float = Field(0.0, ge=0, le=100)
    max_grad_norm: float = Field(1.0, gt=0)
    max_length: Positive | None = Field(
        None, description="tokens of a row; longer ones are left out, and counted; null: the "
        "model's context"
    )  # fmt: skip
    checkpoint_every: NonNegative = Field(
        100, description="updates between saved states; 0: none before the end"
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

    epochs: float = Field(1.0, gt=0, le=1000, description="times that each row is seen")
    held_out: Fraction = Field(
        0.1, description="of the rows, chosen by a hash of the prompt: they measure its accuracy"
    )


class DistilRecipe(SupervisedRecipe):
    """On-policy distillation (TRL's DistillationTrainer): the student's own samples, a teacher's
    distribution over each token of them. Rows need a `prompt` only."""

    teacher: ModelSettings = ModelSettings()
    max_tokens: Positive = Field(128, description="new tokens of a student's response")
    temperature: float = Field(1.0, ge=0.01, le=100)
    beta: Fraction = Field(
        1.0, description="0: forward KL, 1: reverse KL, between: Jensen-Shannon (arXiv 2306.13649)"
    )


class KeepSettings(Section):
    """Which sampled responses become rows to train on."""

    least: dict[Name, float] = Field(
        default_factory=lambda: {"accuracy": 1.0, "format": 1.0},
        description="the least score of each reward, by its name; a reward that does not apply "
        "keeps the response out",
    )
    per_problem: Positive | None = Field(1, description="responses of a problem; null: all")
    most_alike: Fraction = Field(
        0.8, description="of two responses to a problem, the share of common three-token pieces "
        "above which one is left out"
    )  # fmt: skip
    prefer: Literal["first", "shortest", "longest"] = Field(
        "first", description="which of a problem's responses are kept, where there are more"
    )
    clean: Name | None = Field(
        None,
        description="path/to/file.py:function or package.module:function over (problem, "
        "completion): the response as it is to be learnt, or None to leave it out",
    )


class SampleRecipe(Section):
    """Rejection sampling: what a model answers, filtered and written as rows to train on."""

    name: RunName = Field(description="letters, digits, `.`, `_` and `-`")
    output: Name | None = Field(None, description="the stage's folder; null: runs/<name>")
    seed: Seed = 0
    model: ModelSettings = ModelSettings()
    template: Name = Field("compact", description="a name of r1lab.prompts.TEMPLATES")
    problems: ProblemSettings
    num_problems: Positive = Field(500, description="that are asked, from the training split")
    rewards: tuple[RewardSettings, ...] = Field(
        (RewardSettings(reward="problem"), RewardSettings(reward="format", weight=0.1)),
        min_length=1,
    )
    reward_workers: Positive | None = Field(None, le=1024)
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

    kind: StageKind
    recipe: Name = Field(description="its recipe, beside the pipeline's file")
    model: Name | None = Field(
        None, description="the stage whose model it starts from or samples; null: the recipe's own"
    )
    teacher: Name | None = Field(None, description="of `distil`: the stage whose model teaches")
    rows: dict[Name, Positive | None] = Field(
        default_factory=dict,
        description="stages whose rows it trains on, each with their number or null for all, "
        "beside the recipe's own",
    )
    reward_model: Name | None = Field(
        None, description="of `rl`: the stage whose reward model the reward `reward_model` asks"
    )
    folder: Name | None = Field(
        None, description="where it lies; null: below the pipeline's folder. For what pipelines "
        "of several seeds share"
    )  # fmt: skip
    overrides: dict[Name, Any] = Field(
        default_factory=dict, description="keys of its recipe, dotted"
    )
    evaluate: bool = Field(True, description="its model on the pipeline's suites")
    minutes: float | None = Field(
        None, gt=0, description="of one core that it took where that was measured, for the plan"
    )


class SuiteSettings(Section):
    """One suite on which every stage's model is scored."""

    name: Name = Field(description="as `r1lab eval --suite` takes it")
    overall: bool = Field(True, description="counts in the figures over all suites")


class PipelineRecipe(Section):
    """Stages that hand models and rows to one another."""

    name: RunName = Field(description="letters, digits, `.`, `_` and `-`")
    output: Name | None = Field(None, description="the pipeline's folder; null: runs/<name>")
    seed: Seed = 0
    dtype: Dtype = Field("auto", validate_default=True, description="of every stage")
    engine: Literal["vllm", "transformers"] = Field("vllm", description="that samples everywhere")
    stages: dict[RunName, StageSettings] = Field(min_length=1)
    suites: tuple[SuiteSettings, ...] = ()
    num_problems: Positive = Field(100, description="of each suite")
    num_samples: Positive = Field(8, description="k samples of each problem")
    max_tokens: Positive = Field(128, description="new tokens of a response in evaluations")
    measures: dict[RunName, RewardSettings] = Field(
        default_factory=dict,
        description="rewards that are computed over the samples of the evaluations, by name",
    )
    quick: dict[Name, Any] = Field(
        default_factory=dict,
        description="what --quick changes: STAGE.key, dotted, or num_problems and num_samples",
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
                        f"stages.{name}.{key}: {other!r} is no stage before it "
                        f"({', '.join(earlier) or 'there is none'})"
                    )
            _check_link(name, "model", self.stages, stage.model, MODELS)
            _check_link(name, "teacher", self.stages, stage.teacher, MODELS)
            _check_link(name, "reward_model", self.stages, stage.reward_model, ("reward_model",))
            for other in stage.rows:
                _check_link(name, f"rows.{other}", self.stages, other, ("sample",))
            if stage.rows and stage.kind not in ("sft", "reward_model", "distil"):
                raise ValueError(f"stages.{name}.rows: a stage of kind {stage.kind} trains on none")
            if stage.kind == "pretrain" and stage.model is not None:
                raise ValueError(f"stages.{name}.model: pre-training starts from nothing")
            if (stage.kind == "distil") != (stage.teacher is not None):
                raise ValueError(f"stages.{name}.teacher: a stage of kind distil has one, and only")
            if stage.reward_model is not None and stage.kind != "rl":
                raise ValueError(f"stages.{name}.reward_model: only rl asks one")
            earlier.append(name)
        return self

    @property
    def run_folder(self) -> str:
        """Where the pipeline writes: `output`, or runs/<name>."""
        return self.output or f"runs/{self.name}"


MODELS = ("pretrain", "rl", "sft", "distil")  # kinds of stage that leave a language model


def _check_link(
    name: str, key: str, stages: dict[str, StageSettings], other: str | None, kinds: tuple[str, ...]
) -> None:
    if other is not None and stages[other].kind not in kinds:
        raise ValueError(
            f"stages.{name}.{key}: {other!r} is of kind {stages[other].kind}; one of "
            f"{', '.join(kinds)} is needed"
        )
