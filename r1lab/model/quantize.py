"""Four-bit bases under adapters: QLoRA (Dettmers et al. 2023, arXiv 2305.14314), by bitsandbytes.

The linear layers of a frozen base are stored in NF4 with doubly quantised scales, and computed in
the model's own precision. Fused expert weights are not linear layers and are not quantised, nor are
the embedding, the head and the routers: a dense model shrinks to under a third, a V3-style one only
by its attention, dense and shared-expert weights. The sampler gets the weights that the trainer
computes with: the dequantised weights plus the adapters' update.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from r1lab.types import RecipeError


def quantize_base(model: nn.Module) -> None:
    """Quantise the linear layers of `model`, except the head, to four bits, in place.

    Raises RecipeError if bitsandbytes is not installed.
    """
    if find_spec("bitsandbytes") is None:
        raise RecipeError(
            "model.lora.four_bit: needs bitsandbytes, which is not installed; "
            "pip install 'r1lab[qlora]', or set it to false"
        )
    head = getattr(model, "get_output_embeddings", lambda: None)()
    for name, module in list(model.named_modules()):
        if type(module) is nn.Linear and module is not head:
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, _four_bit(module))
    # peft checks this before it adapts such a layer.
    model.is_loaded_in_4bit = True  # type: ignore[assignment]


def _four_bit(linear: nn.Linear) -> Any:
    from bitsandbytes.nn import Linear4bit, Params4bit

    layer = Linear4bit(
        linear.in_features,
        linear.out_features,
        bias=linear.bias is not None,
        compute_dtype=linear.weight.dtype,
        quant_type="nf4",
    )
    # On some CPUs a forward in eval mode would repack the weights for a special kernel, which fails
    # on widths that are not a multiple of its block, and rounds differently from training.
    layer.support_avx512bf16_for_cpu = False
    layer.weight = Params4bit(
        linear.weight.data, requires_grad=False, quant_type="nf4", compress_statistics=True
    )
    if linear.bias is not None:
        layer.bias = linear.bias
    return layer.to(linear.weight.device)  # quantises


@torch.no_grad()
def dequantized(model: nn.Module) -> dict[str, Tensor]:
    """Return name of each four-bit weight of `model` -> the weight that it computes with."""
    weights = {}
    for name, module in model.named_modules():
        state = getattr(getattr(module, "weight", None), "quant_state", None)
        # peft's wrapper exposes the weight of the wrapped layer.
        if state is not None and not hasattr(module, "base_layer"):
            from bitsandbytes.functional import dequantize_4bit

            weights[f"{name}.weight"] = dequantize_4bit(module.weight.data, state)
    return weights
