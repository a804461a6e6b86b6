"""The examination: facts first, then what each means for training, with the fix where one helps."""

from __future__ import annotations

import shutil
from dataclasses import asdict
from pathlib import Path

from r1lab.doctor.host import disk_facts, host_facts
from r1lab.doctor.packages import SETUP, package_facts, package_findings
from r1lab.doctor.probe import run_probes
from r1lab.doctor.records import MachineCheck, MachineFacts, Report
from r1lab.rollout.vllm.build_info import MLA_KERNEL_SHAPE, installed_build

# What the quickstart needs at least, with its engine and its checkpoints (measured: 3.0 GiB of
# memory, 0.1 GiB of disk). Larger bases need more.
_MEMORY_GIB, _DISK_GIB = 4.0, 1.0
# Below, bfloat16 costs time on this CPU and float32 is the better choice.
_BFLOAT16_PAYS = 0.8
_FLOAT32 = "pass --model.dtype float32, which `auto` takes where the CPU has no such instructions"


def examine(run_folder: Path = Path("runs")) -> Report:
    """Run all checks, in about ten seconds at most. Raises nothing."""
    probes = run_probes()
    torch, vllm, hub = probes["torch"], _with_metadata(probes["vllm"]), probes["hub"]
    cache = Path(hub.get("cache", Path.home() / ".cache"))
    host, disk = host_facts(), disk_facts(run_folder, cache)
    findings = (
        *_host_findings(host),
        *package_findings(),
        *_torch_findings(torch),
        *_vllm_findings(vllm, bool(torch.get("gpus"))),
        _attention_finding(torch, vllm),
        *_disk_findings(disk),
        _hub_finding(hub),
    )
    facts = {
        "host": host,
        "packages": package_facts(),
        "torch": torch,
        "vllm": vllm,
        "disk": disk,
        "hub": hub,
    }
    return Report(facts, findings)


def _with_metadata(vllm: MachineFacts) -> MachineFacts:
    """What an unfinished import leaves to be read from the installed package's metadata."""
    if "unfinished" not in vllm:
        return vllm
    build = installed_build()
    if build is None:
        return {"error": "no vLLM is installed"}
    return {**asdict(build), "platform": {"cpu": "cpu", "gpu": "cuda"}[build.device], **vllm}


def _host_findings(host: MachineFacts) -> list[MachineCheck]:
    cores = f"{host['cores_usable']} of {host['cores']} cores"
    if host["cores_quota"] is not None:
        cores += f", held to {host['cores_quota']:g} by a control group"
    features = ", ".join(host["features"]) or "none of those that matter"
    findings = [MachineCheck("cpu", "ok", f"{host['cpu']}, {cores}; {features}")]
    memory = f"{host['memory_available_gib']:g} of {host['memory_gib'] or 0:g} GiB free"
    if host["memory_limit_gib"] is not None:
        memory += f", held to {host['memory_limit_gib']:g} by a control group"
    if host["memory_available_gib"] < _MEMORY_GIB:
        fix = f"the smallest run needs {_MEMORY_GIB:g} GiB: end other programs or raise the limit"
        findings.append(MachineCheck("memory", "missing", memory, fix))
    else:
        findings.append(MachineCheck("memory", "ok", memory))
    return findings


def _torch_findings(torch: MachineFacts) -> list[MachineCheck]:
    if "error" in torch:
        return [MachineCheck("torch", "missing", f"cannot be imported: {torch['error']}", SETUP)]
    if "unfinished" in torch:
        message = f"its import took longer than {torch['unfinished']:g} seconds: not checked"
        return [
            MachineCheck("torch", "warning", message, "call r1lab doctor again: imports get faster")
        ]
    findings = [_gpu_finding(torch)]
    speed = torch["bfloat16_speed"]
    message = ", ".join(f"{ratio:g} times as fast as float32 ({at})" for at, ratio in speed.items())
    if min(speed.values()) >= _BFLOAT16_PAYS:
        return [*findings, MachineCheck("bfloat16", "ok", message)]
    return [*findings, MachineCheck("bfloat16", "warning", message, _FLOAT32)]


def _gpu_finding(torch: MachineFacts) -> MachineCheck:
    gpus = torch["gpus"]
    if gpus:
        message = "; ".join(
            f"{gpu['name']}, {gpu['memory_gib']:g} GiB, compute capability "
            f"{gpu['compute_capability']}"
            for gpu in gpus
        )
        if not all(gpu["bfloat16"] for gpu in gpus):
            return MachineCheck("gpu", "warning", f"{message}; no bfloat16", _FLOAT32)
        return MachineCheck("gpu", "ok", message)
    if shutil.which("nvidia-smi"):
        return MachineCheck(
            "gpu", "warning",
            f"nvidia-smi is here, and torch {torch['version']} sees no GPU (it is built for "
            f"{torch['built_for']})",
            "DEVICE=gpu make setup; in a container, hand the GPU in (docker run --gpus all)",
        )  # fmt: skip
    return MachineCheck("gpu", "ok", "none: training runs on the CPU")


def _vllm_findings(vllm: MachineFacts, has_gpu: bool) -> list[MachineCheck]:
    if "error" in vllm:
        return [
            MachineCheck(
                "vllm", "warning", f"cannot be imported: {vllm['error']}",
                f"{SETUP}; without it --sampling.engine transformers samples, slower",
            )
        ]  # fmt: skip
    message = f"{vllm.get('distribution', 'vllm')} {vllm['version']}, runs on {vllm['platform']}"
    if "unfinished" in vllm:
        message += (
            f" by its metadata: its import was not awaited past {vllm['unfinished']:g} seconds"
        )
    if has_gpu and vllm["platform"] == "cpu":
        return [
            MachineCheck(
                "vllm", "warning", f"{message}, and there is a GPU", "DEVICE=gpu make setup"
            )
        ]
    if has_gpu and shutil.which("cc") is None and shutil.which("gcc") is None:
        # On GPUs vLLM compiles kernels when it starts.
        return [MachineCheck("vllm", "warning", f"{message}; no C compiler", "apt install gcc")]
    return [MachineCheck("vllm", "ok", message)]


def _attention_finding(torch: MachineFacts, vllm: MachineFacts) -> MachineCheck:
    kernels = [name for name, is_there in torch.get("attention", {}).items() if is_there]
    trainer = ", ".join(kernels) or "torch's own for the CPU"
    if torch.get("gpus") and not kernels:
        trainer = "none but torch's plain form"
    sampler = "none" if "error" in vllm else "vLLM's own"
    if vllm.get("platform") == "cpu":
        rank, rope = MLA_KERNEL_SHAPE
        sampler += f"; latent attention (MLA) only at {rank} + {rope}, other shapes decompressed"
    return MachineCheck("attention", "ok", f"trainer: {trainer}; sampler: {sampler}")


def _disk_findings(disk: MachineFacts) -> list[MachineCheck]:
    findings = []
    for name, place in disk.items():
        free = place["free_gib"]
        if free is None:
            continue
        message = f"{free:g} GiB free for {place['path']}"
        if name == "shared_memory":
            if free < 0.1:
                fix = "several processes share memory there: docker run --shm-size 2g"
                findings.append(MachineCheck(name, "warning", message, fix))
            continue
        if free >= _DISK_GIB:
            findings.append(MachineCheck(f"disk_{name}", "ok", message))
        elif name == "runs":
            fix = "checkpoints and rollouts go there: free some, or name a folder with --output"
            findings.append(MachineCheck("disk_runs", "missing", message, fix))
        else:
            fix = "downloaded models go there: free some, or set HF_HUB_CACHE"
            findings.append(MachineCheck(f"disk_{name}", "warning", message, fix))
    return findings


def _hub_finding(hub: MachineFacts) -> MachineCheck:
    folder = "bases are read from folders and from the hub's cache"
    if hub.get("reachable"):
        return MachineCheck("hub", "ok", f"{hub['address']} answers")
    if hub.get("offline_by_choice"):
        return MachineCheck("hub", "ok", f"offline by HF_HUB_OFFLINE: {folder}")
    return MachineCheck(
        "hub", "ok", f"not reachable ({hub.get('error') or hub.get('status')}): {folder}",
        "for a base by its hub name: set HF_ENDPOINT to a mirror, or copy the folder here",
    )  # fmt: skip
