"""Public figures of V3-scale runs and smaller ones, and what the estimate says of each.

Every constant is that of r1lab/estimate/constants.py: nothing is set for a row. What a source
leaves open is assumed in the row, and said there.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from typing import Any

from r1lab.estimate.constants import TRAIN_UTILISATION
from r1lab.estimate.hardware import DEVICES, Cluster
from r1lab.estimate.plan import known_sizes
from r1lab.estimate.shape import ModelShape, shape_of
from r1lab.estimate.timing import step_time
from r1lab.estimate.workload import Workload

V3 = shape_of(known_sizes()["v3"], "v3")

# Mean response length of R1-Zero by step, digitised from figure 3 of arXiv 2501.12948 v1; behind
# step 8,380 the last value is kept.
R1_ZERO_LENGTHS = {
    0: 505, 200: 556, 400: 912, 600: 1169, 800: 1314, 1000: 1397, 1400: 1868, 2000: 2169,
    2400: 2590, 3000: 3214, 3500: 3564, 4000: 4043, 4500: 4816, 5000: 5216, 5500: 5218, 6000: 5597,
    6500: 5750, 7000: 7514, 7200: 6719, 7500: 8020, 8000: 8800, 8200: 9008, 8380: 9618,
}  # fmt: skip


def published_rows() -> list[dict[str, Any]]:
    """Each with the estimate, the published figure, their ratio, and what was assumed."""
    hours, parts = r1_zero()
    pre = pretraining_hours()
    rows = [
        row("DeepSeek-V3, parameters", V3.parameters / 1e9, 671, "B", "arXiv 2412.19437"),
        row(
            "DeepSeek-V3, parameters of a token", V3.active_parameters / 1e9, 36.7, "B",
            "README_WEIGHTS.md of its repository (37 in the paper); no look-up of a row counted",
        ),
        row(
            "DeepSeek-V3, pre-training on 14.8T tokens", pre, 2_664_000, "H800 hours",
            "costs: arXiv 2412.19437, table 1. Assumed: sequences of 4,096, full; its multi-token "
            "module and FP8 not counted",
        ),
        row(
            "R1-Zero, 10,400 steps", hours, 101_000, "H800 hours",
            "arXiv 2501.12948 v2, table 7: 512 GPUs, 198 hours. 8,192 responses a rollout, capped "
            "at 32,768 tokens and 65,536 after step 8,200. Assumed: prompts of 200 tokens, "
            "samplers of 32 GPUs in bfloat16 without speculation",
        ) | {"parts": parts},
    ]  # fmt: skip
    return [*rows, *map(reported, REPORTED)]


def row(what: str, found: float, published: float, unit: str, source: str) -> dict[str, Any]:
    """One line of the table."""
    return {
        "what": what, "estimate": found, "published": published, "ratio": found / published,
        "unit": unit, "source": source,
    }  # fmt: skip


def pretraining_hours() -> float:
    """Of V3's pre-training: forward and backward of every token, at the rate that is reached."""
    tokens, length = 14.8e12, 4096
    operations = 3 * V3.forward_operations(tokens, length / 2)
    return operations / (DEVICES["h800"].operations * TRAIN_UTILISATION) / 3600


def r1_zero(num_steps: int = 10_400) -> tuple[float, dict[str, float]]:
    """(GPU hours, their parts) of R1-Zero's run, rollout by rollout."""
    cluster = Cluster(DEVICES["h800"], 512)
    rollouts, points = num_steps // 16, 65  # a rollout feeds 16 updates
    parts = dict.fromkeys(("sampling", "scoring", "training", "sync", "fixed"), 0.0)
    for index in range(points):
        step = (index + 0.5) * num_steps / points
        work = Workload(
            num_sequences=8192, group_size=16, prompt=200, mean=mean_at(step),
            longest=32_768 if step < 8200 else 65_536, forwards=2, updates=16, gpu_share=0.8,
        )  # fmt: skip
        seconds = step_time(V3, work, cluster, layout="megatron", replica=32)
        for name in parts:
            parts[name] += getattr(seconds, name) * rollouts / points * cluster.count / 3600
    return sum(parts.values()), parts


def mean_at(step: float) -> float:
    """R1-Zero's mean response length at a step, between the points read from its figure."""
    steps = list(R1_ZERO_LENGTHS)
    index = bisect_right(steps, step)
    if index == len(steps):
        return float(R1_ZERO_LENGTHS[steps[-1]])
    low, high = steps[index - 1], steps[index]
    share = (step - low) / (high - low)
    return R1_ZERO_LENGTHS[low] * (1 - share) + R1_ZERO_LENGTHS[high] * share


@dataclass(frozen=True, slots=True)
class Reported:
    """A step time that someone published, with what they say of the run."""

    what: str
    shape: ModelShape
    device: str
    count: int
    replica: int
    work: Workload
    seconds: float
    source: str


def _llama(values: str, kind: str = "llama", **more: int) -> ModelShape:
    names = (
        "hidden_size", "num_hidden_layers", "intermediate_size", "num_attention_heads",
        "num_key_value_heads", "head_dim", "vocab_size",
    )  # fmt: skip
    given = dict(zip(names, map(int, values.split()), strict=True))
    return shape_of({"model_type": kind, **given, **more}, kind)


_EXPERTS = {"num_experts": 128, "num_experts_per_tok": 8}
LLAMA_8B = _llama("4096 32 14336 32 8 128 128256")
QWEN_32B = _llama("5120 64 25600 64 8 128 151936", "qwen3")
QWEN_30B = _llama(
    "2048 48 6144 32 4 128 151936", "qwen3_moe", moe_intermediate_size=768, **_EXPERTS
)
QWEN_235B = _llama(
    "4096 94 12288 64 4 128 151936", "qwen3_moe", moe_intermediate_size=1536, **_EXPERTS
)

_NEMO = (
    "NeMo-RL, docs/about/performance-summary.md, on policy, bfloat16. Assumed: 150 tokens of the "
    "average sequence are the prompt, one pass for log-probs, sampling with .6 of the memory"
)


def _nemo(sequences: int, average: int, longest: int) -> Workload:
    return Workload(
        num_sequences=sequences, group_size=32, prompt=150, mean=average - 150,
        longest=longest - 150, forwards=1, updates=sequences // 512, gpu_share=0.6,
    )  # fmt: skip


REPORTED = (
    Reported(
        "NeMo-RL, DeepSeek-V3, 256 H100", V3, "h100", 256, 32, _nemo(512, 745, 1536), 134,
        f"{_NEMO}; 154 s in its v0.4",
    ),
    Reported(
        "verl, DeepSeek-V3, 96 H20", V3, "h20", 96, 32,
        Workload(
            num_sequences=768, group_size=8, prompt=150, mean=1960, longest=9632, forwards=2,
            updates=3, gpu_share=0.6,
        ),
        1700,
        "verl, docs/perf/dpsk.md (1,050 s of it sampling, MFU .19) and its script: 96 x 8 "
        "responses of at most 9,632 tokens, mean 1,960, optimiser on the CPUs, uncaptured kernels, "
        "layers recomputed. Assumed: prompts of 150 tokens",
    ),
    Reported(
        "NeMo-RL, Llama 3.1 8B, 16 H100", LLAMA_8B, "h100", 16, 1, _nemo(2048, 1060, 4096), 97.7,
        _NEMO,
    ),
    Reported(
        "NeMo-RL, Qwen3-30B-A3B, 32 H100", QWEN_30B, "h100", 32, 4, _nemo(2048, 3154, 4096), 225,
        _NEMO,
    ),
    Reported(
        "NeMo-RL, Qwen3-32B, 32 H100", QWEN_32B, "h100", 32, 4, _nemo(2048, 3206, 4096), 393, _NEMO
    ),
    Reported(
        "NeMo-RL, Qwen3-235B-A22B, 128 H100", QWEN_235B, "h100", 128, 16, _nemo(512, 5671, 8192),
        506, _NEMO,
    ),
)  # fmt: skip


def reported(given: Reported) -> dict[str, Any]:
    """The estimate of a published step."""
    cluster = Cluster(DEVICES[given.device], given.count)
    seconds = step_time(
        given.shape, given.work, cluster, layout="megatron", replica=given.replica
    )  # fmt: skip
    parts = {"sampling": seconds.sampling, "scoring": seconds.scoring,
             "training": seconds.training, "sync": seconds.sync}  # fmt: skip
    return row(given.what, seconds.total, given.seconds, "s a step", given.source) | {
        "parts": parts
    }
