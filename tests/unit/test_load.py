"""Loading a base: what comes out, and what is refused with one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tiny
import torch
from transformers import DeepseekV3ForCausalLM, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from r1lab.config.recipe import ModelSettings
from r1lab.model.load import end_tokens, load_base, shipped_models
from r1lab.types import RecipeError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    return tiny.save(DeepseekV3ForCausalLM(tiny.v3_config(num_hidden_layers=2)), tmp_path / "base")


def edit(path: Path, **changes: object) -> None:
    values = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({name: value for name, value in values.items() if value is not ...}))


def refused(folder: Path | str, **settings) -> str:
    with pytest.raises(RecipeError) as caught:
        load_base(ModelSettings(path=str(folder), **settings))
    message = str(caught.value)
    assert message.startswith("model.") and "\n" not in message and len(message) < 500
    return message


def test_a_folder_gives_the_model_its_tokenizer_and_itself(folder: Path):
    model, tokenizer, where = load_base(ModelSettings(path=str(folder), dtype="bfloat16"))
    assert where == folder and tokenizer.eos_token == "<eos>"
    assert model.dtype == torch.bfloat16
    assert model.config._experts_implementation == "eager"


def test_a_tokenizer_is_what_its_file_says_whatever_the_kind_of_model(tmp_path: Path):
    """transformers has a class of its own for Qwen2, which would split text in another way."""
    config = Qwen2Config(
        vocab_size=tiny.VOCAB, hidden_size=32, intermediate_size=32, num_hidden_layers=1,
        num_attention_heads=1, num_key_value_heads=1,
    )  # fmt: skip
    folder = tiny.save(Qwen2ForCausalLM(config), tmp_path / "qwen2")
    _, tokenizer, _ = load_base(ModelSettings(path=str(folder), dtype="float32"))
    tokens = list(tiny.prompts(1)[0])
    assert tokenizer(tokenizer.decode(tokens))["input_ids"] == tokens


def test_the_shipped_base_loads_by_name():
    assert "nano" in shipped_models()
    _, _, folder = load_base(ModelSettings(path="nano"))
    assert folder == shipped_models()["nano"]


def test_what_cannot_be_found_is_named_with_the_nearest_match(tmp_path: Path):
    assert "'nnao'" in refused("nnao") and "did you mean 'nano'?" in refused("nnao")
    assert "'./no/such'" in refused("./no/such")
    assert "holds no config.json" in refused(tmp_path)


def test_tied_embeddings_of_a_v3_style_model_are_refused(folder: Path):
    edit(folder / "config.json", tie_word_embeddings=True)
    assert "tied embeddings" in refused(folder) and "tie_word_embeddings=false" in refused(folder)


def test_tied_embeddings_of_other_families_are_not(tmp_path: Path):
    folder = tiny.save(LlamaForCausalLM(tiny.llama_config(num_hidden_layers=1)), tmp_path)
    assert load_base(ModelSettings(path=str(folder)))[0].config.tie_word_embeddings


def test_a_router_that_vllm_would_not_load_is_refused(folder: Path):
    edit(folder / "config.json", topk_method=...)
    assert "topk_method None" in refused(folder) and "'noaux_tc'" in refused(folder)


def test_a_tokenizer_without_end_of_sequence_is_refused(folder: Path):
    edit(folder / "tokenizer_config.json", eos_token=...)
    assert "without an end-of-sequence token" in refused(folder)


def test_a_tokenizer_larger_than_the_model_is_refused(folder: Path):
    edit(folder / "config.json", vocab_size=100)
    assert "tokenizer of 128 entries for a model of 100" in refused(folder)


def test_missing_weights_are_refused_and_not_drawn_at_random(folder: Path):
    from safetensors.torch import load_file, save_file

    file = folder / "model.safetensors"
    weights = load_file(file)
    del weights["model.layers.1.mlp.gate.e_score_correction_bias"]
    save_file(weights, file, metadata={"format": "pt"})
    assert "1 weights are missing" in refused(folder)
    file.unlink()
    assert "has no weights" in refused(folder)


def test_all_end_tokens_count(folder: Path):
    tokenizer = tiny.tokenizer()
    assert end_tokens(tokenizer) == (1,)
    edit(folder / "generation_config.json", eos_token_id=[1, 5])
    assert end_tokens(tokenizer, folder) == (1, 5)


def write_gguf(path: Path, model: LlamaForCausalLM) -> None:
    """A Llama with tied embeddings as llama.cpp stores it."""
    import gguf

    config, state = model.config, model.state_dict()
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.hidden_size // heads)
    writer.add_vocab_size(config.vocab_size)
    words = [*tiny.SPECIALS, *(f"w{i}" for i in range(tiny.VOCAB - len(tiny.SPECIALS)))]
    words[-3:] = ["w", "0", "1"]
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(words)
    writer.add_token_types([3 if word in ("<pad>", "<eos>") else 1 for word in words])
    writer.add_token_merges(["w 0", "w 1"])
    writer.add_eos_token_id(1)
    writer.add_bos_token_id(0)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, tensor in state.items():
        if name == "lm_head.weight":
            continue
        for part, count in (("q_proj", heads), ("k_proj", kv_heads)):
            if part in name:  # llama.cpp interleaves the halves that transformers keeps apart
                tensor = tensor.unflatten(0, (count, 2, -1)).transpose(1, 2).flatten(0, 2)
        key = names.get_name(name, try_suffixes=(".weight",))
        writer.add_tensor(key, tensor.float().contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_a_gguf_file_is_dequantised_once_into_a_folder(tmp_path: Path):
    torch.manual_seed(0)
    original = LlamaForCausalLM(tiny.llama_config(num_hidden_layers=1)).eval()
    source = tmp_path / "source"
    source.mkdir()
    write_gguf(source / "tiny.gguf", original)
    settings = ModelSettings(path=str(source), gguf_file="tiny.gguf", dtype="float32")
    model, tokenizer, folder = load_base(settings, cache=tmp_path / "cache")
    assert folder.parent == tmp_path / "cache" and (folder / "config.json").is_file()
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<pad>", "<eos>")
    assert end_tokens(tokenizer, folder) == (1,)
    ids = tiny.sequences()[:2, :16]
    with torch.no_grad():
        torch.testing.assert_close(model(input_ids=ids).logits, original(input_ids=ids).logits)
    made = (folder / "config.json").stat().st_mtime_ns
    assert load_base(settings, cache=tmp_path / "cache")[2] == folder
    assert (folder / "config.json").stat().st_mtime_ns == made
    assert "GGUF files there: tiny.gguf" in refused(source, gguf_file="tny.gguf")
    assert "model.gguf_file (tiny.gguf)" in refused(source)
