"""A model's weights under their checkpoint names, adapters merged, as a sampler needs them.

This differs from `state_dict()` in two ways. Transformers 5 fuses the experts of a layer into 3-D
tensors and renames others while it loads; samplers and checkpoints keep the original names, so the
conversion is reverted here. And an adapter's update is added out of place (W + B A into a new
tensor), never merged into the base: merging and unmerging at every sync makes the base drift by a
rounding error each time (Hu et al. 2021, arXiv 2106.09685, for the update itself).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from r1lab.model.files import make_saveable
from r1lab.model.quantize import dequantized
from r1lab.model.shard import class_of, gathered, is_sharded, units

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# V3's router bias moves experts by differences far below bfloat16's resolution.
ROUTER_BIAS = "e_score_correction_bias"


@torch.no_grad()
def checkpoint_weights(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield (checkpoint name, tensor) of every weight and saved buffer of a full or LoRA model.

    Tensors keep the model's dtype, the router bias its float32. They may share storage with the
    model: consume them before the next update. A tied `lm_head` is omitted, as in checkpoints.
    Sharded weights are gathered layer by layer, into copies: every process must iterate to the end.
    """
    from transformers.core_model_loading import revert_weight_conversion

    base = base_model(model)
    for weights in _gathered_states(base) if is_sharded(base) else (merged_state(model),):
        if base.config.tie_word_embeddings:
            for name in base.all_tied_weights_keys:
                weights.pop(name, None)
        yield from revert_weight_conversion(base, weights).items()


def base_model(model: nn.Module) -> PreTrainedModel:
    """Return the transformers model inside a peft model, or the model itself."""
    get_base = getattr(model, "get_base_model", None)
    return get_base() if get_base is not None else model


@torch.no_grad()
def merged_state(model: nn.Module) -> dict[str, Tensor]:
    """Return the state dict of the model without adapters, each adapted weight as base + delta."""
    base = base_model(model)
    if base is model:
        return {name: tensor.detach() for name, tensor in model.state_dict().items()}
    full = dequantized(base)
    state = {
        _plain(name): full.get(name, tensor)
        for name, tensor in base.state_dict().items()
        if ".lora_" not in name and not _belongs_to(name, full)
    }
    _add_adapters(state, base.named_modules())
    return state


def _gathered_states(base: PreTrainedModel) -> Iterator[dict[str, Tensor]]:
    """Yield `merged_state` of a sharded model in pieces: each layer, then the rest."""
    left = set(base.state_dict())
    for unit_name, unit in units(base):
        prefix = f"{unit_name}." if unit_name else ""
        with gathered(unit):
            tensors = (*base.named_parameters(remove_duplicate=False), *base.named_buffers())
            state = {
                _plain(name): tensor.detach().clone()
                for name, tensor in tensors
                if name in left and name.startswith(prefix) and ".lora_" not in name
            }
            modules = unit.named_modules(prefix=unit_name)
            _add_adapters(state, modules if unit_name else ())  # adapters are only in layers
        left = {name for name in left if not name.startswith(prefix)}
        yield state


def _add_adapters(state: dict[str, Tensor], modules: Iterable[tuple[str, nn.Module]]) -> None:
    """Replace each weight in `state` that one of `modules` adapts by base + delta."""
    from peft.tuners.lora import LoraLayer

    # Nested wrappers (two adapted parameters of one module) adapt different parameters, so their
    # order does not matter.
    for name, module in modules:
        if isinstance(module, LoraLayer):
            key = f"{_plain(name)}.{getattr(module, 'parameter_name', 'weight')}"
            for adapter in module.active_adapters:
                state[key] = _add_delta(module, adapter, state[key])


def save_checkpoint_folder(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    folder: str | Path,
    *,
    is_main: bool = True,
) -> None:
    """Write an ordinary Hugging Face folder: merged weights, configuration and tokenizer.

    Every process calls it together, as sharded weights are gathered from all; the main one writes.
    """
    from huggingface_hub import save_torch_state_dict

    folder = Path(folder)
    base = base_model(model)
    if not is_main:
        if is_sharded(base):
            for _ in checkpoint_weights(model):
                pass
        return
    folder.mkdir(parents=True, exist_ok=True)
    # Copy, because single experts are views of the fused tensor, which a file cannot hold. Copy to
    # the CPU, because a GPU that trains shards cannot hold the whole model.
    weights = {
        name: tensor.to("cpu", copy=True, memory_format=torch.contiguous_format)
        for name, tensor in checkpoint_weights(model)
    }
    save_torch_state_dict(weights, folder)
    for file in folder.glob("*.safetensors"):
        file.chmod(0o644)  # like the other files; safetensors are written owner-only
    save_settings(base, tokenizer, folder)


def save_settings(
    base: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: str | Path
) -> None:
    """Write everything in a model's folder except the weights: configurations and tokenizer."""
    config = base.config
    config.architectures = [class_of(base).__name__]
    config.dtype = base.dtype
    if config.model_type == "deepseek_v3":
        # This is what transformers' router computes; vLLM needs it here, and fails without it.
        config.topk_method, config.scoring_func = "noaux_tc", "sigmoid"
    config.save_pretrained(folder)
    if base.generation_config is not None:
        make_saveable(base.generation_config)
        base.generation_config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _belongs_to(name: str, quantized: Mapping[str, Tensor]) -> bool:
    """Return whether an entry holds scales of a four-bit weight: `q_proj.weight.absmax`."""
    owner, dot, _ = name.partition(".weight.")
    return bool(dot) and f"{owner}.weight" in quantized


def _plain(name: str) -> str:
    """Return a parameter's name without peft's wrappers: experts.base_layer.x -> experts.x."""
    return ".".join(part for part in name.split(".") if part != "base_layer")


def _add_delta(module: Any, adapter: str, weight: Tensor) -> Tensor:
    """Return weight + alpha / r * B A, in float32 and rounded once, as a new tensor."""
    if getattr(module, "num_experts", 1) > 1:
        # The trainer's forward adds the update to the fused experts in their own precision; the
        # same operation here makes trainer and sampler identical.
        left, right, scaling = module.get_delta_factors(adapter)
        return torch.baddbmm(weight, left, right, alpha=scaling)
    delta = module.get_delta_weight(adapter)
    return (weight.float() + delta.float()).to(weight.dtype)
