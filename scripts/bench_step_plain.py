"""More figures of scripts/bench_step.py: vLLM alone, the machine alone, memory, a profile."""

from __future__ import annotations

import ctypes
import json
import pickle
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from bench_step_sides import Ours, Theirs

from r1lab.rollout.vllm import patches as mends
from r1lab.types import ScoredGroup


def rollout_vs_plain(ours: Ours, repeats: int) -> dict[str, Any]:
    """Sampling of a step, records and all, over `LLM.generate` of the same engine, in turns."""
    from vllm import SamplingParams, TokensPrompt

    source, sampling = ours.source, ours.recipe.sampling
    assert source is not None
    engine: Any = source.sampler
    rollouts = source.next(ours.policy.version)
    prompts = [TokensPrompt(prompt_token_ids=list(r.prompt_token_ids)) for r in rollouts]
    params = SamplingParams(
        n=sampling.group_size, temperature=1.0, max_tokens=sampling.max_tokens, logprobs=0,
        flat_logprobs=True, detokenize=False, stop_token_ids=[1],
    )  # fmt: skip
    rates: dict[str, list[float]] = {"ours": [], "plain": []}
    for _ in range(repeats):
        began = time.perf_counter()
        rollouts = source.next(ours.policy.version)
        seconds = time.perf_counter() - began
        rates["ours"].append(
            sum(len(c.token_ids) for r in rollouts for c in r.completions) / seconds
        )
        engine.llm.reset_prefix_cache()
        with mends.run_uncompiled():
            began = time.perf_counter()
            outputs = engine.llm.generate(prompts, params, use_tqdm=False)
            seconds = time.perf_counter() - began
        rates["plain"].append(sum(len(m.token_ids) for o in outputs for m in o.outputs) / seconds)
    pairs = zip(rates["ours"], rates["plain"], strict=True)
    return {
        "rollout_vs_plain_vllm": median(a / b for a, b in pairs),
        "rollout_tokens_per_second": median(rates["ours"]),
        "plain_vllm_tokens_per_second": median(rates["plain"]),
    }


def machine() -> dict[str, float]:
    """Best of a few: matrix products in 10^9 operations a second, copies in 10^9 bytes a second."""

    def best(run: Any, repeats: int = 7) -> float:
        times = []
        for _ in range(repeats):
            began = time.perf_counter()
            run()
            times.append(time.perf_counter() - began)
        return min(times)

    figures = {}
    for dtype in (torch.float32, torch.bfloat16):
        square = torch.randn(1024, 1024).to(dtype)
        seconds = best(partial(torch.mm, square, square))
        figures[f"matmul_{dtype}".replace("torch.", "")] = 2 * 1024**3 / seconds / 1e9
    thin = torch.randn(4096, 192)
    weight = torch.randn(192, 192)
    figures["matmul_4096_192_192"] = 2 * 4096 * 192 * 192 / best(lambda: thin @ weight) / 1e9
    block = torch.ones(2**26)
    target = torch.empty_like(block)
    figures["copy"] = 2 * 4 * 2**26 / best(lambda: target.copy_(block)) / 1e9
    return figures


def memory(side: str, given: str) -> float:
    """MiB that the resident size rises by in one update, after one that was not counted."""
    work, scored, micro = pickle.loads(Path(given).read_bytes())
    if side == "ours":
        ours = Ours(work)
        ours.update(scored)
        start = mark()
        ours.update(scored)
        return (status("VmHWM") - start) / 1024
    starts: list[int] = []
    theirs = Theirs(
        work, micro, tempfile.mkdtemp(), scored=scored, steps=2,
        before=lambda: starts.append(mark()),
    )  # fmt: skip
    theirs.run()
    return (status("VmHWM") - starts[-1]) / 1024


def mark() -> int:
    """Give freed memory back, forget the peak so far; the resident size in KiB."""
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    return status("VmRSS")


def status(name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1])
    raise KeyError(name)


def profile(ours: Ours, scored: Sequence[ScoredGroup]) -> None:
    """Where an update goes, and what the machine could do at best."""
    ours.update(scored)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as seen:
        ours.update(scored)
    print(seen.key_averages().table(sort_by="self_cpu_time_total", row_limit=25))
    print("the machine at best:", json.dumps(machine()))
