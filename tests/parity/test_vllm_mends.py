"""vLLM without its mends: wrong in each of the ways that r1lab.rollout.vllm.patches says.

A failure here is good news: this vLLM no longer needs that mend, which can then be taken out.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest
import tiny
import torch
from rig import Bench, Rig, head_is_a_copy
from transformers import LlamaForCausalLM, PreTrainedTokenizerBase

from r1lab.config.recipe import ModelSettings
from r1lab.model.load import load_base
from r1lab.prompts import TEMPLATES
from r1lab.rollout.vllm import patches as mends
from r1lab.rollout.vllm.engine import VllmSampler
from r1lab.types import SamplingSettings

WRONG = 1e-2  # nats per token; the floor of these models is below 1e-3
LONG = 150  # tokens: more than a block of the prefix cache


@pytest.fixture(scope="module")
def bench() -> Iterator[Bench]:
    bench = Bench()
    yield bench
    bench.clear()


@pytest.fixture
def nano(bench: Bench) -> Rig:
    return bench.rig("nano", lambda: Rig("nano"))


@pytest.fixture(scope="module")
def shipped() -> tuple[Path, PreTrainedTokenizerBase]:
    _, tokenizer, folder = load_base(ModelSettings(path="nano"))
    return folder, tokenizer


@pytest.fixture
def without(monkeypatch):
    """Take one mend out: `without("repack_experts")`."""

    def take_out(name: str) -> None:
        monkeypatch.setattr(mends, name, lambda llm: None)

    return take_out


def test_experts_are_read_as_packed_after_a_reload(nano: Rig, without):
    without("repack_experts")
    nano.sync()  # the very same weights
    kl, _ = nano.kl()
    assert kl > WRONG
    mends.repack_experts(mends.model_of(nano.sampler.llm))


def test_the_repacked_experts_are_right(nano: Rig):
    nano.sync()
    assert nano.kl()[0] < WRONG / 10


def test_embeddings_are_written_in_place_and_the_head_alone_is_packed(nano: Rig):
    model = mends.model_of(nano.sampler.llm)
    embedding, head = model.model.embed_tokens, model.lm_head
    places = embedding.weight.data_ptr(), head.weight.data_ptr()
    changed = 2 * nano.model.get_input_embeddings().weight.detach()
    nano.sync(stale={"model.embed_tokens.weight": changed})
    assert (embedding.weight.data_ptr(), head.weight.data_ptr()) == places
    assert torch.equal(embedding.weight[: len(changed)].float(), changed.float())
    states = torch.ones(1, head.weight.shape[1], dtype=head.weight.dtype)
    assert head.quant_method.apply(head, states).shape[-1] == head.weight.shape[0]
    if hasattr(embedding, "cpu_linear"):  # a build that packs embeddings
        with pytest.raises(RuntimeError, match="no output layer"):
            embedding.quant_method.apply(embedding, states)
    nano.sync()


def test_the_prefix_cache_outlives_its_weights(nano: Rig, monkeypatch):
    nano.sync()
    prompts = [sum(nano.prompts[i : i + 5], ())[:LONG] for i in range(0, 40, 5)]
    greedy = SamplingSettings(num_samples=1, temperature=0.0, max_tokens=1, logprobs=True)

    def first_logprobs() -> list[float]:
        groups = nano.sampler.generate(prompts, greedy, template=TEMPLATES["plain"])
        return [completion.logprobs[0] for (completion,) in groups]

    head = {n: 1.5 * t for n, t in nano.model.state_dict().items() if "kv_a_proj" in n}
    with monkeypatch.context() as fault:
        fault.setattr(mends, "drop_prefix_cache", lambda llm: None)
        before = first_logprobs()
        nano.sync(stale=head)
        stale = first_logprobs()
    right = first_logprobs()
    nano.sync()
    assert max(abs(a - b) for a, b in zip(stale, right, strict=True)) > 0.02, before


def test_a_tied_head_keeps_its_old_weights(bench: Bench, tmp_path, without):
    torch.manual_seed(0)
    folder = tiny.save(LlamaForCausalLM(tiny.llama_config(initializer_range=0.1)), tmp_path)
    rig = bench.rig("tied", lambda: Rig(folder, prompts=tiny.prompts(8)))
    assert rig.kl()[0] < WRONG / 10
    with torch.no_grad():
        rig.model.model.embed_tokens.weight.mul_(-1)
    without("repack_head")
    rig.sync()
    kl, _ = rig.kl()
    assert kl > WRONG if head_is_a_copy(rig.sampler) else kl < WRONG / 10


def test_the_rotary_kernel_misreads_queries_of_several_heads():
    from vllm.config import VllmConfig, set_current_vllm_config
    from vllm.model_executor.layers.rotary_embedding.base import RotaryEmbedding

    mends.patch_rotary_embedding()
    with set_current_vllm_config(VllmConfig()):
        rotary = RotaryEmbedding(16, 16, 512, 10_000.0, False, torch.float32)
    generator = torch.Generator().manual_seed(0)
    positions = torch.arange(20)
    query = torch.randn(20, 4, 16, generator=generator)
    key = torch.randn(20, 1, 16, generator=generator)

    def turned(function) -> torch.Tensor:
        return function(rotary, positions, query.clone(), key.clone())[0]

    right = turned(RotaryEmbedding.forward_native)
    assert torch.allclose(turned(RotaryEmbedding.forward_cpu), right, atol=1e-5)
    kernel = RotaryEmbedding.forward_cpu.unmended
    assert not torch.allclose(turned(kernel), right, atol=1e-2)
    flat = kernel(rotary, positions, query.flatten(1).clone(), key.flatten(1).clone())[0]
    assert torch.allclose(flat.view_as(right), right, atol=1e-5), "flat calls are right"


def test_sampling_helpers_are_compiled(bench: Bench, shipped, monkeypatch):
    bench.clear()
    monkeypatch.setattr(
        mends, "run_uncompiled", lambda: torch.compiler.set_stance("fail_on_recompile")
    )
    settings = SamplingSettings(num_samples=1, max_tokens=2, logprobs=True, seed=0)
    sampler = VllmSampler(*shipped, kv_cache_gib=0.1)
    with pytest.raises(RuntimeError, match="fail_on_recompile"):
        sampler.generate([(5,) * 30], settings, template=TEMPLATES["plain"])
    sampler.close()


def test_building_an_engine_disturbs_the_process(bench: Bench, shipped, monkeypatch):
    bench.clear()
    torch.manual_seed(5)  # not the state that an engine, which seeds with 0, leaves behind
    random.seed(5)
    before = torch.set_num_threads, torch.get_rng_state(), random.getstate()
    with monkeypatch.context() as fault:
        fault.setattr(mends, "process_state_kept", nullcontext)
        sampler = VllmSampler(*shipped, kv_cache_gib=0.1)
    sampler.close()
    after = torch.set_num_threads, torch.get_rng_state(), random.getstate()
    torch.set_num_threads = before[0]
    assert after[0] is not before[0]
    assert not torch.equal(after[1], before[1]) and after[2] != before[2]

    torch.manual_seed(7)
    random.seed(7)
    before = torch.set_num_threads, torch.get_rng_state(), random.getstate()
    VllmSampler(*shipped, kv_cache_gib=0.1).close()
    assert torch.set_num_threads is before[0]
    assert torch.equal(torch.get_rng_state(), before[1]) and random.getstate() == before[2]


def test_shutting_an_engine_down_takes_the_process_group(bench: Bench, shipped):
    from torch import distributed

    bench.clear()
    for kept in (True, False):
        sampler = VllmSampler(*shipped, kv_cache_gib=0.1)
        assert distributed.is_initialized()
        mends.shut_down(sampler.llm, keep_process_group=kept)
        assert distributed.is_initialized() == kept
        VllmSampler._is_open = False


def test_a_second_engine_is_refused(nano: Rig, shipped):
    with pytest.raises(RuntimeError, match="one vLLM engine at a time"):
        VllmSampler(*shipped)
