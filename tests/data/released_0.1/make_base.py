"""A base of 8,000 parameters that answers a parity at once, for the samples in this folder."""

from r1lab.model.config import SIZES
from r1lab.recipe import CorpusSettings, PretrainRecipe
from r1lab.stages.pretrain import pretrain

SIZES["pico"] = {
    "hidden_size": 12, "num_hidden_layers": 2, "first_k_dense_replace": 1,
    "intermediate_size": 24, "moe_intermediate_size": 8, "n_routed_experts": 4,
    "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1, "routed_scaling_factor": 1.0,
    "num_attention_heads": 2, "q_lora_rank": None, "kv_lora_rank": 8,
    "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 16,
}  # fmt: skip
pretrain(
    PretrainRecipe(
        name="base", output="pretrained", size="pico", tokens=400_000, tokens_per_batch=1024,
        row_length=64, dtype="float32", card_problems=0, learning_rate=5e-3,
        corpus=CorpusSettings(
            source="r1lab.data.parity:documents", options={"long": 0.4, "bits": 8}
        ),
    )
)  # fmt: skip
