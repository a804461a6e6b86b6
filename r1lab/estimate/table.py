"""The estimate in words: a table for the terminal, and the few lines of a dry run."""

from __future__ import annotations

from collections.abc import Iterator

from r1lab.estimate.constants import OPEN_FRAMEWORKS
from r1lab.estimate.hardware import GIB
from r1lab.estimate.memory import trained_parameters
from r1lab.estimate.plan import Estimate, memory_rows


def table(found: Estimate) -> str:
    """All of it, in lines of at most a hundred signs or so."""
    return "\n".join(
        [
            *_heading(found),
            "",
            *_memory(found),
            "",
            *_time(found),
            "",
            *_cost(found),
            *_notes(found),
        ]
    )


def brief(found: Estimate) -> str:
    """Three lines, for a dry run."""
    memory = found.memory
    verdict = "fits" if memory.fits else "does NOT fit: " + "; or ".join(found.changes[:2])
    return "\n".join(
        (
            f"estimate on {found.cluster.name}: {_gib(memory.peak)} of {_gib(memory.capacity)} "
            f"each, {verdict}",
            f"  {found.step.total:.3g} s a step, {_duration(found.hours)} in all"
            + (f", {_money(found)}" if found.dollars is not None else ""),
            "  (r1lab estimate has the parts, other hardware and what is assumed)",
        )
    )


def _heading(found: Estimate) -> Iterator[str]:
    shape, work = found.shape, found.work
    active = shape.active_parameters
    of_each = f", {_count(active)} of them for a token" if shape.mixture else ""
    trained = "all" if work.lora is None else _count(trained_parameters(shape, work))
    yield f"{found.model}: {_count(shape.parameters)} parameters{of_each}; {trained} are trained"
    yield (
        f"{work.num_sequences:,} responses a step of {work.mean:.0f} tokens on average, "
        f"{work.longest:,} at most, behind prompts of {work.prompt:.0f}"
    )
    spread = (
        "every process has the whole trainer and a sampler"
        if found.layout == "replicated" and found.cluster.count > 1
        else f"state divided over all, samplers of {found.replica} each"
        if found.layout != "replicated"
        else "trainer and sampler in one process"
    )
    yield f"on {found.cluster.name}: {spread}"


def _memory(found: Estimate) -> Iterator[str]:
    memory = found.memory
    yield f"{'memory of each device':24} {'GiB':>9}"
    for name, size, note in memory_rows(found):
        yield f"  {name:22} {size:9.3f}  {note}".rstrip()
    room = memory.capacity / GIB
    verdict = "fits" if memory.fits else "does NOT fit"
    yield f"  {'at its peak':22} {memory.peak / GIB:9.3f}  {verdict} in {room:.1f} GiB"
    for change in found.changes:
        yield f"    -> {change}"


def _time(found: Estimate) -> Iterator[str]:
    step = found.step
    yield f"{'time of a step':24} {'s':>9}"
    parts = (
        ("sampling", step.sampling), ("log-probs, reference", step.scoring),
        ("training", step.training), ("weight sync", step.sync), ("all else", step.fixed),
    )  # fmt: skip
    for name, seconds in parts:
        if seconds:
            yield f"  {name:22} {seconds:9.3g}  {seconds / step.total:4.0%}"
    yield f"  {'together':22} {step.total:9.3g}"


def _cost(found: Estimate) -> Iterator[str]:
    cluster = found.cluster
    yield f"{found.work.steps:,} steps: {_duration(found.hours)}"
    if cluster.device.is_cpu:
        return
    yield f"  {found.device_hours:,.3g} GPU hours, {_money(found)} at {found.price:g} dollars each"
    low, high = OPEN_FRAMEWORKS
    yield (
        f"  open frameworks have taken {low:g} to {high:g} times such an estimate: count on "
        f"{_duration(low * found.hours)} to {_duration(high * found.hours)}"
    )


def _notes(found: Estimate) -> Iterator[str]:
    yield ""
    yield "assumed:"
    for note in found.assumed:
        yield f"  - {note}"
    yield "  - evaluations, checkpoints and the start-up are not counted"


def _count(number: float) -> str:
    for unit, size in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.4g}{unit}"
    return f"{number:.0f}"


def _gib(size: float) -> str:
    return f"{size / GIB:.1f} GiB"


def _duration(hours: float) -> str:
    if hours >= 48:
        return f"{hours / 24:,.1f} days"
    if hours >= 2:
        return f"{hours:.1f} hours"
    if hours * 60 >= 2:
        return f"{hours * 60:.0f} minutes"
    return f"{hours * 3600:.0f} seconds"


def _money(found: Estimate) -> str:
    dollars = found.dollars
    assert dollars is not None
    return f"{dollars:,.0f} dollars" if dollars >= 10 else f"{dollars:.2f} dollars"
