"""Widen a model to DeepSeek-V3's attention shape without changing its function.

vLLM's kernel for latent attention (MLA) on the CPU supports only a latent of 512 and a rotary part
of 64. A narrower model is padded with zeros to that shape here, and computes the same function:

* latent: new rows of the down-projection are zero, and so are the columns that would read them.
  RMSNorm then averages over 512 entries instead of n; with the real rows scaled by sqrt(512 / n)
  the mean of squares is unchanged (epsilon included), and the norm's weight undoes the scale;
* rotary part: pair i of r / 2 rotates by theta^(-2 i / r), as does pair i * 64 / r of 32. The real
  pairs move there, the others stay zero;
* softmax scale: 1 / sqrt(nope + rope) shrinks with the wider heads; the queries compensate.

Notation as in DeepSeek-V2 (arXiv 2405.04434, section 2.1).
"""

from __future__ import annotations

import copy
import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from transformers import DeepseekV3Config, PreTrainedModel

LATENT, ROTARY = 512, 64


@torch.no_grad()
def widen(model: PreTrainedModel) -> PreTrainedModel:
    """Return a V3-style model of kv_lora_rank 512 and qk_rope_head_dim 64 equivalent to `model`.

    The given model is unchanged. Do this in float32: the scales are not powers of two. Raises
    ValueError for shapes that do not fit into the wider one.
    """
    config = model.config
    _check(config)
    wide = copy.deepcopy(config)
    wide.kv_lora_rank, wide.qk_rope_head_dim, wide.head_dim = LATENT, ROTARY, ROTARY
    wide.qk_head_dim = config.qk_nope_head_dim + ROTARY
    state = dict(model.state_dict())
    for name, tensor in state.items():
        state[name] = _widened(name.split("self_attn.")[-1], tensor, config)
    with torch.random.fork_rng(), torch.device(model.device):
        result = type(model)._from_config(
            wide,
            dtype=model.dtype,
            experts_implementation=config._experts_implementation,
        )
    result.load_state_dict(state)
    return result.eval()


def _check(config: DeepseekV3Config) -> None:
    if config.model_type != "deepseek_v3":
        raise ValueError(f"only V3-style models have a latent to widen, not {config.model_type!r}")
    if config.kv_lora_rank > LATENT or ROTARY % config.qk_rope_head_dim:
        raise ValueError(
            f"kv_lora_rank {config.kv_lora_rank} and qk_rope_head_dim {config.qk_rope_head_dim} do "
            f"not fit into {LATENT} and {ROTARY}"
        )
    kind = config.rope_parameters["rope_type"]
    if kind != "default" or not config.rope_interleave or config.attention_bias:
        raise ValueError(
            "widening supports only plain interleaved rotary embeddings without attention biases "
            f"(rope_type {kind!r}, rope_interleave {config.rope_interleave}, attention_bias "
            f"{config.attention_bias})"
        )


def _widened(name: str, weight: Tensor, config: DeepseekV3Config) -> Tensor:
    """Return one parameter of an attention block in the wider shape; any other unchanged."""
    latent, rope, nope = config.kv_lora_rank, config.qk_rope_head_dim, config.qk_nope_head_dim
    spread = math.sqrt(LATENT / latent)
    match name:
        case "q_proj.weight" | "q_b_proj.weight":  # [heads * (nope + rope), in]
            heads = weight.unflatten(0, (-1, nope + rope))
            heads = torch.cat([heads[:, :nope], _spread_pairs(heads[:, nope:], rope)], 1)
            return heads.flatten(0, 1) * math.sqrt((nope + ROTARY) / (nope + rope))
        case "kv_a_proj_with_mqa.weight":  # [latent + rope, hidden]
            down = _zero_padded(weight[:latent] * spread, 0)
            return torch.cat([down, _spread_pairs(weight[None, latent:], rope)[0]])
        case "kv_a_layernorm.weight":  # [latent]
            return _zero_padded(weight / spread, 0)
        case "kv_b_proj.weight":  # [heads * (nope + v), latent]
            return _zero_padded(weight, 1)
    return weight


def _zero_padded(weight: Tensor, dim: int) -> Tensor:
    """Return `weight` padded with zeros at the end, to LATENT entries along `dim`."""
    shape = list(weight.shape)
    shape[dim] = LATENT - shape[dim]
    return torch.cat([weight, weight.new_zeros(shape)], dim)


def _spread_pairs(weight: Tensor, rope: int) -> Tensor:
    """[heads, rope, in] -> [heads, ROTARY, in]: move pairs to where they rotate as before."""
    wide = weight.new_zeros(weight.shape[0], ROTARY // 2, 2, weight.shape[2])
    wide[:, :: ROTARY // rope] = weight.unflatten(1, (rope // 2, 2))
    return wide.flatten(1, 2)
