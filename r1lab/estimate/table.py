"""The estimate in words: a table for the terminal, and the few lines of a dry run."""

from __future__ import annotations

from collections.abc import Iterator

from r1lab.estimate.constants import OPEN_FRAMEWORKS
from r1lab.estimate.hardware import GIB
from r1lab.estimate.memory import trained_parameters
from r1lab.estimate.plan import RunEstimate, memory_rows
from r1lab.estimate.timing import StepTime


def table(found: RunEstimate) -> str:
    """All of it. Where it does not fit there is no time and no cost."""
    lines = [*_heading(found), "", *_memory(found), ""]
    if found.step is not None:
        lines += [*_time(found.step), "", *_cost(found), ""]
    return "\n".join([*lines, *_notes(found)])


def brief(found: RunEstimate) -> str:
    """Three lines, for a dry run."""
    memory = found.memory
    verdict = "fits" if memory.fits else "does NOT fit: " + "; or ".join(found.changes[:2])
    lines = [
        f"estimate on {found.cluster.name}: {memory.peak / GIB:.1f} of "
        f"{memory.capacity / GIB:.1f} GiB each, {verdict}"
    ]
    if found.step is not None and found.hours is not None:
        cost = "" if found.dollars is None else f", {_money(found.dollars)}"
        lines.append(f"  {found.step.total:.2g} s a step, {_duration(found.hours)} in all{cost}")
    lines.append("  (r1lab estimate has the parts, other hardware, and what is assumed)")
    return "\n".join(lines)


def _heading(found: RunEstimate) -> Iterator[str]:
    shape, work = found.shape, found.work
    active = shape.active_parameters
    of_each = f", {_count(active)} of them for a token" if shape.mixture else ""
    trained = "all" if work.lora is None else _count(trained_parameters(shape, work))
    yield f"{found.model}: {_count(shape.parameters)} parameters{of_each}; {trained} are trained"
    yield (
        f"{work.num_sequences:,} responses a step of {work.mean:.0f} tokens on average, "
        f"{work.longest:,} at most, behind prompts of {work.prompt:.0f}"
    )
    if found.layout != "replicated":
        spread = f"state divided over all, samplers of {found.replica} each"
    elif found.cluster.count > 1:
        spread = "every process has the whole trainer and a sampler"
    else:
        spread = "trainer and sampler in one process"
    yield f"on {found.cluster.name}: {spread}"


def _memory(found: RunEstimate) -> Iterator[str]:
    memory = found.memory
    yield f"{'memory of each device':24} {'GiB':>9}"
    for name, size, note in memory_rows(found):
        yield f"  {name:22} {size:9.3f}  {note}".rstrip()
    verdict = "fits" if memory.fits else "does NOT fit"
    yield (
        f"  {'at its peak':22} {memory.peak / GIB:9.3f}  {verdict} in "
        f"{memory.capacity / GIB:.1f} GiB"
    )
    if not memory.has_cache:
        needed = memory.cache_needed / GIB
        yield f"  the cache does not hold one whole response, which takes {needed:.3f} GiB"
    for change in found.changes:
        yield f"    -> {change}"


def _time(step: StepTime) -> Iterator[str]:
    yield f"{'time of a step':24} {'s':>9}"
    parts = {
        "sampling": step.sampling,
        "log-probs, reference": step.scoring,
        "training": step.training,
        "weight sync": step.sync,
        "all else": step.fixed,
    }
    for name, seconds in parts.items():
        if seconds:
            yield f"  {name:22} {seconds:9.2f}  {seconds / step.total:4.0%}"
    yield f"  {'together':22} {step.total:9.2f}"


def _cost(found: RunEstimate) -> Iterator[str]:
    hours, spent, dollars = found.hours, found.device_hours, found.dollars
    assert hours is not None and spent is not None
    is_cpu = found.cluster.device.is_cpu
    yield f"{found.work.steps:,} steps: {_duration(hours)}"
    if dollars is not None:
        kind = "hours" if is_cpu else "GPU hours"
        count = f"{spent:,.0f}" if spent >= 10 else f"{spent:.2g}"
        yield f"  {count} {kind}, {_money(dollars)} at {found.price:g} dollars each"
    if not is_cpu:
        low, high = OPEN_FRAMEWORKS
        yield (
            f"  open frameworks have taken {low:g} to {high:g} times such an estimate: count on "
            f"{_duration(low * hours)} to {_duration(high * hours)}"
        )


def _notes(found: RunEstimate) -> Iterator[str]:
    yield "assumed:"
    for note in found.assumed:
        yield f"  - {note}"
    if found.step is not None:
        yield "  - evaluations, checkpoints and the start-up are not counted"


def _count(number: float) -> str:
    for unit, size in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.4g}{unit}"
    return f"{number:.0f}"


def _duration(hours: float) -> str:
    if hours >= 48:
        return f"{hours / 24:,.1f} days"
    if hours >= 2:
        return f"{hours:.1f} hours"
    if hours * 60 >= 2:
        return f"{hours * 60:.0f} minutes"
    return f"{hours * 3600:.0f} seconds"


def _money(dollars: float) -> str:
    return f"{dollars:,.0f} dollars" if dollars >= 10 else f"{dollars:.2f} dollars"
