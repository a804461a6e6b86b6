"""V3-style configurations by size: DeepSeek-V3's architecture (arXiv 2412.19437, section 2.1).

Multi-head latent attention, a few dense layers first, then mixture-of-experts layers with one
shared expert, sigmoid scores and a bias used only for selection. Embeddings are untied, as in
DeepSeek-V3: vLLM silently samples noise from tied ones.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import DeepseekV3Config, PretrainedConfig

# Common to every size, as in DeepSeek-V3. vLLM creates no router bias without `topk_method`;
# transformers ignores the two names that only other engines read.
_COMMON: dict[str, Any] = {
    "scoring_func": "sigmoid",
    "topk_method": "noaux_tc",
    "norm_topk_prob": True,
    "n_shared_experts": 1,
    "tie_word_embeddings": False,
    "hidden_act": "silu",
    "attention_bias": False,
    "rope_interleave": True,
    "num_nextn_predict_layers": 0,
}

SIZES: dict[str, dict[str, Any]] = {
    # 1.9M parameters: learns within minutes on two cores. v = nope + rope, so that the CPU's flash
    # attention runs in training; the latent is too narrow for vLLM's MLA kernel on the CPU
    # (512 + 64 only), which then runs the same weights on decompressed heads.
    "nano": {
        "hidden_size": 192, "num_hidden_layers": 3, "first_k_dense_replace": 1,
        "intermediate_size": 384, "moe_intermediate_size": 128, "n_routed_experts": 8,
        "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1, "routed_scaling_factor": 1.0,
        "num_attention_heads": 4, "q_lora_rank": None, "kv_lora_rank": 64,
        "qk_nope_head_dim": 32, "qk_rope_head_dim": 16, "v_head_dim": 48,
    },
    # 0.3M: for experiments that pre-train several bases on one simple task.
    "pico": {
        "hidden_size": 96, "num_hidden_layers": 3, "first_k_dense_replace": 1,
        "intermediate_size": 192, "moe_intermediate_size": 64, "n_routed_experts": 4,
        "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1, "routed_scaling_factor": 1.0,
        "num_attention_heads": 2, "q_lora_rank": None, "kv_lora_rank": 32,
        "qk_nope_head_dim": 32, "qk_rope_head_dim": 16, "v_head_dim": 48,
    },
    # 12M: the same shape, wider and deeper.
    "micro": {
        "hidden_size": 384, "num_hidden_layers": 6, "first_k_dense_replace": 1,
        "intermediate_size": 1024, "moe_intermediate_size": 192, "n_routed_experts": 16,
        "num_experts_per_tok": 4, "n_group": 4, "topk_group": 2, "routed_scaling_factor": 1.0,
        "num_attention_heads": 6, "q_lora_rank": 192, "kv_lora_rank": 128,
        "qk_nope_head_dim": 48, "qk_rope_head_dim": 16, "v_head_dim": 64,
    },
    # 16B, 3B active: the shape of DeepSeek-V2-Lite and Moonlight.
    "lite": {
        "hidden_size": 2048, "num_hidden_layers": 27, "first_k_dense_replace": 1,
        "intermediate_size": 11264, "moe_intermediate_size": 1408, "n_routed_experts": 64,
        "num_experts_per_tok": 6, "n_shared_experts": 2, "n_group": 1, "topk_group": 1,
        "routed_scaling_factor": 2.446, "num_attention_heads": 16, "q_lora_rank": None,
        "kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128,
        "vocab_size": 163840, "max_position_embeddings": 8192,
    },
    # 671B, 37B active: DeepSeek-V3's own numbers.
    "v3": {
        "hidden_size": 7168, "num_hidden_layers": 61, "first_k_dense_replace": 3,
        "intermediate_size": 18432, "moe_intermediate_size": 2048, "n_routed_experts": 256,
        "num_experts_per_tok": 8, "n_group": 8, "topk_group": 4, "routed_scaling_factor": 2.5,
        "num_attention_heads": 128, "q_lora_rank": 1536, "kv_lora_rank": 512,
        "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128,
        "vocab_size": 129280, "max_position_embeddings": 163840,
    },
}  # fmt: skip

# Dense models of Llama's architecture, as students for distillation: 0.9M and 0.2M parameters with
# the small vocabulary.
DENSE_SIZES: dict[str, dict[str, Any]] = {
    "dense": {
        "hidden_size": 128, "num_hidden_layers": 4, "intermediate_size": 384,
        "num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 32,
    },
    "dense-small": {
        "hidden_size": 64, "num_hidden_layers": 3, "intermediate_size": 192,
        "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 32,
    },
}  # fmt: skip


def base_config(size: str, **overrides: Any) -> PretrainedConfig:
    """Return the configuration of a size, V3-style or dense; ValueError for an unknown name."""
    if size not in DENSE_SIZES:
        return v3_config(size, **overrides)
    from transformers import LlamaConfig

    settings = {"max_position_embeddings": 512, "tie_word_embeddings": False, **DENSE_SIZES[size]}
    return LlamaConfig(**{**settings, **overrides})


def v3_config(size: str, **overrides: Any) -> DeepseekV3Config:
    """Return the configuration of a size by name; `overrides` replace single entries.

    Raises ValueError for a name that is not in SIZES.
    """
    from transformers import DeepseekV3Config

    settings = {**size_values(size), **overrides}
    settings.setdefault("num_key_value_heads", settings["num_attention_heads"])
    return DeepseekV3Config(**settings)


def size_values(size: str) -> dict[str, Any]:
    """Return the entries of a size's configuration, except those that the tokenizer decides.

    Raises ValueError for a name that is not in SIZES.
    """
    if size not in SIZES:
        raise ValueError(f"size: {size!r} is not one of {', '.join(SIZES)}")
    return {"max_position_embeddings": 512, **_COMMON, **SIZES[size]}


def kv_cache_bytes_per_token(config: Any, bytes_per_number: int = 2) -> tuple[int, int]:
    """Return bytes of cache per token: (MLA's latent, plain multi-head attention).

    MLA stores the latent and one rotary key for all heads (arXiv 2405.04434, section 2.1); plain
    attention with the same head sizes stores every head's key and value.
    """
    latent = config.kv_lora_rank + config.qk_rope_head_dim
    per_head = config.qk_nope_head_dim + config.qk_rope_head_dim + config.v_head_dim
    layers = config.num_hidden_layers
    plain = config.num_attention_heads * per_head
    return layers * latent * bytes_per_number, layers * plain * bytes_per_number
