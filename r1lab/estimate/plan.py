"""The estimate of a recipe on a cluster: how it is laid out, whether it fits, what it costs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from r1lab.config.recipe import LoraSettings
from r1lab.estimate.constants import LENGTH_SPREAD, MEAN_OF_CAP
from r1lab.estimate.hardware import GIB, Cluster
from r1lab.estimate.memory import Memory, memory_of, trained_parameters
from r1lab.estimate.shape import ModelShape
from r1lab.estimate.timing import LAYOUTS, Layout, StepTime, step_time
from r1lab.estimate.workload import Workload

_REPLICAS = (1, 2, 4, 8, 16, 32, 64, 128)
_SMALLER = "a smaller model, or shorter responses (--sampling.max_tokens)"
_LARGER: dict[Layout, str] = {
    "sharded": " with the state divided over them (FSDP2 or ZeRO-3)",
    "megatron": ", and a trainer that recomputes activations, with expert and pipeline parallelism "
    "(--layout megatron counts one; r1lab's own does neither)",
}


@dataclass(frozen=True, slots=True)
class RunEstimate:
    """What a run needs: one device's memory, a step's seconds, the run's hours and price.

    `step` is None where it does not fit. `price` is dollars for an hour of one device, None where
    none was given and none is usual.
    `changes` say what would make it fit, `assumed` what was taken where the recipe is silent.
    """

    model: str
    shape: ModelShape
    work: Workload
    cluster: Cluster
    layout: Layout
    replica: int
    memory: Memory
    step: StepTime | None
    price: float | None
    changes: tuple[str, ...]
    assumed: tuple[str, ...]

    @property
    def hours(self) -> float | None:
        """Of all steps; evaluations and checkpoints come on top. None where it does not fit."""
        return None if self.step is None else self.work.steps * self.step.total / 3600

    @property
    def device_hours(self) -> float | None:
        """Hours times devices."""
        return None if self.hours is None else self.hours * self.cluster.count

    @property
    def dollars(self) -> float | None:
        """At the price of a device's hour."""
        if self.price is None or self.device_hours is None:
            return None
        return self.device_hours * self.price

    def as_dict(self) -> dict[str, Any]:
        """For a JSON file: bytes, seconds, hours, dollars."""
        return {
            "model": self.model,
            "parameters": self.shape.parameters,
            "active_parameters": self.shape.active_parameters,
            "trained_parameters": trained_parameters(self.shape, self.work),
            "cluster": {"device": self.cluster.device.name, "count": self.cluster.count},
            "layout": self.layout,
            "devices_of_a_sampler": self.replica,
            "memory": {
                "parts": {part.name: part.size for part in self.memory.parts},
                "peak": self.memory.peak,
                "capacity": self.memory.capacity,
                "fits": self.memory.fits,
            },
            "seconds_of_a_step": None
            if self.step is None
            else asdict(self.step) | {"total": self.step.total},
            "steps": self.work.steps,
            "hours": self.hours,
            "device_hours": self.device_hours,
            "dollars": self.dollars,
            "changes": list(self.changes),
            "assumed": list(self.assumed),
        }


def estimate(
    model: str,
    shape: ModelShape,
    work: Workload,
    cluster: Cluster,
    *,
    layout: Layout | None = None,
    price: float | None = None,
    assumed: Iterable[str] = (),
) -> RunEstimate:
    """Lay a workload out on a cluster and count. Without a `layout`: the first that fits.

    That is the whole trainer in each process where there is room, else its state divided over all
    devices; the sampler takes as few devices as hold it.
    """
    tried = list(LAYOUTS[:2]) if cluster.count > 1 else [LAYOUTS[0]]
    if layout is not None:
        tried = [layout]
    options = [_laid_out(shape, work, cluster, name) for name in tried]
    name, replica, memory = next((o for o in options if o[2].fits), options[-1])
    step = None
    if memory.fits:
        step = step_time(shape, work, cluster, layout=name, replica=replica)
    return RunEstimate(
        model=model,
        shape=shape,
        work=work,
        cluster=cluster,
        layout=name,
        replica=replica,
        memory=memory,
        step=step,
        price=cluster.device.price if price is None else price,
        changes=() if memory.fits else tuple(_changes(shape, work, cluster, name, replica)),
        assumed=(*assumed, *_assumptions(cluster, name, replica)),
    )


def _laid_out(
    shape: ModelShape, work: Workload, cluster: Cluster, layout: Layout
) -> tuple[Layout, int, Memory]:
    shards = 1 if layout == "replicated" else cluster.count
    replicas = [1] if layout == "replicated" else [r for r in _REPLICAS if r <= cluster.count]
    found = None
    for replica in replicas:
        memory = memory_of(
            shape, work, cluster.device, shards=shards, replica=replica,
            num_processes=cluster.count, recompute=layout == "megatron",
        )  # fmt: skip
        found = (layout, replica, memory)
        if memory.fits:
            break
    assert found is not None
    return found


def _changes(
    shape: ModelShape, work: Workload, cluster: Cluster, layout: Layout, replica: int
) -> list[str]:
    """What would make it fit: each change by itself; else several together; else more devices."""
    shards = 1 if layout == "replicated" else cluster.count

    def fits(changed: Workload) -> bool:
        return memory_of(
            shape, changed, cluster.device, shards=shards, replica=replica,
            num_processes=cluster.count, recompute=layout == "megatron",
        ).fits  # fmt: skip

    options = _options(work, cluster)
    single = [words for words, change in options if fits(replace(work, **change))]
    if single:
        return single
    together, words_of = work, []
    for words, change in options:
        together = replace(together, **change)
        words_of.append(words)
        if fits(together):
            return [" ".join(words_of)]
    for name, what in _LARGER.items():
        for changed, also in ((work, ""), (replace(work, **options[0][1]), f", {options[0][0]}")):
            count = _devices_needed(shape, changed, cluster, name)
            if count:
                return [f"{count} x {cluster.device.name}{what}{also}"]
    return [_SMALLER]


def _options(work: Workload, cluster: Cluster) -> list[tuple[str, dict[str, Any]]]:
    """(what to put on the command line, what it changes), the least change first."""
    least = int(work.prompt + work.longest) + 1
    found: list[tuple[str, dict[str, Any]]] = [
        (f"--algorithm.tokens_per_microbatch {least}", {"microbatch": min(least, work.microbatch)})
    ]
    if cluster.device.is_cpu:
        found.append(("--sampling.kv_cache_gib 0.25", {"kv_cache_gib": 0.25}))
    else:
        found.append(("--sampling.gpu_memory_utilization 0.3", {"gpu_share": 0.3}))
    if work.lora is None:
        found.append(("--model.lora '{rank: 16}'", {"lora": LoraSettings(rank=16)}))
    if work.lora is None or not work.lora.four_bit:
        lora = LoraSettings(rank=16, four_bit=True)
        found.append(("--model.lora '{rank: 16, four_bit: true}'", {"lora": lora}))
    return found


def _devices_needed(
    shape: ModelShape, work: Workload, cluster: Cluster, layout: Layout
) -> int | None:
    """The least power of two of devices, beyond those there are, that a layout fits on."""
    if cluster.device.is_cpu:
        return None
    for power in range(1, 13):
        larger = replace(cluster, count=2**power)
        if larger.count > cluster.count and _laid_out(shape, work, larger, layout)[2].fits:
            return larger.count
    return None


def _assumptions(cluster: Cluster, layout: Layout, replica: int) -> list[str]:
    notes = []
    if layout == "sharded":
        notes.append("the trainer's state is divided over all devices (FSDP2 or ZeRO-3)")
    if layout == "megatron":
        notes.append(
            "expert and pipeline parallel training whose traffic is hidden; r1lab's own trainer "
            "does not do it"
        )
    if replica > 1:
        notes.append(
            f"samplers of {replica} devices each; r1lab's own holds the whole model on one"
        )  # fmt: skip
    if cluster.device.is_cpu:
        notes.append("this machine's speed, measured just now; other work on it counts")
    notes.append(f"response lengths are log-normal, spread {LENGTH_SPREAD:g}, cut at the cap")
    return notes


def mean_assumption(work: Workload) -> str:
    """What is said where the mean length was not given."""
    return (
        f"mean response of {work.mean:.0f} tokens, {MEAN_OF_CAP:g} of the cap: say better with "
        "--mean-tokens"
    )


def memory_rows(found: RunEstimate) -> list[tuple[str, float, str]]:
    """(part, GiB of one device, note) of the table, in the order of `memory_of`."""
    passing = [part for part in found.memory.parts if part.passing]
    largest = max(passing, key=lambda part: part.size, default=None)
    rows = [(p.name, p.size / GIB, "") for p in found.memory.parts if not p.passing]
    for part in passing:
        note = "for a moment; the largest of these counts" if part is largest else "for a moment"
        rows.append((part.name, part.size / GIB, note))
    return rows


def known_sizes() -> Mapping[str, Mapping[str, Any]]:
    """The configurations that r1lab can make by name, as values of a config.json."""
    from r1lab.model.config import SIZES, size_values

    return {name: {"model_type": "deepseek_v3", **size_values(name)} for name in SIZES}
