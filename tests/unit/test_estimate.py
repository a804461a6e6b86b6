"""The estimate's counts against transformers' modules, its arithmetic by hand, its command."""

from __future__ import annotations

import importlib
import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    DeepseekV3Config,
    LlamaConfig,
    MixtralConfig,
    Qwen2Config,
    Qwen2MoeConfig,
    Qwen3Config,
    Qwen3MoeConfig,
)

from r1lab.config.recipe import LoraSettings
from r1lab.estimate import workload
from r1lab.estimate.activations import merged_expert_bytes, saved_bytes_per_token
from r1lab.estimate.hardware import DEVICES, Cluster, Device, local_cluster, parse_gpus
from r1lab.estimate.lengths import lengths_of
from r1lab.estimate.memory import Memory, Part, memory_of, weight_bytes
from r1lab.estimate.plan import estimate, known_sizes
from r1lab.estimate.shape import ModelShape, shape_of
from r1lab.estimate.timing import decode_seconds, step_time
from r1lab.estimate.workload import Workload
from r1lab.model.adapters import add_lora
from r1lab.model.config import kv_cache_bytes_per_token, v3_config
from r1lab.types import R1labError, RecipeError

ROOT = Path(__file__).resolve().parents[2]
SMALL = {"vocab_size": 128, "hidden_size": 96, "num_hidden_layers": 2, "intermediate_size": 200}
HEADS = {"num_attention_heads": 6, "num_key_value_heads": 2}
V3 = {
    "vocab_size": 128, "hidden_size": 96, "num_hidden_layers": 3, "intermediate_size": 200,
    "num_attention_heads": 4, "num_key_value_heads": 4, "first_k_dense_replace": 1,
    "moe_intermediate_size": 40, "n_routed_experts": 8, "num_experts_per_tok": 2, "n_group": 2,
    "topk_group": 1, "n_shared_experts": 2, "kv_lora_rank": 24, "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8, "v_head_dim": 24,
}  # fmt: skip
EXPERTS = {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 40}
CONFIGS = {
    "deepseek_v3": DeepseekV3Config(**V3, q_lora_rank=None),
    "deepseek_v3_query_rank": DeepseekV3Config(**V3, q_lora_rank=40),
    "llama": LlamaConfig(**SMALL, **HEADS),
    "llama_tied_biased": LlamaConfig(
        **SMALL, **HEADS, tie_word_embeddings=True, attention_bias=True
    ),
    "mixtral": MixtralConfig(**SMALL, **HEADS, num_local_experts=4, num_experts_per_tok=2),
    "qwen2": Qwen2Config(**SMALL, **HEADS),
    "qwen2_moe": Qwen2MoeConfig(**SMALL, **HEADS, **EXPERTS, shared_expert_intermediate_size=60),
    "qwen3": Qwen3Config(**SMALL, **HEADS, head_dim=24),
    "qwen3_moe": Qwen3MoeConfig(**SMALL, **HEADS, **EXPERTS, head_dim=24),
}  # fmt: skip
WORK = Workload(num_sequences=64, group_size=8, prompt=100, mean=500, longest=2048)


def shape(config: object) -> ModelShape:
    return shape_of(config.to_dict(), "it")  # type: ignore[attr-defined]


def v3() -> ModelShape:
    return shape_of(known_sizes()["v3"], "v3")


# --- counts, against the modules ---


@pytest.mark.parametrize("name", CONFIGS)
def test_parameters_are_those_of_the_modules(name):
    config = CONFIGS[name]
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    counted = shape(config)
    assert counted.parameters == sum(p.numel() for p in model.parameters())
    routed = sum(p.numel() for n, p in model.named_parameters() if ".experts." in n)
    assert counted.routed_parameters == routed


@pytest.mark.parametrize("size", ["v3", "lite"])
def test_parameters_at_full_size(size):
    config = v3_config(size)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    assert shape(config).parameters == sum(p.numel() for p in model.parameters())


def test_deepseek_v3_is_what_its_authors_say():
    assert v3().parameters == pytest.approx(671e9, rel=0.005)
    assert v3().active_parameters == pytest.approx(36.7e9, rel=0.005)


@pytest.mark.parametrize("name", ["deepseek_v3_query_rank", "llama", "qwen3_moe"])
def test_adapters_are_as_large_as_counted(name):
    with torch.device("cpu"):
        model = AutoModelForCausalLM.from_config(CONFIGS[name])
    settings = LoraSettings(rank=4)
    adapted = add_lora(model, settings)
    trained = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    assert shape(CONFIGS[name]).lora_parameters(
        4, attention=True, dense=True, experts=True
    ) == trained  # fmt: skip


def saved_bytes(model: torch.nn.Module, num_tokens: int) -> int:
    """What autograd keeps of a forward through the decoder: each storage once, no weights."""
    own = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.setdefault(tensor.untyped_storage().data_ptr(), tensor)
        return tensor

    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    ids = torch.randint(0, 128, (4, num_tokens // 4))
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        base.get_decoder()(input_ids=ids, use_cache=False)
    sizes = {at: t.untyped_storage().nbytes() for at, t in kept.items() if at not in own}
    return sum(sizes.values())


@pytest.mark.parametrize("lora", [None, LoraSettings(rank=4)], ids=["full", "lora"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize(
    "name", ["deepseek_v3", "deepseek_v3_query_rank", "llama", "qwen3_moe", "mixtral"]
)
def test_activations_are_what_autograd_keeps(name, dtype, lora):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIGS[name], experts_implementation="eager")
    model = model.to(dtype)
    if lora is not None:
        model = add_lora(model, lora)
    num_tokens = 1024
    found = saved_bytes(model, num_tokens)
    counted = shape(CONFIGS[name])
    expected = num_tokens * saved_bytes_per_token(counted, dtype.itemsize, lora)
    expected += merged_expert_bytes(counted, dtype.itemsize, lora)
    assert expected == pytest.approx(found, rel=0.05)


def test_the_cache_of_a_token():
    config = v3_config("nano", vocab_size=144)
    latent, plain = kv_cache_bytes_per_token(config)
    assert 2 * shape(config).cache_numbers() == latent == 480
    assert 2 * shape(config).cache_numbers(decompressed=True) == plain == 2304
    assert 2 * v3().cache_numbers() == 70_272  # 70 KB (arXiv 2505.09343, table 1)


def test_a_model_that_is_not_known_is_named_with_the_nearest():
    with pytest.raises(RecipeError, match=r"'lama'.*did you mean 'llama'"):
        shape_of({"model_type": "lama"}, "mine")
    with pytest.raises(RecipeError, match="no hidden_size"):
        shape_of({"model_type": "llama", "num_attention_heads": 2}, "mine")
    assert AutoConfig.for_model("mistral").model_type == "mistral"


# --- memory ---


def test_of_what_comes_and_goes_the_largest_counts():
    memory = Memory((Part("a", 3), Part("b", 2, passing=True), Part("c", 5, passing=True)), 8)
    assert memory.held == 3 and memory.peak == 8 and memory.fits
    assert not Memory(memory.parts, 7.9).fits
    assert not Memory((*memory.parts, Part("KV cache", 1)), 99, cache_needed=2).fits


def test_a_trained_weight_takes_eighteen_bytes_in_bfloat16_and_sixteen_in_float32():
    counted = shape(CONFIGS["llama"])
    for bytes_each, expected in ((2, 18), (4, 16)):
        work = Workload(64, 8, 100, 500, 2048, bytes_each=bytes_each)
        memory = memory_of(counted, work, DEVICES["h100"])
        held = sum(memory.size_of(name) for name in ("weights", "optimiser", "gradients"))
        assert held == expected * counted.parameters


def test_four_bits_shrink_linear_layers_alone():
    counted = shape(CONFIGS["deepseek_v3"])
    work = Workload(64, 8, 100, 500, 2048, lora=LoraSettings(rank=4, four_bit=True))
    kept = counted.routed_parameters + 2 * counted.embedding_parameters
    assert 2 * kept < weight_bytes(counted, work) < 2 * kept + counted.parameters


def test_what_does_not_fit_says_what_to_change_and_no_time():
    work = Workload(512, 16, 100, 500, 2048, microbatch=65_536)
    large = estimate("it", shape(LlamaConfig()), work, Cluster(DEVICES["rtx4090"], 1))
    assert not large.memory.fits and large.step is None and large.dollars is None
    assert large.changes
    eight = estimate("it", shape(LlamaConfig()), WORK, Cluster(DEVICES["h100"], 8))
    assert eight.memory.fits and eight.layout == "sharded" and eight.changes == ()
    small = estimate("it", shape(CONFIGS["llama"]), work, Cluster(DEVICES["rtx4090"], 1))
    assert small.memory.fits and small.layout == "replicated" and small.dollars
    json.dumps([large.as_dict(), small.as_dict()])


# --- lengths and time ---


@pytest.mark.parametrize(("mean", "cap"), [(500, 32_768), (9618, 32_768), (14.5, 128), (90, 96)])
def test_lengths_have_their_mean_behind_the_cut(mean, cap):
    lengths = lengths_of(mean, cap)
    assert sum(w * lengths.surviving(at) for at, w in lengths.grid) == pytest.approx(mean, rel=1e-3)
    assert lengths.surviving(0) == 1 and lengths.surviving(cap) == 0
    assert mean**2 <= lengths.mean_square <= mean * cap


def test_the_spread_of_lengths_is_that_of_the_source():
    lengths = lengths_of(500, 40_000)
    median = next(at for at in range(1, 500) if lengths.surviving(at) <= 0.5)
    assert 0.0005 < lengths.surviving(10 * median) < 0.002  # the 99.9th percentile


def test_a_decoding_step_by_hand():
    device = Device("it", 1e15, 80e9, 1e12, 1e11, 1e10)
    counted = shape(CONFIGS["llama"])
    read = 2 * (counted.parameters - counted.embedding_parameters + counted.cache_numbers() * 100)
    found = decode_seconds(counted, WORK, Cluster(device, 1), 1, 1, 100)
    assert found == pytest.approx(read / 0.7e12 + 2 * 25e-6)


def test_experts_are_read_as_far_as_they_are_chosen():
    counted = v3()
    active = counted.active_parameters
    assert counted.touched_parameters(1) == pytest.approx(active, rel=1e-3)
    every = counted.parameters - counted.embedding_parameters
    assert counted.touched_parameters(4096) == pytest.approx(every, rel=1e-3)


def test_twice_the_gpus_halve_the_training_and_longer_responses_cost_more_than_their_tokens():
    one = step_time(v3(), WORK, Cluster(DEVICES["h100"], 256), layout="megatron", replica=32)
    two = step_time(v3(), WORK, Cluster(DEVICES["h100"], 512), layout="megatron", replica=32)
    assert two.training == pytest.approx(one.training / 2)
    assert two.sampling > one.sampling / 2  # the longest response takes what it takes
    long = Workload(num_sequences=8, group_size=8, prompt=100, mean=16_000, longest=32_768)
    short = Workload(num_sequences=320, group_size=8, prompt=2.5, mean=400, longest=819)
    times = [
        step_time(v3(), w, Cluster(DEVICES["h100"], 256), layout="megatron", replica=32).training
        for w in (long, short)
    ]
    assert long.tokens == pytest.approx(short.tokens, rel=0.01) and times[0] > 1.1 * times[1]


def test_short_completions_pay_for_their_prompt_together():
    shared = importlib.import_module("r1lab.grpo.prefix_sharing")
    assert (workload._SHORT, workload._SHARING) == (shared.SHORT, shared.FAMILIES)
    work = Workload(64, 16, 20, 32, 128, sharing=True)
    assert work.row_completions == 8 and work.tokens == 64 * (20 / 8 + 32)
    assert replace(work, mean=4).row_completions == 16  # no more than a group has
    assert replace(work, mean=500).tokens == 64 * 520
    assert replace(work, sharing=False).tokens == 64 * 52


def test_adapters_cost_two_thirds_of_the_training():
    cluster = Cluster(DEVICES["h100"], 1)
    full = step_time(shape(CONFIGS["llama"]), WORK, cluster, layout="replicated")
    lora = Workload(64, 8, 100, 500, 2048, lora=LoraSettings())
    less = step_time(shape(CONFIGS["llama"]), lora, cluster, layout="replicated")
    assert less.training == pytest.approx(2 / 3 * full.training)


@pytest.fixture
def published(monkeypatch) -> list[dict]:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    module = importlib.import_module("estimate_published")
    try:
        return module.published_rows()
    finally:
        sys.modules.pop("estimate_published")


# Estimated over published seconds of a step, of six runs on GPUs: what docs/scaling.md reports.
STEP_RATIOS = [0.196, 0.275, 0.315, 0.578, 0.583, 0.627]


def test_the_published_costs_come_out_within_half(published):
    ratio = {row["what"]: row["ratio"] for row in published}
    for what in ("DeepSeek-V3, pre-training on 14.8T tokens", "R1-Zero, 10,400 steps"):
        assert 1 / 1.5 < ratio[what] < 1.5
    # Nothing was fitted to these: they are reported, and are optimistic.
    steps = [value for what, value in ratio.items() if what.startswith(("NeMo", "verl"))]
    assert len(steps) == 6 and all(value < 1 for value in steps)
    # Figures of one configuration file each: they change only with the model of time or hardware.
    assert sorted(steps) == pytest.approx(STEP_RATIOS, rel=0.01)


# --- machines ---


def test_names_of_machines():
    assert parse_gpus("8xH100") == Cluster(DEVICES["h100"], 8)
    assert parse_gpus("NVIDIA GeForce RTX 4090") == Cluster(DEVICES["rtx4090"], 1)
    assert parse_gpus("cpu").device.is_cpu
    wrong = {"8xH10": "did you mean 'H100'", "0xH100": "like 8xH100", "": "like 8xH100"}
    for text, said in wrong.items():
        with pytest.raises(R1labError, match=said):
            parse_gpus(text)


def test_this_machines_gpus_are_asked_of_the_driver(tmp_path):
    assert local_cluster(tmp_path).device.is_cpu
    for number in range(2):
        folder = tmp_path / f"proc/driver/nvidia/gpus/0000:0{number}:00.0"
        folder.mkdir(parents=True)
        (folder / "information").write_text("Model: \t\t NVIDIA H100 80GB HBM3\nIRQ:   20\n")
    assert local_cluster(tmp_path) == Cluster(DEVICES["h100"], 2)


# --- the command ---


def test_the_command(r1lab, tmp_path):
    done = r1lab("estimate", "quickstart", "--gpus", "8xH100", "--json", "it.json")
    assert done.returncode == 0, done.stderr
    assert "fits in 79.0 GiB" in done.stdout and "GPU hours" in done.stdout
    found = json.loads((tmp_path / "it.json").read_text())
    assert found["parameters"] == 1_936_896
    assert found["memory"]["fits"] and found["seconds_of_a_step"]["total"] > 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--gpus", "8xH101"], "did you mean 'H100'?"),
        (["--model.path", "owner/model"], "not in the hub's cache"),
        (["--model.path", "nanno"], "did you mean 'nano'?"),
        (["--price", "0"], "must be above 0"),
        (["--json", "no/such/it.json"], "there is no folder"),
    ],
)
def test_what_cannot_be_estimated_is_one_line(r1lab, arguments, said):
    done = r1lab("estimate", "quickstart", *arguments)
    assert done.returncode == 2 and said in done.stderr and len(done.stderr.splitlines()) == 1


def test_a_dry_run_ends_with_it(r1lab):
    done = r1lab("train", "quickstart", "--dry-run")
    assert done.returncode == 0 and "\nestimate on " in done.stdout
    done = r1lab("train", "quickstart", "--dry-run", "--model.path", "owner/model")
    assert done.returncode == 0 and "no estimate: model.path: 'owner/model'" in done.stdout
