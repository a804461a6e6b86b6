"""What a step has to do, as a recipe says it: sequences, lengths, passes over them."""

from __future__ import annotations

from dataclasses import dataclass

from r1lab.config.recipe import LoraSettings, TrainRecipe
from r1lab.estimate.constants import MEAN_OF_CAP

# r1lab.grpo.prefix_sharing's SHORT and FAMILIES, which cannot be imported without torch.
_SHORT = 256
_SHARING = ("deepseek_v3", "llama", "qwen2", "qwen3", "qwen3_moe")


@dataclass(frozen=True, slots=True)
class Workload:
    """A step in numbers. Lengths are in tokens; `longest` is the most that a response may have.

    `forwards` counts passes without a backward (log-probs before the first update, the reference),
    `updates` those of the optimiser, `epochs` the times that the batch is gone through with a
    backward. `microbatch` is the tokens of one forward. `sharing`: short completions of one
    question share their prompt's row in the trainer (`grpo.shared`).
    """

    num_sequences: int
    group_size: int
    prompt: float
    mean: float
    longest: int
    steps: int = 1
    forwards: int = 0
    updates: int = 1
    epochs: int = 1
    reference: bool = False
    microbatch: int = 4096
    bytes_each: int = 2
    lora: LoraSettings | None = None
    engine: str = "vllm"
    kv_cache_gib: float = 1.0
    gpu_share: float = 0.45
    sharing: bool = False

    @property
    def sequence(self) -> float:
        """Tokens of a prompt and its response, on average."""
        return self.prompt + self.mean

    @property
    def row_completions(self) -> float:
        """Completions that share a prompt's row, on average; those of longer ones stand alone."""
        if not self.sharing:
            return 1.0
        return min(float(self.group_size), max(1.0, max(self.prompt, _SHORT) / self.mean))

    @property
    def tokens(self) -> float:
        """Tokens of a step that the trainer goes through."""
        return self.num_sequences * (self.prompt / self.row_completions + self.mean)

    @property
    def tokens_of_microbatch(self) -> float:
        """Of the largest micro-batch: one whole sequence at least, the whole batch at most."""
        return min(max(self.microbatch, self.prompt + self.longest), self.num_sequences * (
            self.prompt + self.longest
        ))  # fmt: skip


def workload_of(
    recipe: TrainRecipe, *, kind: str, prompt: float, mean: float | None, bytes_each: int
) -> Workload:
    """The workload of a recipe for a `kind` of model (its model_type).

    `prompt` is tokens on average, `mean` those of a response, or None.
    """
    sampling, algorithm = recipe.sampling, recipe.algorithm
    return Workload(
        num_sequences=sampling.questions_per_step * sampling.group_size,
        group_size=sampling.group_size,
        prompt=prompt,
        mean=mean if mean is not None else max(1.0, MEAN_OF_CAP * sampling.max_tokens),
        longest=sampling.most_tokens,
        steps=recipe.steps,
        forwards=int(algorithm.updates_per_step > 1) + int(algorithm.kl_coefficient > 0),
        updates=algorithm.updates_per_step,
        epochs=algorithm.num_epochs,
        reference=algorithm.kl_coefficient > 0,
        microbatch=algorithm.tokens_per_microbatch,
        bytes_each=bytes_each,
        lora=recipe.model.lora,
        engine=sampling.engine,
        kv_cache_gib=sampling.kv_cache_gib,
        gpu_share=sampling.gpu_memory_utilization,
        # Where experts' load is counted, a prompt counts once for each of its completions.
        sharing=kind in _SHARING and not algorithm.router_bias_speed,
    )
