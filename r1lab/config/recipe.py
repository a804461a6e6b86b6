"""The schema of a training recipe: every key with its type, default, meaning and check.

Nothing here imports torch: a bad recipe is refused in well under a second. How files are read,
extended and overridden, and how an error becomes one line, stands in `r1lab.config.reading`.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from r1lab.config.alarms import WatchSettings
from r1lab.config.algorithm import AlgorithmSettings as AlgorithmSettings
from r1lab.config.section import (
    Dtype,
    Fraction,
    Name,
    NonNegative,
    Positive,
    RunName,
    Section,
    Seed,
    ServerUrl,
)


class LoraSettings(Section):
    """Low-rank adapters (arXiv 2106.09685) in place of full weights."""

    rank: Positive = Field(16, le=4096, description="rank r of the update B A")
    alpha: float = Field(32.0, gt=0, description="scale: the update is alpha / r * B A")
    four_bit: bool = Field(
        False,
        description="QLoRA: the base's linear layers in NF4, fused experts as they are; needs "
        "bitsandbytes",
    )
    attention: bool = Field(True, description="adapt the attention projections")
    dense: bool = Field(True, description="adapt dense and shared-expert projections")
    experts: bool = Field(True, description="adapt the routed experts' fused weights")


class ModelSettings(Section):
    """The base model and the precision it is trained in."""

    path: Name = Field("nano", description="shipped base by name, a folder, or a hub name")
    gguf_file: Name | None = Field(None, description="file inside `path` when it holds a GGUF")
    dtype: Dtype = Field(
        "auto",
        validate_default=True,
        description="working weights; auto: bfloat16 where this machine multiplies fast in it, "
        "else float32. The optimiser's copy is always float32",
    )
    attention: Literal[
        "auto", "eager", "sdpa", "flash_attention_2", "flash_attention_3", "flash_attention_4"
    ] = Field(
        "auto",
        description="the trainer's kernel; auto: sdpa where the model has it and sdpa computes it. "
        "The flash_attention ones need a GPU, and take sequences packed end to end, without "
        "padding",
    )
    lora: LoraSettings | None = Field(None, description="adapters; null trains full weights")


class SourceSettings(Section):
    """One stream of problems."""

    source: Name = Field(
        description="a shipped source (boxes, arithmetic, ...), path/to/file.py:load, "
        "package.module:load, or a .jsonl / .parquet file"
    )
    weight: float = Field(1.0, ge=1e-6, le=1e6, description="share of this source among the others")
    options: dict[str, Any] = Field(default_factory=dict, description="handed to load()")


class CurriculumSettings(Section):
    """Sampling of levels by how often they are solved (`problems.curriculum`; arXiv 2501.12599)."""

    by: Name = Field(
        "source",
        description="what makes a level: `source`, each entry of problems.sources, or a key of the "
        "problems' metadata",
    )
    target: float = Field(
        0.5,
        gt=0,
        lt=1,
        description="the pass rate p that is asked most; shares go with p^(2t) (1 - p)^(2 - 2t)",
    )
    window: Positive = Field(
        8, le=10_000, description="steps over which a level's pass rate is taken"
    )
    min_share: Fraction = Field(0.05, description="of the questions, for every level")


class ProblemSettings(Section):
    """What is asked, in training and in evaluation."""

    sources: tuple[SourceSettings, ...] = Field(
        min_length=1, description="streams of problems, mixed by their weights"
    )
    curriculum: CurriculumSettings | None = Field(
        None, description="shares of levels in training by measured pass rates; null: by weight"
    )
    seed: Seed = Field(
        0, description="of the problem streams; held-out problems do not depend on it"
    )
    leave_out_long: bool = Field(
        False,
        description="leave out rows of tables whose prompt and sampling.max_tokens do not fit the "
        "context, and say how many; false: refuse them",
    )
    check_gold: NonNegative = Field(
        64,
        le=100_000,
        description="problems, of each split, whose gold answers their own verifier has to accept "
        "before a run begins; 0: none",
    )


class RewardSettings(Section):
    """One reward and its weight in the sum."""

    reward: Name = Field(
        description="`problem` for the verifier each problem names, a shipped reward (boxes, math, "
        "format, ...), path/to/file.py:function or package.module:function"
    )
    weight: float = Field(1.0, description="of its score in the sum; 0: reported only")
    options: dict[str, Any] = Field(default_factory=dict, description="keyword arguments")
    isolate: bool = Field(
        True,
        description="run it in worker processes, under the limits below; false, in this process "
        "without limits, for a reward that needs a model or the network",
    )
    seconds: float = Field(
        5.0, gt=0, le=86_400, description="for one response; longer is a fault, no score"
    )
    memory_mib: Positive = Field(
        1024, le=2**20, description="for one response, on top of the worker's own"
    )


class CapRaise(Section):
    """A longer limit late in a run, as R1-Zero's after step 8,200 of 10,400 (arXiv 2501.12948)."""

    after_step: Positive = Field(description="steps under sampling.max_tokens before it")
    max_tokens: Positive = Field(description="new tokens of a response, at most, from then on")


class SamplingRecipe(Section):
    """How rollouts are drawn."""

    engine: Literal["vllm", "transformers", "server"] = Field(
        "vllm",
        description="in process: vllm, or transformers, slow and always there; server: those that "
        "`servers` names. Never chosen silently",
    )
    servers: tuple[ServerUrl, ...] = Field(
        (), description="addresses (http://HOST:PORT) of what `r1lab serve-sampler` started"
    )
    weights_folder: Name | None = Field(
        None, description="that trainer and servers share: weights go to the servers through it"
    )
    weight_transfer: Literal["folder", "nccl"] = Field(
        "folder", description="nccl: from GPU to GPU, by vLLM's own weight transfer"
    )
    server_patience: float = Field(
        900.0, gt=0, le=10**6, description="seconds that all servers may be away before a run stops"
    )
    max_lag: NonNegative = Field(
        0,
        le=16,
        description="steps that sampling runs ahead of training: the samples of a step come from "
        "weights that many steps old; 0: from the step's own",
    )
    questions_per_step: Positive = Field(32, le=100_000, description="P, over all processes")
    group_size: int = Field(16, ge=2, le=10_000, description="G completions of each question")
    temperature: float = Field(
        1.0, ge=0.01, le=100, description="of training's samples; log-probs are taken at it too"
    )
    top_p: float = Field(1.0, gt=0, le=1, description="1 is the only one that can be trained on")
    max_tokens: Positive = Field(128, description="new tokens of a response, at most")
    cap_raise: CapRaise | None = Field(
        None, description="a higher max_tokens late in the run, in training and evaluation"
    )
    max_model_len: Positive | None = Field(
        None, description="prompt and response together, at most; null: what the model allows"
    )
    kv_cache_gib: float = Field(
        1.0, gt=0, le=10_000, description="vLLM's cache on the CPU, per process"
    )
    gpu_memory_utilization: float = Field(0.45, gt=0, lt=1, description="vLLM's share of a GPU")

    @model_validator(mode="after")
    def _servers_are_named(self) -> SamplingRecipe:
        if self.engine != "server":
            if self.servers:
                raise ValueError(
                    f"servers: named, and engine is {self.engine!r}; set engine to server, or take "
                    "them out"
                )
            return self
        if not self.servers:
            raise ValueError("servers: engine 'server' needs the address of one at least")
        if len(set(self.servers)) < len(self.servers):
            raise ValueError("servers: one is named twice")
        if self.weight_transfer == "folder" and self.weights_folder is None:
            raise ValueError(
                "weights_folder: missing; name a folder that this machine and the servers share"
            )
        return self

    @model_validator(mode="after")
    def _is_a_raise(self) -> SamplingRecipe:
        if self.cap_raise is not None and self.cap_raise.max_tokens <= self.max_tokens:
            raise ValueError(
                f"cap_raise.max_tokens: {self.cap_raise.max_tokens} must be above max_tokens "
                f"({self.max_tokens})"
            )
        return self

    def max_tokens_after(self, steps: int) -> int:
        """The limit of a response once so many steps have been taken."""
        raised = self.cap_raise is not None and steps >= self.cap_raise.after_step
        return self.most_tokens if raised else self.max_tokens

    @property
    def most_tokens(self) -> int:
        """The highest limit of a response over the whole run."""
        return self.max_tokens if self.cap_raise is None else self.cap_raise.max_tokens


class OptimizerSettings(Section):
    """AdamW (arXiv 1711.05101) on a float32 copy of the weights."""

    learning_rate: float = Field(3e-4, gt=0, le=1, description="at its highest")
    schedule: Literal["constant", "linear", "cosine"] = Field(
        "constant", description="of the learning rate after the warm-up"
    )
    final_fraction: Fraction = Field(0.1, description="of the learning rate, at the last step")
    warmup_steps: NonNegative = Field(3, description="over which the learning rate rises")
    beta1: float = Field(0.9, ge=0, lt=1, description="decay of the first moment")
    beta2: float = Field(0.99, ge=0, lt=1, description="decay of the second moment")
    epsilon: float = Field(1e-8, gt=0, lt=1, description="added to the root of the second moment")
    weight_decay: float = Field(0.0, ge=0, le=100, description="decoupled from the gradient")
    max_grad_norm: float = Field(1.0, gt=0, description="longer gradients are scaled to this norm")


class EvaluationSettings(Section):
    """Held-out problems, before, during and after."""

    every: NonNegative = Field(10, description="steps between them; 0: before and after only")
    num_problems: Positive = Field(
        200, le=1_000_000, description="held-out problems, the same ones each time"
    )
    num_samples: Positive = Field(16, le=100_000, description="k samples of each problem")
    temperature: float = Field(1.0, ge=0.01, le=100, description="of those samples")
    top_p: float = Field(1.0, gt=0, le=1, description="of those samples")
    greedy: bool = Field(True, description="also score one greedy answer before and after")
    seed: Seed = Field(1234, description="of the held-out problems and of their sampling")


class CheckpointSettings(Section):
    """When the run's state is written, and how much of it is kept."""

    every: NonNegative = Field(20, description="steps between checkpoints; 0: the last step only")
    keep: Positive = Field(2, description="the newest N stay")


class TrackingSettings(Section):
    """Where metrics go beside the run folder."""

    trackers: tuple[Name, ...] = Field(
        ("tensorboard",), description="names that accelerate knows: tensorboard, wandb, ..."
    )


class TrainRecipe(Section):
    """A whole training run."""

    name: RunName = Field(description="letters, digits, `.`, `_` and `-`")
    output: Name | None = Field(None, description="the run folder; null: runs/<name>")
    resume: Literal["never", "auto"] = Field(
        "never",
        description="auto: go on where the run folder holds a run already, as with --resume",
    )
    seed: Seed = Field(0, description="of everything that is drawn in training")
    steps: Positive = Field(60, description="rollouts, each followed by its updates")
    model: ModelSettings = ModelSettings()
    template: Name = Field("compact", description="a name of r1lab.prompts.TEMPLATES")
    problems: ProblemSettings
    rewards: tuple[RewardSettings, ...] = Field(
        (RewardSettings(reward="problem"), RewardSettings(reward="format", weight=0.1)),
        min_length=1,
        description="added up by their weights",
    )
    reward_workers: Positive | None = Field(
        None,
        le=1024,
        description="processes that run rewards, for each training process; null: its cores",
    )
    max_fault_share: Fraction = Field(
        0.5,
        description="of a step's responses that rewards may fail to score (killed, raised); "
        "more stop the run",
    )
    sampling: SamplingRecipe = SamplingRecipe()
    algorithm: AlgorithmSettings = AlgorithmSettings()
    optimizer: OptimizerSettings = OptimizerSettings()
    evaluation: EvaluationSettings = EvaluationSettings()
    checkpoints: CheckpointSettings = CheckpointSettings()
    watch: WatchSettings = WatchSettings()
    tracking: TrackingSettings = TrackingSettings()

    @model_validator(mode="after")
    def _consistent(self) -> TrainRecipe:
        from r1lab.prompts import TEMPLATES

        if self.template not in TEMPLATES:
            raise ValueError(
                f"template: {self.template!r} is not one of {', '.join(sorted(TEMPLATES))}"
            )
        if self.sampling.top_p != 1:
            # The trainer's log-probs are of the whole distribution; so must the sampler's be.
            raise ValueError(
                f"sampling.top_p: {self.sampling.top_p} would train on another distribution than "
                "it samples from; only 1 is possible here (evaluation.top_p is free)"
            )
        if not any(reward.weight for reward in self.rewards):
            raise ValueError(
                "rewards: every weight is 0, so that every response scores the same and nothing "
                "is learnt; give one of them a weight"
            )
        limit, longest = self.sampling.max_model_len, self.sampling.most_tokens
        if limit is not None and limit <= longest:
            raise ValueError(
                f"sampling.max_model_len: {limit} leaves no room for a prompt beside "
                f"sampling.max_tokens ({longest}); lower max_tokens, or raise it as far as the "
                "model has positions"
            )
        cap_raise = self.sampling.cap_raise
        if cap_raise is not None and cap_raise.after_step >= self.steps:
            raise ValueError(
                f"sampling.cap_raise.after_step: {cap_raise.after_step} is never reached in "
                f"{self.steps} steps"
            )
        if self.sampling.max_lag and self.algorithm.correction == "none":
            raise ValueError(
                f"sampling.max_lag: {self.sampling.max_lag} trains on samples of earlier weights, "
                "which algorithm.correction must put right; set that to token_truncate"
            )
        if self.sampling.max_lag and self.algorithm.dynamic_sampling:
            raise ValueError(
                f"sampling.max_lag: {self.sampling.max_lag} is not possible with "
                "algorithm.dynamic_sampling, whose left-over groups would be older than that; "
                "set one of the two to 0 or false"
            )
        if self.sampling.engine == "server" and self.algorithm.router_replay == "sampler":
            raise ValueError(
                "algorithm.router_replay: 'sampler' is not possible with sampling.engine server; "
                "take 'old' or 'none'"
            )
        if self.sampling.questions_per_step < self.algorithm.num_minibatches:
            raise ValueError(
                f"algorithm.num_minibatches: {self.algorithm.num_minibatches} is more than "
                f"sampling.questions_per_step ({self.sampling.questions_per_step})"
            )
        return self

    @property
    def run_folder(self) -> str:
        """Where the run writes: `output`, or runs/<name>."""
        return self.output or f"runs/{self.name}"


class CorpusSettings(Section):
    """What a base is pre-trained on."""

    source: Name = Field(
        "r1lab.data.corpus:documents", description="path/to/file.py:load or package.module:load"
    )
    options: dict[str, Any] = Field(default_factory=dict, description="the corpus's dials")


class PretrainRecipe(Section):
    """Pre-training of a small V3-style base from nothing."""

    name: RunName = Field(description="letters, digits, `.`, `_` and `-`")
    output: Name | None = Field(None, description="the run folder; null: runs/<name>")
    seed: Seed = Field(0, description="of the corpus and of the first weights")
    size: Literal["pico", "nano", "micro", "lite", "v3", "dense", "dense-small"] = Field(
        "nano", description="V3-style, or dense (Llama's architecture), see r1lab.model.config"
    )
    corpus: CorpusSettings = CorpusSettings()
    tokens: int = Field(gt=0, le=10**15, description="tokens of the corpus, prompts included")
    tokens_per_batch: Positive = Field(4096, description="of one update")
    row_length: int = Field(
        256, ge=16, le=10**6, description="documents are packed into rows of this length"
    )
    prompt_loss_weight: Fraction = Field(
        0.1, description="of a question's tokens: they are random and teach little"
    )
    learning_rate: float = Field(2e-3, gt=0, le=1, description="at its highest")
    final_fraction: Fraction = Field(0.03, description="of the learning rate, at the end")
    warmup_steps: NonNegative = Field(50, description="over which the learning rate rises")
    flat_until: float = Field(
        0.6, ge=0, lt=1, description="share of the run before the decay begins"
    )
    beta1: float = Field(0.9, ge=0, lt=1, description="decay of the first moment")
    beta2: float = Field(0.95, ge=0, lt=1, description="decay of the second moment")
    weight_decay: float = Field(0.05, ge=0, le=100, description="decoupled from the gradient")
    max_grad_norm: float = Field(1.0, gt=0, description="longer gradients are scaled to this norm")
    router_bias_speed: float = Field(
        1e-3,
        ge=0,
        le=1,
        description="of the experts' bias towards an even load (arXiv 2412.19437: 0.001, then 0)",
    )
    dtype: Dtype = Field(
        "auto", validate_default=True, description="working weights; see model.dtype of training"
    )
    checkpoint_every: Positive = Field(500, description="steps between saved states")
    card_problems: NonNegative = Field(
        200, description="held-out problems of each kind scored for the model card; 0: none"
    )
    card_sources: tuple[Name, ...] = Field(
        ("boxes", "arithmetic", "division", "derivations"),
        min_length=1,
        description="the kinds of problem that are scored for the card",
    )
    card_engine: Literal["vllm", "transformers"] = Field("vllm", description="that samples them")

    @property
    def run_folder(self) -> str:
        """Where the run writes: `output`, or runs/<name>."""
        return self.output or f"runs/{self.name}"
