"""Memory of one device by part: what a training process holds, and what it needs for a moment.

What is held all the time adds up; of what comes and goes (training's activations, a weight sync, a
checkpoint) the largest counts. The counts follow the code: `model.optim` (float32 masters, moments
and gradients), `grpo.reference`, `grpo.logprobs` (chunks of logits), `model.weights` (merged copies
for a sync), `rollout.vllm_engine`.
"""

from __future__ import annotations

from dataclasses import dataclass

from r1lab.estimate.activations import merged_expert_bytes, saved_bytes_per_token
from r1lab.estimate.constants import (
    CPU_RUNTIME,
    GPU_RUNTIME,
    LOGIT_COPIES,
    MAX_SEQUENCES,
    NF4_BITS,
)
from r1lab.estimate.hardware import Device
from r1lab.estimate.shape import ModelShape
from r1lab.estimate.workload import Workload

_FLOAT32 = 4
_MAX_LOGITS = 2**24  # r1lab.grpo.logprobs.MAX_LOGITS, which cannot be imported without torch


@dataclass(frozen=True, slots=True)
class Part:
    """Bytes of one part on one device; `passing`: only for a moment, the largest such counts."""

    name: str
    size: float
    passing: bool = False


@dataclass(frozen=True, slots=True)
class Memory:
    """The parts on one device, what it has, and the least that its cache must hold."""

    parts: tuple[Part, ...]
    capacity: float
    cache_needed: float = 0.0

    @property
    def held(self) -> float:
        """All that is there the whole time."""
        return sum(part.size for part in self.parts if not part.passing)

    @property
    def peak(self) -> float:
        """The most that is there at once."""
        return self.held + max((part.size for part in self.parts if part.passing), default=0.0)

    @property
    def fits(self) -> bool:
        """Whether the device has so much, and the sampler's cache holds one whole sequence."""
        return self.peak <= self.capacity and self.has_cache

    @property
    def has_cache(self) -> bool:
        """Whether the sampler's cache holds one whole sequence."""
        return self.size_of("KV cache") >= self.cache_needed

    def size_of(self, name: str) -> float:
        """Bytes of a part; 0 where there is none of that name."""
        return sum(part.size for part in self.parts if part.name == name)


def memory_of(
    shape: ModelShape, work: Workload, device: Device, *, shards: int = 1, replica: int = 1,
    num_processes: int = 1, recompute: bool = False,
) -> Memory:  # fmt: skip
    """Memory of one of `num_processes` equal processes.

    The trainer's state is divided over `shards` of them, the sampler's weights over `replica`.
    `recompute`: a forward keeps a layer's input alone, and what one layer needs for its backward is
    divided over a node's devices (tensor or context parallel).
    """
    parts = [
        *_trainer(shape, work, shards),
        *_sampler(shape, work, device, replica),
        Part("libraries", CPU_RUNTIME if device.is_cpu else GPU_RUNTIME),
        *_passing(shape, work, shards, num_processes, device.per_node if recompute else 0),
    ]
    needed = 0.0
    if work.engine == "vllm":
        numbers = shape.cache_numbers(decompressed=device.is_cpu)
        needed = (work.prompt + work.longest) * numbers * work.bytes_each / replica
    return Memory(tuple(part for part in parts if part.size), device.memory, needed)


def trained_parameters(shape: ModelShape, work: Workload) -> int:
    """Those that the optimiser moves."""
    lora = work.lora
    if lora is None:
        return shape.parameters
    return shape.lora_parameters(
        lora.rank, attention=lora.attention, dense=lora.dense, experts=lora.experts
    )


def weight_bytes(shape: ModelShape, work: Workload) -> float:
    """The trainer's working weights, in four bits where a recipe says so."""
    full = float(shape.parameters * work.bytes_each)
    if work.lora is None or not work.lora.four_bit:
        return full
    linears = shape.parameters - shape.routed_parameters - shape.embedding_parameters
    if not shape.tied:
        linears -= shape.embedding_parameters
    return full - linears * (work.bytes_each - NF4_BITS / 8)


def _trainer(shape: ModelShape, work: Workload, shards: int) -> list[Part]:
    trained = trained_parameters(shape, work)
    # Adapters, and full weights in float32, are their own masters.
    own_masters = work.lora is not None or work.bytes_each == _FLOAT32
    adapters = trained * _FLOAT32 if work.lora is not None else 0
    moments = 2 * _FLOAT32 * trained
    masters = 0 if own_masters else _FLOAT32 * trained
    copied = trained * (_FLOAT32 if work.lora is not None else work.bytes_each)
    return [
        Part("weights", (weight_bytes(shape, work) + adapters) / shards),
        Part("optimiser", (masters + moments) / shards),
        Part("gradients", _FLOAT32 * trained / shards),
        Part("reference", copied / shards if work.reference else 0.0),
    ]


def _sampler(shape: ModelShape, work: Workload, device: Device, replica: int) -> list[Part]:
    weights = shape.parameters * work.bytes_each / replica
    if work.engine == "transformers":  # samples with a model of its own
        return [Part("sampler's weights", weights)]
    if device.is_cpu and shape.tied:
        weights += shape.embedding_parameters * work.bytes_each  # the head, packed for the kernel
    if device.is_cpu:
        rows = min(MAX_SEQUENCES, work.num_sequences)
        scores = 3 * _FLOAT32 * rows * shape.vocabulary  # logits, log-probs, what sampling sorts
        cache = work.kv_cache_gib * 2**30
        return [Part("sampler's weights", weights), Part("KV cache", cache), Part("scores", scores)]
    # On a GPU vLLM takes its share whole: what its weights leave of it is the cache.
    share = work.gpu_share * device.memory
    return [Part("sampler's weights", weights), Part("KV cache", max(share - weights, 0.0))]


def _passing(
    shape: ModelShape, work: Workload, shards: int, num_processes: int, recompute: int
) -> list[Part]:
    b, table = work.bytes_each, shape.embedding_parameters
    tokens = work.tokens_of_microbatch
    logits = min(tokens * shape.vocabulary, max(_MAX_LOGITS, shape.vocabulary))
    trained = trained_parameters(shape, work)
    saved = saved_bytes_per_token(shape, b, work.lora)
    if recompute:
        saved = b * shape.hidden + saved / shape.num_layers / recompute
    activations = tokens * saved + LOGIT_COPIES * _FLOAT32 * logits
    activations += merged_expert_bytes(shape, b, work.lora) / (shards if recompute else 1)
    if shards > 1 and not recompute:
        # One layer at a time is gathered whole, and its gradient beside it.
        layer = (shape.parameters - 2 * table) / shape.num_layers
        activations += 2 * b * layer
    # A merged update is a copy of all but the table; a checkpoint's file is written from copies.
    merged = (shape.parameters - table) * b if work.lora is not None else 0
    exchange = _FLOAT32 * trained if num_processes > 1 and shards == 1 else 0
    return [
        Part("activations", activations, passing=True),
        Part("gradient exchange", float(exchange), passing=True),
        Part("weight sync", float(merged / shards + 2 * table * b), passing=True),
        Part("checkpoint", float((merged + shape.parameters * b) / shards), passing=True),
    ]
