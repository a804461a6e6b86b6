"""Probes that may hang or crash: they run in separate processes with a deadline.

    python -m r1lab.doctor.probe torch vllm | hub

prints one line of JSON for each name. A package whose import ends in a segmentation fault is then a
finding like any other, and so is one that takes longer than the deadline. torch and vLLM share a
process, because vLLM imports torch: two imports at a time would slow each other down.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

MachineProbe = Callable[[], dict[str, Any]]

DEADLINE = 7.0  # seconds for all of them: nobody waits longer for a word about a machine
_PROCESSES = (("torch", "vllm"), ("hub",))
_TURN = 0.5  # seconds that one comparison of precisions may take


def run_probes(seconds: float = DEADLINE) -> dict[str, dict[str, Any]]:
    """What each probe printed, {"error": why it did not}, or {"unfinished": seconds waited}."""
    until = time.monotonic() + seconds
    children = {
        names: subprocess.Popen(
            [sys.executable, "-m", "r1lab.doctor.probe", *names],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for names in _PROCESSES
    }  # fmt: skip
    found: dict[str, dict[str, Any]] = {}
    for names, child in children.items():
        found |= _results(names, child, seconds, max(until - time.monotonic(), 0.1))
    return found


def _results(
    names: Sequence[str], child: subprocess.Popen[str], limit: float, left: float
) -> dict[str, dict[str, Any]]:
    late = False
    try:
        out, err = child.communicate(timeout=left)
    except subprocess.TimeoutExpired:
        late = True
        child.kill()
        out, err = child.communicate()
    lines = [line for line in out.splitlines() if line.startswith("{")]
    found: dict[str, dict[str, Any]] = dict(zip(names, map(json.loads, lines), strict=False))
    last = [line.strip() for line in err.splitlines() if line.strip()][-1:]
    crash = {"error": last[0] if last else f"ended with code {child.returncode}"}
    missing: dict[str, Any] = {"unfinished": limit} if late else crash
    return {name: found.get(name, missing) for name in names}


def torch_facts() -> dict[str, Any]:
    """Version, GPUs, the attention kernels of torch, and how fast bfloat16 is."""
    import importlib.util

    import torch

    gpus = []
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        gpus.append(
            {
                "name": properties.name,
                "memory_gib": round(properties.total_memory / 2**30, 1),
                "compute_capability": f"{properties.major}.{properties.minor}",
                "bfloat16": torch.cuda.is_bf16_supported(including_emulation=False),
            }
        )
    backends: Any = torch.backends.cuda  # some of its functions have no types
    kernels = {
        "flash": bool(gpus) and backends.is_flash_attention_available(),
        "memory_efficient": bool(gpus) and backends.mem_efficient_sdp_enabled(),
        "cudnn": bool(gpus) and backends.cudnn_sdp_enabled(),
        **{
            name: importlib.util.find_spec(name) is not None
            for name in ("flash_attn", "flash_attn_interface", "flashinfer")
        },
    }
    return {
        "version": torch.__version__,
        "built_for": f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU",
        "threads": torch.get_num_threads(),
        "gpus": gpus,
        "attention": kernels,
        "bfloat16_speed": {
            f"{width} wide": round(bfloat16_speed(width, tokens), 2)
            for width, tokens in ((192, 1024), (1024, 128))
        },
    }


def bfloat16_speed(width: int, tokens: int, repeats: int = 7) -> float:
    """How many times as fast as float32 a layer's forward and backward is in bfloat16.

    Best of `repeats` each, in turns: other work on the machine slows both. Fewer where they take
    long, as bfloat16 does on CPUs without instructions for it.
    """
    import torch

    until = time.perf_counter() + _TURN

    device = "cuda" if torch.cuda.is_available() else "cpu"
    best = {torch.float32: float("inf"), torch.bfloat16: float("inf")}
    for _ in range(repeats):
        for dtype in best:
            layer = torch.nn.Linear(width, 2 * width, bias=False, device=device, dtype=dtype)
            values = torch.randn(tokens, width, device=device, dtype=dtype)
            began = time.perf_counter()
            loss = layer(values).float().square().mean()
            loss.backward()
            float(loss.detach())  # waits for a GPU
            best[dtype] = min(best[dtype], time.perf_counter() - began)
        if time.perf_counter() > until:
            break
    return best[torch.float32] / best[torch.bfloat16]


def vllm_facts() -> dict[str, Any]:
    """What the installed vLLM says of itself once it is imported."""
    from r1lab.rollout.vllm.build_info import probe

    return probe()


def hub_facts() -> dict[str, Any]:
    """Whether the model hub answers. Being offline is no fault: bases may lie in folders."""
    import urllib.error
    import urllib.request

    from huggingface_hub import constants

    facts = {
        "address": constants.ENDPOINT,
        "cache": constants.HF_HUB_CACHE,
        "offline_by_choice": bool(constants.HF_HUB_OFFLINE),
    }
    if constants.HF_HUB_OFFLINE:
        return {**facts, "reachable": False}
    request = urllib.request.Request(constants.ENDPOINT, method="HEAD")
    try:
        with urllib.request.urlopen(request, timeout=4) as answer:
            return {**facts, "reachable": True, "status": answer.status}
    except urllib.error.HTTPError as error:  # it answered
        return {**facts, "reachable": error.code < 500, "status": error.code}
    except OSError as error:
        why = error.reason if isinstance(error, urllib.error.URLError) else error
        return {**facts, "reachable": False, "error": str(why)}


PROBES: Mapping[str, MachineProbe] = {"torch": torch_facts, "vllm": vllm_facts, "hub": hub_facts}


def _look(name: str) -> dict[str, Any]:
    try:
        return PROBES[name]()
    except Exception as error:  # of whatever class an import raises: it is the finding
        return {"error": " ".join(f"{type(error).__name__}: {error}".split())[:300]}


if __name__ == "__main__":
    for name in sys.argv[1:]:
        sys.stdout.write("\n" + json.dumps(_look(name)) + "\n")
        sys.stdout.flush()  # what comes next may end the process
