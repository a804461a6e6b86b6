"""The machine: cores, CPU features, memory, disk, as far as this process may use them.

Inside a container the machine's own figures mislead; its limits are in control groups, in one of
two layouts (v1: a tree for each resource, v2: one tree).
"""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Iterator
from pathlib import Path

from r1lab.doctor.records import MachineFacts
from r1lab.precision import cpu_flags

GIB = 2**30

# What speeds up training or sampling on x86 and ARM CPUs, as /proc/cpuinfo names it.
_FEATURES = (
    "avx2", "avx512f", "avx512_bf16", "avx512_vnni", "amx_tile", "amx_bf16", "amx_int8",
    "asimd", "bf16", "sve", "i8mm",
)  # fmt: skip


def host_facts(root: Path = Path("/")) -> MachineFacts:
    """Cores, features and memory. `root` is where /proc and /sys are looked for (for tests)."""
    cpu = _cpu_info(root / "proc/cpuinfo")
    memory = _meminfo(root / "proc/meminfo")
    quota, limit, used = _cpu_quota(root), _memory_limit(root), _memory_used(root)
    usable = len(os.sched_getaffinity(0))
    available = memory.get("MemAvailable", 0)
    if limit is not None:
        available = min(available, max(limit - (used or 0), 0))
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": cpu.get("model name", platform.processor() or "unknown"),
        "features": [name for name in _FEATURES if name in cpu_flags(root)],
        "cores": os.cpu_count(),
        "cores_usable": usable,
        "cores_quota": quota,
        "memory_gib": _gib(memory.get("MemTotal")),
        "memory_limit_gib": _gib(limit),
        "memory_available_gib": _gib(available),
    }


def usable_cores(root: Path = Path("/")) -> int:
    """Whole cores that this process may use: its CPU affinity, cut to its container's quota."""
    cores = len(os.sched_getaffinity(0))
    quota = _cpu_quota(root)
    return cores if quota is None else max(1, min(cores, int(quota)))


def disk_facts(run_folder: Path, hub_cache: Path) -> MachineFacts:
    """Free GiB where runs, downloaded models and shared memory go; None if absent."""
    places = {"runs": run_folder, "hub_cache": hub_cache, "shared_memory": Path("/dev/shm")}
    return {name: {"path": str(path), "free_gib": _free_gib(path)} for name, path in places.items()}


def _free_gib(path: Path) -> float | None:
    for folder in (path, *path.absolute().parents):
        if folder.is_dir():
            return _gib(shutil.disk_usage(folder).free)
    return None


def _cpu_info(path: Path) -> dict[str, str]:
    """The first processor's lines of /proc/cpuinfo."""
    if not path.is_file():
        return {}
    first = path.read_text(encoding="utf-8", errors="replace").partition("\n\n")[0]
    pairs = (line.partition(":") for line in first.splitlines())
    return {name.strip(): value.strip() for name, _, value in pairs}


def _meminfo(path: Path) -> dict[str, int]:
    """Bytes by name."""
    if not path.is_file():
        return {}
    rows = (line.split() for line in path.read_text().splitlines())
    return {row[0].rstrip(":"): int(row[1]) * 1024 for row in rows if len(row) > 1}


def _cpu_quota(root: Path) -> float | None:
    """Cores that the control groups allow, fractions of them too; None without a limit."""
    quotas = []
    for folder in _groups(root, "cpu"):
        if (folder / "cpu.max").is_file():
            quota, _, period = (folder / "cpu.max").read_text().partition(" ")
        else:
            quota = _text(folder / "cpu.cfs_quota_us")
            period = _text(folder / "cpu.cfs_period_us")
        if quota.strip().isdigit() and period.strip().isdigit():
            quotas.append(int(quota) / int(period))
    return min(quotas, default=None)


def _memory_limit(root: Path) -> int | None:
    """Bytes that the control groups allow; None without a limit."""
    found = [
        int(text)
        for folder in _groups(root, "memory")
        for name in ("memory.max", "memory.limit_in_bytes")
        # v1 says "no limit" with a number near 2**63.
        if (text := _text(folder / name)).isdigit() and int(text) < 2**60
    ]
    return min(found, default=None)


def _memory_used(root: Path) -> int | None:
    """Bytes that count against the innermost group."""
    for folder in _groups(root, "memory"):
        for name in ("memory.current", "memory.usage_in_bytes"):
            if (text := _text(folder / name)).isdigit():
                return int(text)
    return None


def _groups(root: Path, resource: str) -> Iterator[Path]:
    """The folders of this process's control group and those around it, innermost first."""
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and resource not in controllers.split(","):
            continue
        top = root / "sys/fs/cgroup" / (resource if controllers else "")
        group = top / path.lstrip("/")
        # In a container the group's path may be the host's, with only its top to be seen here.
        for folder in (group, *group.parents):
            if folder.is_dir() and folder.is_relative_to(top):
                yield folder


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8").strip() if path.is_file() else ""


def _gib(num_bytes: int | None) -> float | None:
    return None if num_bytes is None else round(num_bytes / GIB, 1)
