"""The schema of a training recipe: every key with its type, default, description and checks.

Nothing here imports torch, so a bad recipe is refused in well under a second. Reading, extending
and overriding files, and one-line errors, are in `r1lab.config.reading`.
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
    """Low-rank adapters (arXiv 2106.09685) instead of full weights."""

    rank: Positive = Field(16, le=4096, description="rank r of the update B A")
    alpha: float = Field(32.0, gt=0, description="scale: the update is alpha / r * B A")
    four_bit: bool = Field(
        False,
        description="QLoRA: quantize the base's linear layers to NF4 (fused experts are not "
        "quantized); needs bitsandbytes",
    )
    attention: bool = Field(True, description="adapt the attention projections")
    dense: bool = Field(True, description="adapt dense and shared-expert projections")
    experts: bool = Field(True, description="adapt the routed experts' fused weights")


class ModelSettings(Section):
    """The base model and its training precision."""

    path: Name = Field(
        "nano", description="base model: name of a shipped one, a folder, or a hub name"
    )
    gguf_file: Name | None = Field(None, description="GGUF file inside `path`; null: none")
    dtype: Dtype = Field(
        "auto",
        validate_default=True,
        description="dtype of the working weights; auto: bfloat16 if this machine has fast "
        "bfloat16 arithmetic, else float32. The optimiser's copy is always float32",
    )
    attention: Literal[
        "auto", "eager", "sdpa", "flash_attention_2", "flash_attention_3", "flash_attention_4"
    ] = Field(
        "auto",
        description="attention kernel of the trainer; auto: sdpa if it supports the model. The "
        "flash_attention kernels need a GPU and use packed sequences without padding",
    )
    lora: LoraSettings | None = Field(
        None, description="low-rank adapters; null: train the full weights"
    )


class SourceSettings(Section):
    """One stream of problems."""

    source: Name = Field(
        description="problem source: a shipped one (boxes, arithmetic, ...), "
        "path/to/file.py:load, package.module:load, or a .jsonl / .parquet file"
    )
    weight: float = Field(
        1.0, ge=1e-6, le=1e6, description="relative sampling weight of this source"
    )
    options: dict[str, Any] = Field(
        default_factory=dict, description="keyword arguments passed to load()"
    )


class CurriculumSettings(Section):
    """Sampling of levels by their pass rates (`problems.curriculum`; arXiv 2501.12599)."""

    by: Name = Field(
        "source",
        description="definition of a level: `source` (each entry of problems.sources is one) or a "
        "key of the problems' metadata",
    )
    target: float = Field(
        0.5,
        gt=0,
        lt=1,
        description="pass rate t that is sampled most; a level with pass rate p gets a share "
        "proportional to p^(2t) (1 - p)^(2 - 2t)",
    )
    window: Positive = Field(
        8, le=10_000, description="steps over which a level's pass rate is measured"
    )
    min_share: Fraction = Field(0.05, description="minimum share of the prompts for every level")


class ProblemSettings(Section):
    """The problems of training and evaluation."""

    sources: tuple[SourceSettings, ...] = Field(
        min_length=1, description="streams of problems, mixed by their weights"
    )
    curriculum: CurriculumSettings | None = Field(
        None, description="sample levels by measured pass rates in training; null: by weight"
    )
    seed: Seed = Field(
        0, description="random seed of the problem streams; held-out problems do not depend on it"
    )
    leave_out_long: bool = Field(
        False,
        description="drop table rows whose prompt plus sampling.max_tokens exceeds the context, "
        "and report how many; false: refuse to start",
    )
    check_gold: NonNegative = Field(
        64,
        le=100_000,
        description="problems of each split whose gold answers are checked against their verifier "
        "before a run starts; 0: none",
    )


class RewardSettings(Section):
    """One reward and its weight in the sum."""

    reward: Name = Field(
        description="reward function: `problem` for the verifier that each problem names, a "
        "shipped one (boxes, math, format, ...), path/to/file.py:function or "
        "package.module:function"
    )
    weight: float = Field(1.0, description="weight of its score in the sum; 0: report only")
    options: dict[str, Any] = Field(
        default_factory=dict, description="keyword arguments of the reward"
    )
    isolate: bool = Field(
        True,
        description="run it in worker processes with the limits `seconds` and `memory_mib`; "
        "false: in this process without limits, for a reward that needs a model or the network",
    )
    seconds: float = Field(
        5.0,
        gt=0,
        le=86_400,
        description="time limit per response, in seconds; on timeout the response is marked as "
        "failed and gets no score",
    )
    memory_mib: Positive = Field(
        1024,
        le=2**20,
        description="memory limit per response, in MiB on top of the worker's own memory",
    )


class CapRaise(Section):
    """A higher limit late in a run, as R1-Zero's after step 8,200 of 10,400 (arXiv 2501.12948)."""

    after_step: Positive = Field(description="number of steps that use sampling.max_tokens first")
    max_tokens: Positive = Field(description="maximum new tokens of a response after these steps")


class SamplingRecipe(Section):
    """How rollouts are sampled."""

    engine: Literal["vllm", "transformers", "server"] = Field(
        "vllm",
        description="sampling engine: vllm or transformers (slow, always available) in this "
        "process, or the `servers`. There is no silent fallback",
    )
    servers: tuple[ServerUrl, ...] = Field(
        (), description="addresses (http://HOST:PORT) of running `r1lab serve-sampler` servers"
    )
    weights_folder: Name | None = Field(
        None, description="shared folder through which the trainer sends weights to the servers"
    )
    weight_transfer: Literal["folder", "nccl"] = Field(
        "folder",
        description="how weights reach the servers: through weights_folder, or from GPU to GPU by "
        "vLLM's own weight transfer (nccl)",
    )
    server_patience: float = Field(
        900.0,
        gt=0,
        le=10**6,
        description="seconds that all servers may be unreachable before the run stops",
    )
    max_lag: NonNegative = Field(
        0,
        le=16,
        description="steps that sampling runs ahead of training, so that samples come from weights "
        "that many steps old; 0: on-policy",
    )
    questions_per_step: Positive = Field(
        32, le=100_000, description="P, prompts per step over all processes"
    )
    group_size: int = Field(16, ge=2, le=10_000, description="G, completions per prompt")
    temperature: float = Field(
        1.0,
        ge=0.01,
        le=100,
        description="sampling temperature in training; log-probs are computed at it too",
    )
    top_p: float = Field(
        1.0, gt=0, le=1, description="nucleus sampling threshold; training supports only 1"
    )
    max_tokens: Positive = Field(128, description="maximum new tokens of a response")
    cap_raise: CapRaise | None = Field(
        None, description="higher max_tokens late in the run, in training and evaluation"
    )
    max_model_len: Positive | None = Field(
        None, description="maximum tokens of prompt and response together; null: the model's limit"
    )
    kv_cache_gib: float = Field(
        1.0, gt=0, le=10_000, description="vLLM's KV cache on the CPU, in GiB per process"
    )
    gpu_memory_utilization: float = Field(
        0.45, gt=0, lt=1, description="fraction of GPU memory that vLLM may use"
    )

    @model_validator(mode="after")
    def _servers_are_named(self) -> SamplingRecipe:
        if self.engine != "server":
            if self.servers:
                raise ValueError(
                    f"servers: not used by engine {self.engine!r}; set engine to server, or remove "
                    "them"
                )
            return self
        if not self.servers:
            raise ValueError("servers: empty; engine 'server' needs at least one address")
        if len(set(self.servers)) < len(self.servers):
            raise ValueError("servers: contains a duplicate address; remove it")
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
        """Return the maximum new tokens of a response after `steps` steps."""
        raised = self.cap_raise is not None and steps >= self.cap_raise.after_step
        return self.most_tokens if raised else self.max_tokens

    @property
    def most_tokens(self) -> int:
        """The highest limit on a response over the whole run."""
        return self.max_tokens if self.cap_raise is None else self.cap_raise.max_tokens


class OptimizerSettings(Section):
    """AdamW (arXiv 1711.05101) on a float32 copy of the weights."""

    learning_rate: float = Field(3e-4, gt=0, le=1, description="peak learning rate")
    schedule: Literal["constant", "linear", "cosine"] = Field(
        "constant", description="learning rate schedule after the warm-up"
    )
    final_fraction: Fraction = Field(
        0.1, description="learning rate at the last step, as a fraction of the peak"
    )
    warmup_steps: NonNegative = Field(3, description="steps of linear learning rate warm-up")
    beta1: float = Field(0.9, ge=0, lt=1, description="decay of the first moment")
    beta2: float = Field(0.99, ge=0, lt=1, description="decay of the second moment")
    epsilon: float = Field(1e-8, gt=0, lt=1, description="added to the root of the second moment")
    weight_decay: float = Field(0.0, ge=0, le=100, description="decoupled from the gradient")
    max_grad_norm: float = Field(1.0, gt=0, description="longer gradients are scaled to this norm")


class EvaluationSettings(Section):
    """Evaluation on held-out problems before, during and after training."""

    every: NonNegative = Field(
        10, description="steps between evaluations; 0: before and after training only"
    )
    num_problems: Positive = Field(
        200, le=1_000_000, description="held-out problems, the same ones each time"
    )
    num_samples: Positive = Field(16, le=100_000, description="k, samples per problem")
    temperature: float = Field(
        1.0, ge=0.01, le=100, description="sampling temperature in evaluation"
    )
    top_p: float = Field(1.0, gt=0, le=1, description="nucleus sampling threshold in evaluation")
    greedy: bool = Field(
        True, description="also score one greedy answer per problem, before and after training"
    )
    seed: Seed = Field(1234, description="random seed of the held-out problems and their samples")


class CheckpointSettings(Section):
    """When checkpoints are written and how many are kept."""

    every: NonNegative = Field(20, description="steps between checkpoints; 0: the last step only")
    keep: Positive = Field(2, description="number of newest checkpoints to keep")


class TrackingSettings(Section):
    """Experiment trackers that receive the metrics, in addition to the run folder."""

    trackers: tuple[Name, ...] = Field(
        ("tensorboard",), description="trackers of accelerate: tensorboard, wandb, ..."
    )


class TrainRecipe(Section):
    """A training run."""

    name: RunName = Field(description="name of the run: letters, digits, `.`, `_` and `-`")
    output: Name | None = Field(None, description="run folder; null: runs/<name>")
    resume: Literal["never", "auto"] = Field(
        "never",
        description="auto: if the run folder already contains a run, continue it, as with --resume",
    )
    seed: Seed = Field(0, description="random seed for sampling, shuffling and initialisation")
    steps: Positive = Field(60, description="training steps: one rollout and its updates each")
    model: ModelSettings = ModelSettings()
    template: Name = Field(
        "compact", description="prompt template, a name in r1lab.prompts.TEMPLATES"
    )
    problems: ProblemSettings
    rewards: tuple[RewardSettings, ...] = Field(
        (RewardSettings(reward="problem"), RewardSettings(reward="format", weight=0.1)),
        min_length=1,
        description="reward functions; their weighted scores are summed",
    )
    reward_workers: Positive | None = Field(
        None,
        le=1024,
        description="reward worker processes per training process; null: one per core",
    )
    max_fault_share: Fraction = Field(
        0.5,
        description="maximum share of a step's responses that may fail to be scored (killed, "
        "raised); a higher share stops the run",
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
            # The trainer's log-probs are over the full distribution, so the sampler's must be too.
            raise ValueError(
                f"sampling.top_p: {self.sampling.top_p} must be 1, because training needs samples "
                "from the full distribution (evaluation.top_p may differ)"
            )
        if not any(reward.weight for reward in self.rewards):
            raise ValueError(
                "rewards: every weight is 0, so all responses score the same and nothing is "
                "learned; give at least one reward a weight"
            )
        limit, longest = self.sampling.max_model_len, self.sampling.most_tokens
        if limit is not None and limit <= longest:
            raise ValueError(
                f"sampling.max_model_len: {limit} leaves no room for a prompt in addition to "
                f"sampling.max_tokens ({longest}); lower max_tokens, or raise max_model_len up to "
                "the model's context length"
            )
        cap_raise = self.sampling.cap_raise
        if cap_raise is not None and cap_raise.after_step >= self.steps:
            raise ValueError(
                f"sampling.cap_raise.after_step: {cap_raise.after_step} is never reached in "
                f"{self.steps} steps"
            )
        if self.sampling.max_lag and self.algorithm.correction == "none":
            raise ValueError(
                f"sampling.max_lag: {self.sampling.max_lag} trains on samples from earlier "
                "weights, which algorithm.correction must correct; set that to token_truncate"
            )
        if self.sampling.max_lag and self.algorithm.dynamic_sampling:
            raise ValueError(
                f"sampling.max_lag: {self.sampling.max_lag} is not supported with "
                "algorithm.dynamic_sampling, whose leftover groups would be older than that; set "
                "max_lag to 0 or dynamic_sampling to false"
            )
        if self.sampling.engine == "server" and self.algorithm.router_replay == "sampler":
            raise ValueError(
                "algorithm.router_replay: 'sampler' is not supported with sampling.engine server; "
                "use 'old' or 'none'"
            )
        if self.sampling.questions_per_step < self.algorithm.num_minibatches:
            raise ValueError(
                f"algorithm.num_minibatches: {self.algorithm.num_minibatches} must be at most "
                f"sampling.questions_per_step ({self.sampling.questions_per_step})"
            )
        return self

    @property
    def run_folder(self) -> str:
        """Where the run writes: `output`, or runs/<name>."""
        return self.output or f"runs/{self.name}"


class CorpusSettings(Section):
    """The corpus of pre-training."""

    source: Name = Field(
        "r1lab.data.corpus:documents",
        description="function that loads it: path/to/file.py:load or package.module:load",
    )
    options: dict[str, Any] = Field(
        default_factory=dict, description="keyword arguments passed to load()"
    )


class PretrainRecipe(Section):
    """Pre-training of a small V3-style base model from scratch."""

    name: RunName = Field(description="name of the run: letters, digits, `.`, `_` and `-`")
    output: Name | None = Field(None, description="run folder; null: runs/<name>")
    seed: Seed = Field(0, description="random seed of the corpus and of the initial weights")
    size: Literal["pico", "nano", "micro", "lite", "v3", "dense", "dense-small"] = Field(
        "nano",
        description="model size: V3-style, or dense (Llama's architecture); see r1lab.model.config",
    )
    corpus: CorpusSettings = CorpusSettings()
    tokens: int = Field(gt=0, le=10**15, description="training tokens, prompts included")
    tokens_per_batch: Positive = Field(4096, description="tokens per update")
    row_length: int = Field(
        256, ge=16, le=10**6, description="tokens of a row into which documents are packed"
    )
    prompt_loss_weight: Fraction = Field(
        0.1, description="loss weight of question tokens, which are random and teach little"
    )
    learning_rate: float = Field(2e-3, gt=0, le=1, description="peak learning rate")
    final_fraction: Fraction = Field(
        0.03, description="learning rate at the end, as a fraction of the peak"
    )
    warmup_steps: NonNegative = Field(50, description="steps of linear learning rate warm-up")
    flat_until: float = Field(
        0.6, ge=0, lt=1, description="share of the run before the learning rate decays"
    )
    beta1: float = Field(0.9, ge=0, lt=1, description="decay of the first moment")
    beta2: float = Field(0.95, ge=0, lt=1, description="decay of the second moment")
    weight_decay: float = Field(0.05, ge=0, le=100, description="decoupled from the gradient")
    max_grad_norm: float = Field(1.0, gt=0, description="longer gradients are scaled to this norm")
    router_bias_speed: float = Field(
        1e-3,
        ge=0,
        le=1,
        description="update speed of the routing bias that balances expert load (arXiv 2412.19437: "
        "0.001, then 0)",
    )
    dtype: Dtype = Field(
        "auto",
        validate_default=True,
        description="dtype of the working weights, as model.dtype of a training recipe",
    )
    checkpoint_every: Positive = Field(500, description="steps between checkpoints")
    card_problems: NonNegative = Field(
        200, description="held-out problems per source scored for the model card; 0: none"
    )
    card_sources: tuple[Name, ...] = Field(
        ("boxes", "arithmetic", "division", "derivations"),
        min_length=1,
        description="problem sources scored for the model card",
    )
    card_engine: Literal["vllm", "transformers"] = Field(
        "vllm", description="sampling engine for the model card"
    )

    @property
    def run_folder(self) -> str:
        """Where the run writes: `output`, or runs/<name>."""
        return self.output or f"runs/{self.name}"
