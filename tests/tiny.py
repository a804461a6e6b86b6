"""Small peaked models for tests: memorised sequences, trained in seconds on one core.

Sampler-trainer agreement means nothing on fresh weights (every output is near uniform, and any
fault hides), so these are trained until they recite: the vocabulary is 128 words, the text a set of
fixed sequences in which one token in eight is replaced by chance, so that a sampled continuation
has some entropy and leans on everything that came before.
"""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import (
    DeepseekV3Config,
    DeepseekV3ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

VOCAB = 128
SPECIALS = ("<pad>", "<eos>", "User:", "Assistant:", "<think>", "</think>", "<answer>", "</answer>")
LENGTH, NUM_SEQUENCES, NOISE = 56, 24, 0.12


def tokenizer() -> PreTrainedTokenizerFast:
    """Word level, split at white space: the special words, then w0, w1, ..."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = [*SPECIALS, *(f"w{i}" for i in range(VOCAB - len(SPECIALS)))]
    backend = Tokenizer(
        models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<pad>")
    )
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", eos_token="<eos>", unk_token="<pad>"
    )


def v3_config(**changes: object) -> DeepseekV3Config:
    """The shape of the shipped base (see data/models/nano)."""
    values: dict[str, object] = {
        "vocab_size": VOCAB, "hidden_size": 192, "intermediate_size": 384,
        "moe_intermediate_size": 128, "num_hidden_layers": 3, "num_attention_heads": 4,
        "num_key_value_heads": 4, "n_shared_experts": 1, "n_routed_experts": 8,
        "routed_scaling_factor": 1.0, "kv_lora_rank": 64, "q_lora_rank": None,
        "qk_rope_head_dim": 16, "v_head_dim": 48, "qk_nope_head_dim": 32, "n_group": 1,
        "topk_group": 1, "num_experts_per_tok": 2, "first_k_dense_replace": 1,
        "max_position_embeddings": 512, "num_mtp_layers": 0, "tie_word_embeddings": False,
        "topk_method": "noaux_tc", "scoring_func": "sigmoid",
        "pad_token_id": 0, "bos_token_id": None, "eos_token_id": 1,
    }  # fmt: skip
    return DeepseekV3Config(**{**values, **changes})


def llama_config(**changes: object) -> LlamaConfig:
    """A small Llama with tied embeddings."""
    values: dict[str, object] = {
        "vocab_size": VOCAB, "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 3,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512,
        "tie_word_embeddings": True, "pad_token_id": 0, "bos_token_id": None, "eos_token_id": 1,
    }  # fmt: skip
    return LlamaConfig(**{**values, **changes})


def sequences(seed: int = 0) -> torch.Tensor:
    """[NUM_SEQUENCES, LENGTH] fixed sequences of ordinary words, each ending in <eos>."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randint(len(SPECIALS), VOCAB, (NUM_SEQUENCES, LENGTH), generator=generator)
    rows[:, -1] = 1
    return rows


def noisy(rows: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """The rows with one token in eight replaced by chance (never the last)."""
    other = torch.randint(len(SPECIALS), VOCAB, rows.shape, generator=generator)
    hit = torch.rand(rows.shape, generator=generator) < NOISE
    hit[:, -1] = False
    return torch.where(hit, other, rows)


def train(
    model: PreTrainedModel, rows: torch.Tensor, steps: int, rate: float = 3e-3, seed: int = 0
) -> float:
    """AdamW on noisy copies of `rows`, in place; the last loss."""
    generator = torch.Generator().manual_seed(seed)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=rate, betas=(0.9, 0.95), weight_decay=0.0)
    loss = torch.zeros(())
    model.train()
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1.0, (step + 1) / 10, (steps - step) / (0.4 * steps))
        batch = noisy(rows, generator)
        loss = model(input_ids=batch, labels=batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
    model.eval()
    return float(loss.detach())


def trained_v3(steps: int = 120, **changes: object) -> DeepseekV3ForCausalLM:
    """A V3-style model in float32 that recites `sequences()`, its router bias not zero."""
    torch.manual_seed(0)
    model = DeepseekV3ForCausalLM._from_config(v3_config(**changes), experts_implementation="eager")
    for name, buffer in model.named_buffers():
        if name.endswith("e_score_correction_bias"):
            buffer.copy_(0.02 * torch.randn(buffer.shape))
    train(model, sequences(), steps)
    return model


def trained_llama(steps: int = 150, **changes: object) -> LlamaForCausalLM:
    """A Llama-style model in float32 that recites `sequences()`."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(llama_config(**changes))
    train(model, sequences(), steps)
    return model


def prompts(count: int, length: int = 28, seed: int = 1) -> list[tuple[int, ...]]:
    """`count` noisy beginnings of the memorised sequences."""
    generator = torch.Generator().manual_seed(seed)
    rows = sequences()[torch.arange(count) % NUM_SEQUENCES]
    return [tuple(row) for row in noisy(rows, generator)[:, :length].tolist()]


def save(model: PreTrainedModel, folder: str | Path) -> Path:
    """An ordinary checkpoint folder of the model and its tokenizer."""
    from r1lab.model.weights import save_checkpoint_folder

    save_checkpoint_folder(model, tokenizer(), folder)
    return Path(folder)
