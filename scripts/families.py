"""A small random model of each family of causal LMs that is held against vLLM here.

Configurations are shrunk (two layers, hidden size 64) and otherwise keep what their family's
published models have: grouped heads, biases, query and key norms, shared experts and their gate,
the router's scores, groups and scaling, MLA's latents, YaRN, tied or untied embeddings. Used by
scripts/check_families.py and tests/parity/test_families.py.
"""

from __future__ import annotations

from typing import Any

import torch

HIDDEN, NUM_LAYERS, HEAD, POSITIONS = 64, 2, 32, 512

_COMMON: dict[str, Any] = {
    "hidden_size": HIDDEN, "num_hidden_layers": NUM_LAYERS, "max_position_embeddings": POSITIONS,
}  # fmt: skip
_GROUPED: dict[str, Any] = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": HEAD}
# vLLM's expert kernel on the CPU takes multiples of 32.
_EXPERTS: dict[str, Any] = {"intermediate_size": 128, "moe_intermediate_size": 32}
_LATENT: dict[str, Any] = {
    "num_attention_heads": 2, "num_key_value_heads": 2, "kv_lora_rank": 32,
    "qk_nope_head_dim": 32, "qk_rope_head_dim": 16, "v_head_dim": 48,
    "first_k_dense_replace": 1, "n_routed_experts": 8, "num_experts_per_tok": 3,
    "tie_word_embeddings": False,
}  # fmt: skip


def _yarn(mscale: float) -> dict[str, Any]:
    """YaRN (arXiv 2309.00071) as DeepSeek has it, for a quarter of the positions."""
    return {
        "rope_type": "yarn", "rope_theta": 10_000.0, "factor": 4.0, "beta_fast": 32, "beta_slow": 1,
        "original_max_position_embeddings": POSITIONS // 4,
        "mscale": mscale, "mscale_all_dim": mscale,
    }  # fmt: skip


# Name -> (configuration class of transformers, what it has beside `_COMMON`).
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    # Llama 3: grouped heads, untied (the tied one is in scripts/measure_sync.py).
    "llama": (
        "LlamaConfig",
        {**_GROUPED, "intermediate_size": 128, "tie_word_embeddings": False},
    ),
    # Qwen2 and Qwen2.5 below 7B: biases on q, k, v, tied embeddings.
    "qwen2": (
        "Qwen2Config",
        {"num_attention_heads": 2, "num_key_value_heads": 1, "intermediate_size": 128,
         "tie_word_embeddings": True},
    ),
    # Qwen3: norms on queries and keys, heads wider than hidden / heads.
    "qwen3": (
        "Qwen3Config",
        {**_GROUPED, "intermediate_size": 128, "tie_word_embeddings": True},
    ),
    # Qwen1.5-MoE and Qwen2-57B-A14B: a gated shared expert; top-k weights as they are.
    "qwen2_moe": (
        "Qwen2MoeConfig",
        {**_EXPERTS, "num_attention_heads": 2, "num_key_value_heads": 1, "num_experts": 8,
         "num_experts_per_tok": 3, "shared_expert_intermediate_size": 64, "norm_topk_prob": False,
         "tie_word_embeddings": False},
    ),
    # Qwen3-30B-A3B: no shared expert; the top-k's weights add up to 1.
    "qwen3_moe": (
        "Qwen3MoeConfig",
        {**_EXPERTS, **_GROUPED, "num_experts": 8, "num_experts_per_tok": 3, "norm_topk_prob": True,
         "tie_word_embeddings": False},
    ),
    # Mixtral 8x7B.
    "mixtral": (
        "MixtralConfig",
        {**_GROUPED, "intermediate_size": 64, "num_local_experts": 8, "num_experts_per_tok": 2,
         "sliding_window": None, "tie_word_embeddings": False},
    ),
    # DeepSeek-V2-Lite: MLA without a query latent, softmax scores, greedy top-k, YaRN.
    "deepseek_v2_lite": (
        "DeepseekV2Config",
        {**_EXPERTS, **_LATENT, "q_lora_rank": None, "n_shared_experts": 2, "n_group": 1,
         "topk_group": 1, "topk_method": "greedy", "norm_topk_prob": False,
         "routed_scaling_factor": 1.0, "rope_parameters": _yarn(0.707)},
    ),
    # Moonlight-16B-A3B: V3's class and router in one group, two shared experts, no query latent.
    "moonlight": (
        "DeepseekV3Config",
        {**_EXPERTS, **_LATENT, "q_lora_rank": None, "n_shared_experts": 2, "n_group": 1,
         "topk_group": 1, "topk_method": "noaux_tc", "scoring_func": "sigmoid",
         "norm_topk_prob": True, "routed_scaling_factor": 2.446,
         "rope_parameters": {"rope_type": "default", "rope_theta": 50_000.0}},
    ),
    # DeepSeek-V3: a query latent, experts in groups, YaRN.
    "deepseek_v3": (
        "DeepseekV3Config",
        {**_EXPERTS, **_LATENT, "q_lora_rank": 48, "n_shared_experts": 1, "n_group": 4,
         "topk_group": 2, "topk_method": "noaux_tc", "scoring_func": "sigmoid",
         "norm_topk_prob": True, "routed_scaling_factor": 2.5, "rope_parameters": _yarn(1.0)},
    ),
}  # fmt: skip


def random_model(family: str, tokenizer: Any, seed: int = 0) -> Any:
    """A model of the family with random weights in float32, its vocabulary the tokenizer's.

    V3's router bias is drawn too: at zero it hides a sampler that forgets it.
    """
    import transformers

    kind, values = FAMILIES[family]
    config = getattr(transformers, kind)(
        **_COMMON, **values, vocab_size=-(-len(tokenizer) // 32) * 32,
        bos_token_id=None, eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    torch.manual_seed(seed)
    # Of all implementations of the experts by far the fastest at this size, and the others' equal.
    chosen = {"experts_implementation": "eager"} if is_mixture(family) else {}
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32, **chosen)
    for name, buffer in model.named_buffers():
        if name.endswith("e_score_correction_bias"):
            buffer.copy_(0.05 * torch.randn(buffer.shape))
    return model


def is_mixture(family: str) -> bool:
    """Whether the family's models are mixtures of experts."""
    return any("experts" in key for key in FAMILIES[family][1])
