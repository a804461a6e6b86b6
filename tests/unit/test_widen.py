"""A widened model computes what the narrow one does."""

from __future__ import annotations

import pytest
import tiny
import torch
from transformers import DeepseekV3ForCausalLM, LlamaForCausalLM

from r1lab.model.widen import widen

IDS = tiny.sequences()[:4]


def model(**changes: object) -> DeepseekV3ForCausalLM:
    """Random weights, large enough that attention and position matter."""
    torch.manual_seed(0)
    config = tiny.v3_config(num_hidden_layers=2, initializer_range=0.1, **changes)
    result = DeepseekV3ForCausalLM._from_config(config, experts_implementation="eager").eval()
    for name, parameter in result.named_parameters():
        if "layernorm" in name:
            parameter.data.uniform_(0.5, 1.5)
    return result


@torch.no_grad()
def logits(model: torch.nn.Module, ids: torch.Tensor = IDS) -> torch.Tensor:
    return model(input_ids=ids).logits


@pytest.mark.parametrize("changes", [{}, {"q_lora_rank": 48}, {"qk_rope_head_dim": 64}])
def test_a_widened_model_computes_the_same(changes):
    narrow = model(**changes)
    wide = widen(narrow)
    assert (wide.config.kv_lora_rank, wide.config.qk_rope_head_dim) == (512, 64)
    scale = logits(narrow).std()
    assert (logits(wide) - logits(narrow)).abs().max() < 1e-4 * scale


def test_position_matters_in_what_was_compared():
    narrow = model()
    shifted = torch.cat([IDS[:, 1:2], IDS[:, :1], IDS[:, 2:]], 1)  # two tokens change places
    assert (logits(narrow, shifted) - logits(narrow))[:, -1].abs().max() > 1e-2


def test_the_narrow_model_and_torchs_random_state_are_left_alone():
    narrow = model()
    before = {name: tensor.clone() for name, tensor in narrow.state_dict().items()}
    state = torch.get_rng_state()
    widen(narrow)
    assert torch.equal(torch.get_rng_state(), state)
    assert narrow.config.kv_lora_rank == 64
    assert all(torch.equal(before[name], tensor) for name, tensor in narrow.state_dict().items())


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="V3-style"):
        widen(LlamaForCausalLM(tiny.llama_config()))
    with pytest.raises(ValueError, match="qk_rope_head_dim 24"):
        widen(model(qk_rope_head_dim=24))
    with pytest.raises(ValueError, match="rope_interleave False"):
        widen(model(rope_interleave=False))
