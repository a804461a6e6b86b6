"""The machines: rates and sizes from data sheets, and this CPU's by a short measurement.

Dense bfloat16 rates with float32 sums, without sparsity; links one way. Sources: NVIDIA's data
sheets of the H100, H200 and A100 (SXM), and of the GeForce architectures (Ampere GA102, Ada AD102;
their tensor rate with float32 sums); the H800 and H20 as DeepSeek-V3 (arXiv 2412.19437, section
3.1) and "Insights into DeepSeek-V3" (arXiv 2505.09343) and NVIDIA's H20 brief give them. A network
port is what such nodes usually have for each GPU: 400 Gb/s (Hopper), 200 Gb/s (A100), one port of
100 Gb/s a node where there is no fabric (GeForce).
"""

from __future__ import annotations

import os
import re
import time
from dataclasses import dataclass
from pathlib import Path

from r1lab.doctor.host import host_facts
from r1lab.hints import nearest
from r1lab.types import R1labError

GB, GIB = 10**9, 2**30


@dataclass(frozen=True, slots=True)
class Device:
    """One GPU, or one CPU: operations a second, bytes, bytes a second.

    `link` goes to the others of a node, `network` to those of other nodes. `price` is what one hour
    of it is usually asked for, in dollars, or None.
    """

    name: str
    operations: float
    memory: float
    bandwidth: float
    link: float
    network: float
    per_node: int = 8
    is_cpu: bool = False
    price: float | None = None


def _gpu(
    name: str, tera: float, gib: float, tb: float, link: float, network: float, price: float
) -> Device:
    return Device(
        name, tera * 1e12, gib * GIB, tb * 1e12, link * GB, network * GB, price=price
    )  # fmt: skip


# Memory is what is left to a process of the nominal size. Prices: the papers count an H800 at 2
# dollars an hour; the others follow it by their rate and age, to be set with --price.
DEVICES = {
    device.name.lower(): device
    for device in (
        _gpu("H100", 989, 79, 3.35, 450, 50, 2.0),
        _gpu("H200", 989, 140, 4.8, 450, 50, 2.5),
        _gpu("H800", 989, 79, 3.35, 200, 50, 2.0),
        _gpu("H20", 148, 95, 4.0, 450, 50, 1.2),
        _gpu("A100", 312, 79, 2.039, 300, 25, 1.2),
        _gpu("RTX4090", 165.2, 23.5, 1.008, 25, 1.5, 0.4),
        _gpu("RTX3090", 71, 23.5, 0.936, 25, 1.5, 0.25),
    )
}


@dataclass(frozen=True, slots=True)
class Cluster:
    """`count` equal devices."""

    device: Device
    count: int

    @property
    def num_nodes(self) -> int:
        """Nodes that they fill, the last one perhaps in part."""
        return -(-self.count // self.device.per_node)

    @property
    def name(self) -> str:
        """`8 x H100`, or the CPU's own."""
        return self.device.name if self.device.is_cpu else f"{self.count} x {self.device.name}"


def parse_gpus(text: str) -> Cluster:
    """`8xH100`, `H100` or `cpu`; R1labError with the nearest name for another."""
    if text.strip().lower() == "cpu":
        return Cluster(this_cpu(), 1)
    found = re.fullmatch(r"\s*(?:(\d+)\s*[xX*]\s*)?(.+?)\s*", text)
    count = int(found[1] or 1) if found else 0
    name = _plain(found[2] if found else "")
    if not 1 <= count <= 1_000_000:
        raise R1labError(f"--gpus: {text[:40]!r} must be like 8xH100, with 1 to 1,000,000 of them")
    if name not in DEVICES:
        names = [device.name for device in DEVICES.values()]
        raise R1labError(
            f"--gpus: {(found[2] if found else text)[:40]!r} is none of {', '.join(names)}, cpu"
            f"{nearest(name, names)}"
        )
    return Cluster(DEVICES[name], count)


def _plain(name: str) -> str:
    return re.sub(r"[\s_-]|nvidia|geforce|sxm\d?|80gb", "", name.lower())


def local_cluster(root: Path = Path("/")) -> Cluster:
    """The GPUs that the driver tells of, where all are in the table; else this CPU.

    `root` is where /proc is looked for (for tests). Asking the driver's files needs no torch.
    """
    names = []
    for file in sorted((root / "proc/driver/nvidia/gpus").glob("*/information")):
        found = re.search(r"^Model:\s*(.+)$", file.read_text(encoding="utf-8"), re.MULTILINE)
        names.append(_plain(found[1]) if found else "")
    known = [next((key for key in DEVICES if name.startswith(key)), None) for name in names]
    if known and known[0] is not None and len(set(known)) == 1:
        return Cluster(DEVICES[known[0]], len(known))
    return Cluster(this_cpu(), 1)


def this_cpu() -> Device:
    """This machine's cores, measured with numpy for a fifth of a second; not what others take."""
    host = host_facts()
    memory = (host["memory_available_gib"] or 0.0) * GIB
    operations, bandwidth = _measured()
    name = f"{len(os.sched_getaffinity(0))} CPU cores"
    return Device(
        name, operations, memory, bandwidth, bandwidth, bandwidth, per_node=1, is_cpu=True
    )


def _measured() -> tuple[float, float]:
    """(float32 operations a second of a product, bytes a second of a copy): best of a few."""
    import numpy as np

    square = np.ones((512, 512), dtype=np.float32)
    block = np.ones(2**22, dtype=np.float32)
    target = np.empty_like(block)

    def best(run: object, *given: object) -> float:
        assert callable(run)
        times = []
        for _ in range(4):
            began = time.perf_counter()
            run(*given)
            times.append(time.perf_counter() - began)
        return min(times)

    product = best(np.matmul, square, square)
    copy = best(np.copyto, target, block)
    return 2 * 512**3 / product, 2 * block.nbytes / copy
