"""Weights under checkpoint names: whole, exact, adapters beside the base and never inside it."""

from __future__ import annotations

import warnings

import pytest
import tiny
import torch
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file
from transformers import DeepseekV3ForCausalLM, LlamaForCausalLM, MixtralConfig, MixtralForCausalLM

from r1lab.config.recipe import LoraSettings, ModelSettings
from r1lab.model.adapters import add_lora
from r1lab.model.load import load_base, load_model
from r1lab.model.weights import checkpoint_weights, save_checkpoint_folder
from r1lab.types import RecipeError

IDS = tiny.sequences()[:4, :20]


def v3(dtype: torch.dtype = torch.float32) -> DeepseekV3ForCausalLM:
    """Random weights, large enough that every part matters, and a router bias no bf16 can hold."""
    torch.manual_seed(0)
    config = tiny.v3_config(num_hidden_layers=2, n_routed_experts=4, initializer_range=0.1)
    model = DeepseekV3ForCausalLM._from_config(config, experts_implementation="eager")
    for name, buffer in model.named_buffers():
        if name.endswith("e_score_correction_bias"):
            buffer.copy_(0.1 * torch.randn(buffer.shape))
    bias = {name: buffer.clone() for name, buffer in model.named_buffers()}
    model.to(dtype).eval()
    for name, buffer in model.named_buffers():
        buffer.data = bias[name]
    return model


def llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(tiny.llama_config(num_hidden_layers=2, initializer_range=0.1)).eval()


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS).logits


def disturb_adapters(model: torch.nn.Module) -> None:
    """Adapters start as no update at all: give both factors values, as training does."""
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if ".lora_" in name:
            parameter.data = 0.1 * torch.randn(parameter.shape, generator=generator)


def adapted(model: torch.nn.Module) -> set[str]:
    """The names of the adapted weights, layers left out."""
    base = model.get_base_model()
    return {
        ".".join(
            part
            for part in f"{name}.{getattr(module, 'parameter_name', '')}".split(".")
            if part and part not in ("model", "layers", "base_layer") and not part.isdigit()
        )
        for name, module in base.named_modules()
        if isinstance(module, LoraLayer)
    }


ADAPTED = {
    "attention": {
        "self_attn.q_proj", "self_attn.kv_a_proj_with_mqa", "self_attn.kv_b_proj",
        "self_attn.o_proj",
    },
    "dense": {
        f"mlp.{shared}{name}_proj" for shared in ("", "shared_experts.")
        for name in ("gate", "up", "down")
    },
    "experts": {"mlp.experts.gate_up_proj", "mlp.experts.down_proj"},
}  # fmt: skip


def rebuilt(model: torch.nn.Module, dtype: torch.dtype = torch.float32) -> torch.nn.Module:
    """A new model from the weights under checkpoint names alone."""
    base = getattr(model, "get_base_model", lambda: model)()
    weights = {name: tensor.clone() for name, tensor in checkpoint_weights(model)}
    return load_model(weights, base.config, dtype).eval()


@pytest.mark.parametrize("build", [v3, llama])
def test_a_model_comes_back_from_its_checkpoint_weights(build):
    model = build()
    assert torch.equal(logits(rebuilt(model)), logits(model))


@pytest.mark.parametrize("build", [v3, llama])
@pytest.mark.parametrize("part", ["attention", "dense", "experts"])
def test_merged_adapters_compute_what_peft_computes(build, part):
    model = build()
    plain = logits(model)
    settings = {"attention": False, "dense": False, "experts": False, part: True}
    if build is llama and part == "experts":
        with pytest.raises(RecipeError, match=r"model\.lora: .*select no weights"):
            add_lora(model, LoraSettings(**settings), seed=0)
        return
    lora = add_lora(model, LoraSettings(rank=4, **settings), seed=0).eval()
    assert torch.equal(logits(lora), plain), "adapters must start as no update"
    if build is v3:
        assert adapted(lora) == ADAPTED[part]
    disturb_adapters(lora)
    assert (logits(lora) - plain).abs().max() > 0.1
    torch.testing.assert_close(logits(rebuilt(lora)), logits(lora), rtol=1e-4, atol=1e-4)


def test_all_adapters_together_and_the_base_is_left_alone():
    model = v3()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    lora = add_lora(model, LoraSettings(rank=4), seed=0).eval()
    disturb_adapters(lora)
    for _ in range(3):
        merged = rebuilt(lora)
    torch.testing.assert_close(logits(merged), logits(lora), rtol=1e-4, atol=1e-4)
    after = lora.get_base_model().state_dict()
    after = {n.replace("base_layer.", ""): t for n, t in after.items() if ".lora_" not in n}
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_checkpoint_names_are_those_of_deepseek_for_full_and_lora():
    names = {name for name, _ in checkpoint_weights(v3())}
    assert "model.layers.1.mlp.experts.3.gate_proj.weight" in names
    assert "model.layers.1.mlp.gate.e_score_correction_bias" in names
    assert not any("gate_up_proj" in name or "base_layer" in name for name in names)
    assert names == {name for name, _ in checkpoint_weights(add_lora(v3(), LoraSettings()))}


def test_the_router_bias_stays_float32_and_exact_in_a_bfloat16_model(tmp_path):
    exact = dict(v3().named_buffers())["model.layers.1.mlp.gate.e_score_correction_bias"]
    assert not torch.equal(exact, exact.bfloat16().float()), "the test needs a bias bf16 rounds"
    save_checkpoint_folder(v3(), tiny.tokenizer(), tmp_path)
    model, _, _ = load_base(ModelSettings(path=str(tmp_path), dtype="bfloat16"))
    sent = dict(checkpoint_weights(model))
    bias = sent.pop("model.layers.1.mlp.gate.e_score_correction_bias")
    assert bias.dtype == torch.float32 and torch.equal(bias, exact)
    assert {tensor.dtype for tensor in sent.values()} == {torch.bfloat16}


def test_merging_rounds_once():
    lora = add_lora(v3(torch.bfloat16), LoraSettings(rank=4, experts=False), seed=0)
    disturb_adapters(lora)
    layer = lora.get_base_model().model.layers[0].mlp.up_proj
    exact = layer.base_layer.weight.double() + layer.get_delta_weight("default").double()
    merged = dict(checkpoint_weights(lora))["model.layers.0.mlp.up_proj.weight"]
    assert merged.dtype == torch.bfloat16
    torch.testing.assert_close(merged.double(), exact, rtol=2**-8, atol=1e-6)


def test_a_saved_folder_is_an_ordinary_one_and_merged(tmp_path):
    lora = add_lora(v3(), LoraSettings(rank=4), seed=0).eval()
    disturb_adapters(lora)
    save_checkpoint_folder(lora, tiny.tokenizer(), tmp_path)
    loaded = DeepseekV3ForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    torch.testing.assert_close(logits(loaded), logits(lora), rtol=1e-4, atol=1e-4)
    assert loaded.config.topk_method == "noaux_tc"
    assert load_base(ModelSettings(path=str(tmp_path)))[1].eos_token == "<eos>"


def test_tied_embeddings_are_saved_once(tmp_path):
    save_checkpoint_folder(llama(), tiny.tokenizer(), tmp_path)
    assert "lm_head.weight" not in load_file(tmp_path / "model.safetensors")
    model, _, _ = load_base(ModelSettings(path=str(tmp_path), dtype="float32"))
    assert torch.equal(logits(model), logits(llama()))


def test_adapters_depend_on_the_seed_alone():
    def adapters(seed: int) -> dict[str, torch.Tensor]:
        lora = add_lora(v3(), LoraSettings(), seed)
        return {name: p for name, p in lora.named_parameters() if "lora_A" in name}

    torch.manual_seed(5)
    first, state = adapters(1), torch.get_rng_state()
    torch.manual_seed(6)
    second = adapters(1)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not all(torch.equal(tensor, first[name]) for name, tensor in adapters(2).items())
    torch.manual_seed(5)
    v3()
    assert torch.equal(torch.get_rng_state(), state), "drawing adapters moved torch's generator"


def test_adapters_are_put_in_without_a_warning_and_never_on_the_router_or_head():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        lora = add_lora(v3(), LoraSettings())
    assert adapted(lora) == set().union(*ADAPTED.values())
    trained = [name for name, parameter in lora.named_parameters() if parameter.requires_grad]
    assert trained and all(".lora_" in name for name in trained)
    ranks = {
        p.shape[0] for n, p in lora.named_parameters() if "lora_A" in n and ".experts." not in n
    }
    assert ranks == {LoraSettings().rank}


def test_another_family_of_experts_comes_back_too():
    torch.manual_seed(0)
    config = MixtralConfig(
        vocab_size=tiny.VOCAB, hidden_size=64, intermediate_size=64, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=2, num_local_experts=4, initializer_range=0.1,
    )  # fmt: skip
    model = MixtralForCausalLM._from_config(config, experts_implementation="eager").eval()
    lora = add_lora(model, LoraSettings(rank=4), seed=0).eval()
    disturb_adapters(lora)
    torch.testing.assert_close(logits(rebuilt(lora)), logits(lora), rtol=1e-4, atol=1e-4)


def test_a_rewritten_file_does_not_reach_a_loaded_model(tmp_path):
    """Pages of a mapped file fall back to the file's content when it is written anew."""
    folder = tiny.save(DeepseekV3ForCausalLM(tiny.v3_config()), tmp_path / "base")
    model, _, _ = load_base(ModelSettings(path=str(folder), dtype="float32"))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(0.5)
    file = folder / "model.safetensors"
    content = file.read_bytes()
    with file.open("wb") as again:  # truncates, as cp and most writers do
        again.write(content)
    assert all((parameter == 0.5).all() for parameter in model.parameters())
