"""Real vLLM and the trainer: equal at the floor, apart when stale, equal again after a sync.

And faults planted one at a time, as they have happened to others: each stops the run.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest
import tiny
import torch
from rig import Bench, Rig, head_is_a_copy, long_prompts, take_updates
from transformers import LlamaForCausalLM

from r1lab.config.recipe import LoraSettings, ModelSettings
from r1lab.model.adapters import add_lora
from r1lab.model.load import load_base
from r1lab.model.weights import checkpoint_weights, save_checkpoint_folder
from r1lab.model.widen import widen
from r1lab.rollout.agreement import SyncGuard
from r1lab.rollout.vllm import patches as mends
from r1lab.rollout.vllm.engine import VllmSampler
from r1lab.types import R1labError, RunStopped


@pytest.fixture(scope="module")
def bench() -> Iterator[Bench]:
    bench = Bench()
    yield bench
    bench.clear()


@pytest.fixture
def nano(bench: Bench) -> Rig:
    """The shipped base, with the floor measured."""
    rig = bench.rig("nano", lambda: Rig("nano"))
    rig.check(seed=0)
    return rig


@pytest.fixture(scope="module")
def llama_folder(tmp_path_factory) -> Path:
    """A Llama-style model with tied embeddings, trained until it recites."""
    return tiny.save(tiny.trained_llama(100), tmp_path_factory.mktemp("llama"))


@pytest.fixture
def llama(bench: Bench, llama_folder: Path) -> Rig:
    rig = bench.rig("llama", lambda: Rig(llama_folder, prompts=tiny.prompts(40)))
    rig.check(seed=0)
    return rig


def goes_stale_and_comes_back(rig: Rig, model: torch.nn.Module, rate: float) -> None:
    floor = rig.check(model, seed=0)
    take_updates(model, rig.tokenizer, 6, rate)
    stale, _ = rig.kl(model)
    assert stale > 10 * floor
    with pytest.raises(RunStopped, match="disagree at weight version"):
        rig.check(model)
    rig.sampler.sync(checkpoint_weights(model), 1)
    assert rig.check(model, seed=2) < 2.5 * floor
    assert rig.sampler.version == 1


def test_full_weights_on_decompressed_heads(nano: Rig):
    goes_stale_and_comes_back(nano, nano.model, 1e-3)


def test_lora_on_attention_dense_and_expert_weights(nano: Rig):
    model = load_base(ModelSettings(path="nano"))[0]
    goes_stale_and_comes_back(nano, add_lora(model, LoraSettings(), seed=0), 3e-3)


def test_the_mla_kernel(bench: Bench, tmp_path):
    model, tokenizer, _ = load_base(ModelSettings(path="nano", dtype="float32"))
    save_checkpoint_folder(widen(model), tokenizer, tmp_path)
    rig = bench.rig("mla", lambda: Rig(tmp_path, attention="mla"))
    names = [type(module).__name__ for module in mends.model_of(rig.sampler.llm).modules()]
    assert "MLAAttention" in names
    goes_stale_and_comes_back(rig, rig.model, 1e-3)


def test_a_shape_without_a_kernel_is_refused(bench: Bench):
    bench.clear()
    _, tokenizer, folder = load_base(ModelSettings(path="nano"))
    with pytest.raises(R1labError, match=r"'mla' needs kv_lora_rank 512 .* has 64 and 16"):
        VllmSampler(folder, tokenizer, attention="mla")


def moved(rig: Rig, part: str, size: float) -> dict[str, torch.Tensor]:
    """Move every weight of the model whose checkpoint name holds `part`; return the old ones."""
    generator = torch.Generator().manual_seed(0)
    weights = {name: t for name, t in checkpoint_weights(rig.model) if part in name}
    old = {name: tensor.clone() for name, tensor in weights.items()}
    for tensor in weights.values():  # views of the model's own
        tensor += size * tensor.std() * torch.randn(tensor.shape, generator=generator)
    assert weights
    return old


def busiest_expert(rig: Rig) -> str:
    """The checkpoint name of the last layer's expert that the rig's prompts use most."""
    chosen: list[torch.Tensor] = []
    layer = len(rig.model.model.layers) - 1
    gate = rig.model.model.layers[layer].mlp.gate
    handle = gate.register_forward_hook(lambda module, inputs, output: chosen.append(output[2]))
    with torch.no_grad():
        for prompt in rig.prompts:
            rig.model(input_ids=torch.tensor([prompt]))
    handle.remove()
    return f"layers.{layer}.mlp.experts.{torch.cat(chosen).flatten().bincount().argmax()}."


def is_caught(rig: Rig, part: str, size: float) -> None:
    """The trainer moves one part and the sampler is not told: the run stops, until it is."""
    rig.sync(stale=moved(rig, part, size))
    with pytest.raises(RunStopped):
        rig.check()
    rig.sync()
    rig.check()


def test_one_stale_expert_stops_the_run(nano: Rig):
    is_caught(nano, busiest_expert(nano), 3.0)


def test_a_stale_head_stops_the_run(nano: Rig):
    is_caught(nano, "lm_head", 0.05)


def test_a_stale_router_bias_stops_the_run(nano: Rig):
    is_caught(nano, "e_score_correction_bias", 3.0)


def test_a_weight_that_is_not_sent_is_named(nano: Rig):
    weights = [(n, t) for n, t in checkpoint_weights(nano.model) if "experts.3.down_proj" not in n]
    weights = [(n, t) for n, t in weights if "input_layernorm" not in n]
    with pytest.raises(R1labError, match=r"weight sync to version 5: \d+ of .*input_layernorm"):
        nano.sampler.sync(weights, 5)


def test_a_stale_prefix_cache_stops_the_run(nano: Rig, monkeypatch):
    short = nano.prompts
    # vLLM caches whole blocks of 128 tokens; prompts as long as that have a floor of their own.
    nano.prompts = [sum(short[i : i + 5], ())[:132] for i in range(0, 40, 2) if i + 5 <= 40]
    nano.guard = SyncGuard()
    try:
        nano.check()
        moved(nano, "kv_a_proj", 0.5)
        with monkeypatch.context() as fault:
            fault.setattr(mends, "drop_prefix_cache", lambda llm: None)
            nano.kl(seed=3)  # fills the cache under the old weights
            nano.sync()
            with pytest.raises(RunStopped):
                nano.check()
        nano.check()
    finally:
        nano.prompts = short


def test_an_unmended_rotary_embedding_stops_the_run(bench: Bench, monkeypatch):
    from vllm.model_executor.layers.rotary_embedding.base import RotaryEmbedding

    mends.patch_rotary_embedding()
    monkeypatch.setattr(RotaryEmbedding, "forward_cpu", RotaryEmbedding.forward_cpu.unmended)
    monkeypatch.setattr(mends, "patch_rotary_embedding", lambda: None)
    rig = bench.rig("unmended", lambda: Rig("nano"))
    with pytest.raises(RunStopped, match="highest plausible floor"):
        rig.check()


@pytest.mark.parametrize("way", ["full", "lora"])
def test_tied_embeddings(llama: Rig, way: str):
    model = llama.model
    assert isinstance(model, LlamaForCausalLM) and model.config.tie_word_embeddings
    if way == "lora":
        model = add_lora(load_base(ModelSettings(path=str(llama.folder)))[0], LoraSettings(), 0)
    floor = llama.check(model, seed=0)
    tiny.train(model, tiny.sequences(seed=3), 6, rate=3e-3)
    with pytest.raises(RunStopped):
        llama.check(model)
    llama.sampler.sync(checkpoint_weights(model), 1)
    assert llama.check(model) < 2.5 * floor


def test_a_stale_tied_head_stops_the_run(llama: Rig, monkeypatch):
    moved(llama, "embed_tokens", 0.1)
    with monkeypatch.context() as fault:
        fault.setattr(mends, "repack_head", lambda llm: None)
        llama.sync()
        # Where there is no copy, nothing is stale, and nothing may stop.
        with pytest.raises(RunStopped) if head_is_a_copy(llama.sampler) else nullcontext():
            llama.check()
    llama.sync()
    llama.check()


def test_prompts_are_long_and_weights_peaked(nano: Rig):
    """What the measurements stand on: on near-uniform outputs every fault hides."""
    assert min(map(len, long_prompts(nano.tokenizer))) >= 24
    ids = torch.tensor([prompt[:24] for prompt in nano.prompts])
    with torch.no_grad():
        logprobs = nano.model(input_ids=ids).logits[:, -1].float().log_softmax(-1)
    entropy = -(logprobs.exp() * logprobs).sum(-1).mean()
    assert entropy < 0.5 * torch.tensor(nano.model.config.vocab_size).log()
