"""Seconds of one step: sampling, passes of the trainer, the weights' way to the sampler.

Sampling: decoding is bound by the memory that each step reads (weights touched and cache) or by
operations, and has a fixed part for each layer; it lasts until the longest response ends.
Training: operations over the rate that is reached, beside the traffic between devices.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from r1lab.estimate import constants as c
from r1lab.estimate.hardware import Cluster
from r1lab.estimate.lengths import Lengths, lengths_of
from r1lab.estimate.memory import trained_parameters
from r1lab.estimate.shape import ModelShape
from r1lab.estimate.workload import Workload

Layout = Literal["replicated", "sharded", "megatron"]
LAYOUTS: tuple[Layout, ...] = ("replicated", "sharded", "megatron")


@dataclass(frozen=True, slots=True)
class StepTime:
    """Seconds of a step by part; `scoring` are the passes without a backward."""

    sampling: float
    scoring: float
    training: float
    sync: float
    fixed: float

    @property
    def total(self) -> float:
        """Of the whole step, one part after the other."""
        return self.sampling + self.scoring + self.training + self.sync + self.fixed


def step_time(
    shape: ModelShape, work: Workload, cluster: Cluster, *, layout: Layout, replica: int = 1
) -> StepTime:
    """Seconds of a step on all devices of a cluster, sampling and training in turns.

    `replica` is the devices that hold one copy of the sampler. "replicated": each process has the
    whole trainer; "sharded": FSDP2 or ZeRO-3 over all; "megatron": expert and pipeline parallel,
    whose traffic hides behind the computation (arXiv 2412.19437, section 3.2) and which r1lab's own
    trainer does not do.
    """
    lengths = lengths_of(min(work.mean, work.longest), work.longest)
    forward = _forward_seconds(shape, work, cluster, lengths)
    # Frozen weights need no gradient of their own: two thirds of a backward's operations are theirs
    # and their inputs' alike.
    passes = 2.0 if work.lora is not None else 3.0
    traffic = _training_traffic(shape, work, cluster, layout)
    return StepTime(
        sampling=sampling_seconds(shape, work, cluster, replica, lengths),
        scoring=work.forwards * forward,
        training=max(work.epochs * passes * forward, traffic),
        sync=sync_seconds(shape, work, cluster, layout=layout, replica=replica),
        fixed=c.FIXED_SECONDS,
    )


def _forward_seconds(
    shape: ModelShape, work: Workload, cluster: Cluster, lengths: Lengths
) -> float:
    """Of one forward over the step's tokens, at the rate that training reaches."""
    # A token sees half its sequence on average, and long sequences have most tokens.
    square = work.prompt**2 + 2 * work.prompt * work.mean + lengths.mean_square
    operations = shape.forward_operations(work.tokens, square / (2 * work.sequence))
    share = c.CPU_TRAIN_UTILISATION if cluster.device.is_cpu else c.TRAIN_UTILISATION
    return operations / (cluster.count * cluster.device.operations * share)


def decode_seconds(
    shape: ModelShape, work: Workload, cluster: Cluster, replica: int, batch: float, context: float
) -> float:
    """Of one decoding step of a replica: `batch` sequences, `context` tokens before each."""
    device, b = cluster.device, work.bytes_each
    cache = shape.cache_numbers(decompressed=device.is_cpu) * context * batch
    read = b * (shape.touched_parameters(batch) + cache) / replica
    operations = shape.forward_operations(batch, context) / replica
    if device.is_cpu:
        rate, layer = c.CPU_SAMPLE_UTILISATION * device.operations, c.CPU_LAYER_SECONDS
        return max(read / device.bandwidth, operations / rate) + layer * shape.num_layers
    reach = "alone" if replica == 1 else "node" if replica <= device.per_node else "nodes"
    seconds = max(
        read / (device.bandwidth * c.MEMORY_UTILISATION),
        operations / (device.operations * c.TRAIN_UTILISATION),
    )
    return seconds + c.LAYER_SECONDS[reach] * shape.num_layers


def sampling_seconds(
    shape: ModelShape, work: Workload, cluster: Cluster, replica: int, lengths: Lengths
) -> float:
    """Until the longest of all responses ends, sequences spread evenly over the replicas."""
    replicas = max(1, cluster.count // replica)
    each = work.num_sequences / replicas
    limit = min(each, float(c.MAX_SEQUENCES), max(1.0, _cache_limit(shape, work, cluster, replica)))
    full = decode_seconds(
        shape, work, cluster, replica, limit, work.prompt + work.mean / 2
    )  # fmt: skip
    seconds = (each - limit) * work.mean / limit * full  # what does not fit at once, before
    for at, width in lengths.grid:
        left = lengths.surviving(at)
        some = 1 - (1 - left) ** work.num_sequences
        if some > 1e-4:
            batch = max(1.0, limit * left)
            context = work.prompt + at
            seconds += width * some * decode_seconds(
                shape, work, cluster, replica, batch, context
            )  # fmt: skip
    prompts = work.num_sequences / work.group_size * work.prompt  # one prefill for a group
    device = cluster.device
    share = c.CPU_SAMPLE_UTILISATION if device.is_cpu else c.TRAIN_UTILISATION
    prefill = shape.forward_operations(prompts, work.prompt / 2)
    return seconds + prefill / (cluster.count * device.operations * share)


def _cache_limit(shape: ModelShape, work: Workload, cluster: Cluster, replica: int) -> float:
    """Sequences of mean length that a replica's cache holds."""
    device, b = cluster.device, work.bytes_each
    one = b * shape.cache_numbers(decompressed=device.is_cpu) * (work.prompt + work.mean)
    if device.is_cpu:
        return work.kv_cache_gib * 2**30 / one
    room = replica * work.gpu_share * device.memory - b * shape.parameters
    return room / one


def _training_traffic(shape: ModelShape, work: Workload, cluster: Cluster, layout: Layout) -> float:
    """Seconds that gradients and gathered weights take between devices."""
    if cluster.count == 1 or layout == "megatron":
        return 0.0
    rate = _rate(cluster) * c.LINK_UTILISATION
    gradients = 4.0 * trained_parameters(shape, work)
    if layout == "replicated":  # a ring: every byte goes out and comes back once
        return work.updates * 2 * gradients / rate
    batches = max(1.0, work.tokens / cluster.count / work.tokens_of_microbatch)
    weights = 2.0 * work.bytes_each * shape.parameters  # for the forward, and for the backward
    return work.epochs * batches * weights / rate + work.updates * gradients / rate


def sync_seconds(
    shape: ModelShape, work: Workload, cluster: Cluster, *, layout: Layout, replica: int
) -> float:
    """From the last update until every sampler holds the new weights.

    Each device receives its part of a replica; within one process they are copied.
    """
    size = work.bytes_each * shape.parameters / replica
    if layout == "replicated":
        return 2 * size / cluster.device.bandwidth
    return size / (_rate(cluster) * c.SYNC_UTILISATION)


def _rate(cluster: Cluster) -> float:
    """The slowest link that all devices share."""
    return cluster.device.link if cluster.num_nodes == 1 else cluster.device.network
