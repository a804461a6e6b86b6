"""Choose a model's attention kernel, and check that this machine supports it.

The names are those of transformers' `attn_implementation`.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from r1lab.types import RecipeError

if TYPE_CHECKING:
    from r1lab.config.recipe import ModelSettings

# Kernels that accept sequences of any lengths concatenated in one row (`grpo.sequence_packing`),
# each with its package.
VARLEN = {
    "flash_attention_2": "flash-attn",
    "flash_attention_3": "flash-attn-3",
    "flash_attention_4": "flash-attn-4",
}


def takes_packed_rows(config: Any) -> bool:
    """Return whether a model's attention accepts `cu_seq_lens`, the ends of a row's sequences."""
    return getattr(config, "_attn_implementation", None) in VARLEN


def kernel_of(config: Any, attention: str) -> str | None:
    """Return transformers' `attn_implementation` for `model.attention`; None: its default.

    Raises ValueError for a kernel that would ignore part of what `config` requires.
    """
    if getattr(config.get_text_config(decoder=True), "attn_logit_softcapping", None) is None:
        return None if attention == "auto" else attention
    # sdpa supports no cap on the scores (Gemma 2, VaultGemma): transformers silently ignores it.
    if attention == "sdpa":
        raise ValueError(
            f"model.attention: 'sdpa' ignores the cap on the attention scores of a "
            f"{config.model_type}; use 'auto' or 'eager'"
        )
    return "eager" if attention == "auto" else attention


def check_attention(settings: ModelSettings) -> None:
    """Reject a kernel that cannot run here; raises RecipeError."""
    name = settings.attention
    if name not in VARLEN:
        return
    import torch

    if not torch.cuda.is_available():
        raise RecipeError(
            f"model.attention: {name!r} needs a CUDA GPU, and torch finds none here; use 'auto'"
        )
    check_kernel_precision(settings)
    if not _is_installed(name) and find_spec("kernels") is None:
        raise RecipeError(
            f"model.attention: {name!r} is not installed; pip install {VARLEN[name]} (or kernels, "
            "which fetches it from the hub), or use 'auto'"
        )


def check_kernel_precision(settings: ModelSettings) -> None:
    """Reject a kernel that does not support the recipe's precision; raises RecipeError."""
    name = settings.attention
    if name in VARLEN and settings.dtype == "float32":
        raise RecipeError(
            f"model.attention: {name!r} has no float32; set model.dtype to bfloat16, or use 'auto'"
        )


def _is_installed(name: str) -> bool:
    from transformers.modeling_flash_attention_utils import FLASH_ATTENTION_COMPATIBILITY_MATRIX

    version = int(name.rpartition("_")[2])
    return bool(FLASH_ATTENTION_COMPATIBILITY_MATRIX[version]["general_availability_check"]())
