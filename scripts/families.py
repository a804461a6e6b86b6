"""Small random models of families of causal LMs, to compare what computes the same thing twice.

`FAMILIES` are sampled by vLLM and trained, `FORWARD_ONLY` are compared with their own forward.

Configurations are shrunk (two layers, hidden size 64) and otherwise keep what their family's
published models have: grouped heads, biases, query and key norms, shared experts and their gate,
the router's scores, groups and scaling, MLA's latents, YaRN, tied or untied embeddings. Used by
scripts/check_families.py, tests/parity/test_families.py and tests/unit/test_head.py.
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
    # Gemma 2: logits capped by tanh, in attention and after the head; a cap that these reach.
    "gemma2": (
        "Gemma2Config",
        {**_GROUPED, "intermediate_size": 128, "query_pre_attn_scalar": HEAD,
         "sliding_window": POSITIONS, "final_logit_softcapping": 12.0,
         "attn_logit_softcapping": 50.0},
    ),
    # Command R (Cohere): attention and feed-forward side by side, logits multiplied.
    "cohere": (
        "CohereConfig",
        {"num_attention_heads": 2, "num_key_value_heads": 1, "intermediate_size": 128,
         "logit_scale": 2.0},
    ),
    # Granite 3: multipliers of embeddings, attention and residuals, logits divided.
    "granite": (
        "GraniteConfig",
        {"num_attention_heads": 2, "num_key_value_heads": 1, "intermediate_size": 128,
         "embedding_multiplier": 12.0, "attention_multiplier": 1 / HEAD,
         "residual_multiplier": 0.22, "logits_scaling": 0.5, "tie_word_embeddings": True},
    ),
}  # fmt: skip


# Families that no vLLM engine is started for: model_type -> what differs from `_SMALL`. A setting
# that acts on the logits has another value than the one that leaves them alone.
FORWARD_ONLY: dict[str, dict[str, Any]] = {
    "arcee": {}, "bloom": {}, "cohere2": {"logit_scale": 0.25}, "ernie4_5": {}, "exaone4": {},
    "falcon": {}, "falcon_h1": {"lm_head_multiplier": 0.3}, "gemma": {},
    "gemma3_text": {"final_logit_softcapping": 12.0}, "glm4": {}, "gpt2": {}, "gpt_neox": {},
    "gpt_oss": {}, "granitemoe": {"logits_scaling": 4.0}, "helium": {},
    "hyperclovax": {"logits_scaling": 0.3}, "mamba": {},
    "minicpm3": {"num_attention_heads": 2, "num_key_value_heads": 2, "dim_model_base": 16},
    "mistral": {}, "nanochat": {"final_logit_softcapping": 12.0}, "nemotron": {}, "olmo2": {},
    "olmoe": {}, "opt": {}, "phi": {}, "phi3": {},
    "recurrent_gemma": {"logits_soft_cap": 12.0, "lru_width": HIDDEN, "num_hidden_layers": 3},
    "smollm3": {}, "stablelm": {}, "starcoder2": {},
    "vaultgemma": {"final_logit_softcapping": 12.0},
}  # fmt: skip

# Under every name that a family has for it.
_SMALL: dict[str, Any] = {
    **dict.fromkeys(("hidden_size", "d_model", "n_embd", "word_embed_proj_dim"), HIDDEN),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers"), NUM_LAYERS),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "n_inner", "shared_intermediate_size"), 128),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads"), 4),
    **dict.fromkeys(("max_position_embeddings", "n_positions"), POSITIONS),
    **dict.fromkeys(("num_experts", "num_local_experts"), 4),
    "num_key_value_heads": 2, "head_dim": 16, "moe_intermediate_size": 32, "num_experts_per_tok": 2,
    "kv_lora_rank": 32, "q_lora_rank": 32, "qk_nope_head_dim": 16, "qk_rope_head_dim": 16,
    "v_head_dim": 16, "mamba_d_ssm": 64, "mamba_n_heads": 4, "mamba_d_head": 16,
    "mamba_d_state": 16, "state_size": 16, "time_step_rank": 8, "vocab_size": 96,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip


def peaked_model(kind: str, **changes: Any) -> Any:
    """A model of a model_type of transformers, its logits of 8 and more: faults there show."""
    import transformers

    classes = transformers.CONFIG_MAPPING
    known = classes[kind]().to_dict()
    values = {name: value for name, value in _SMALL.items() if name in known}
    values |= FORWARD_ONLY.get(kind, {}) | changes
    layers = values.get("num_hidden_layers", 0)
    if known.get("layer_types"):  # the first and the last kind of its layers
        values["layer_types"] = [known["layer_types"][0]] * (layers - 1) + known["layer_types"][-1:]
    torch.manual_seed(0)
    config = classes[kind](**values)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    ids = torch.arange(8, 72)[None]
    with torch.no_grad():
        while model(input_ids=ids).logits.abs().max() < 8:
            before = model(input_ids=ids).logits.abs().max()
            model.get_output_embeddings().weight.mul_(1.6)
            assert model(input_ids=ids).logits.abs().max() > before, "capped below 8"
    return model


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
