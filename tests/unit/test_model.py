"""Configurations, expert balancing and the optimiser over float32 masters."""

import copy

import pytest
import torch
from transformers import DeepseekV3ForCausalLM

from r1lab.model.balance import ExpertLoad, routers, update_router_bias
from r1lab.model.config import SIZES, kv_cache_bytes_per_token, v3_config
from r1lab.model.optim import MasterAdamW, learning_rate_at
from r1lab.model.tokenizer import VOCAB_SIZE


def nano(dtype=torch.float32, seed=0):
    torch.manual_seed(seed)
    config = v3_config("nano", vocab_size=VOCAB_SIZE)
    config._experts_implementation = "eager"
    model = DeepseekV3ForCausalLM(config)
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    return model


def test_the_largest_size_is_deepseek_v3():
    """671B total, 37B active (arXiv 2412.19437, section 4.2), without the MTP module."""
    config = v3_config("v3")
    with torch.device("meta"):
        model = DeepseekV3ForCausalLM(config)
    total = sum(p.numel() for p in model.parameters())
    expert = 3 * config.hidden_size * config.moe_intermediate_size
    layers = config.num_hidden_layers - config.first_k_dense_replace
    idle = layers * (config.n_routed_experts - config.num_experts_per_tok) * expert
    assert total == pytest.approx(671e9, rel=0.001)
    assert total - idle == pytest.approx(37e9, rel=0.02)
    # MLA's cache: 61 layers of 512 + 64 numbers (arXiv 2405.04434).
    assert kv_cache_bytes_per_token(config)[0] == 61 * 576 * 2


@pytest.mark.parametrize("size", sorted(SIZES))
def test_every_size_is_one_that_vllm_can_load(size):
    config = v3_config(size)
    assert config.topk_method == "noaux_tc" and config.scoring_func == "sigmoid"
    assert not config.tie_word_embeddings


def test_an_unknown_size_names_the_known_ones():
    with pytest.raises(ValueError, match="nano"):
        v3_config("giant")


def test_expert_load_counts_each_token_top_k_times_and_leaves_padding_out():
    model = nano()
    tokens = torch.randint(3, VOCAB_SIZE, (2, 10))
    with ExpertLoad(model) as load, torch.no_grad():
        model(input_ids=tokens)
        assert load.take().sum(-1).tolist() == [20 * 2, 20 * 2]
        load.mask = torch.zeros(2, 10, dtype=torch.bool)
        load.mask[:, :3] = True
        model(input_ids=tokens)
        assert load.take().sum(-1).tolist() == [6 * 2, 6 * 2]


def test_the_router_bias_moves_against_the_load():
    model = nano()
    counts = torch.tensor([[8.0, 0, 4, 4, 4, 4, 4, 4], [4.0] * 8])
    update_router_bias(model, counts, speed=0.5)
    first, second = (router.e_score_correction_bias for router in routers(model))
    assert first.tolist() == [-0.5, 0.5, 0, 0, 0, 0, 0, 0]
    assert second.abs().sum() == 0


def test_balancing_evens_out_a_lopsided_router():
    model = nano()
    tokens = torch.randint(3, VOCAB_SIZE, (8, 32))
    first = routers(model)[0]
    first.e_score_correction_bias[:2] += 0.5  # two experts get everything

    def shares():
        with ExpertLoad(model) as load, torch.no_grad():
            model(input_ids=tokens)
            return load.take()

    before = shares()[0].max() / shares()[0].sum()
    for _ in range(300):
        update_router_bias(model, shares(), speed=2e-3)
    after = shares()[0].max() / shares()[0].sum()
    assert before > 0.45 and after < 0.2


def one_update(model, tokens, num_micro, updates=3):
    optimizer = MasterAdamW(list(model.parameters()), learning_rate=1e-3, betas=(0.9, 0.99))
    for _ in range(updates):
        optimizer.zero_grad()
        for part in tokens.split(len(tokens) // num_micro):
            logits = model(input_ids=part, use_cache=False).logits.float()
            (logits.logsumexp(-1).sum() / tokens.numel()).backward()
        optimizer.step(1e-3, 1.0)
    return optimizer


def test_float32_masters_are_plain_adamw():
    tokens = torch.randint(3, VOCAB_SIZE, (4, 12))
    ours, plain = nano(), nano()
    one_update(ours, tokens, 2)
    reference = torch.optim.AdamW(plain.parameters(), lr=1e-3, betas=(0.9, 0.99), weight_decay=0.0)
    for _ in range(3):
        reference.zero_grad()
        (plain(input_ids=tokens).logits.logsumexp(-1).mean()).backward()
        torch.nn.utils.clip_grad_norm_(plain.parameters(), 1.0)
        reference.step()
    for mine, theirs in zip(ours.parameters(), plain.parameters(), strict=True):
        assert torch.allclose(mine, theirs, atol=2e-5)


def test_bf16_weights_are_rounded_masters_and_gradients_gather_in_float32():
    tokens = torch.randint(3, VOCAB_SIZE, (4, 12))
    model = nano(torch.bfloat16)
    start = copy.deepcopy(list(model.parameters()))
    optimizer = one_update(model, tokens, 4)
    assert all(master.dtype == torch.float32 for master in optimizer.masters)
    assert all(parameter.grad is None for parameter in model.parameters())
    for parameter, master in zip(model.parameters(), optimizer.masters, strict=True):
        assert torch.equal(parameter, master.bfloat16())
    assert any(not torch.equal(a, b) for a, b in zip(start, model.parameters(), strict=True))


def test_the_optimiser_goes_on_from_its_state_bit_for_bit():
    tokens = torch.randint(3, VOCAB_SIZE, (4, 12))
    model = nano(torch.bfloat16)
    whole = one_update(model, tokens, 2, updates=3)
    state, weights = copy.deepcopy(whole.state_dict()), copy.deepcopy(model.state_dict())

    def go_on(model, optimizer):
        optimizer.zero_grad()
        model(input_ids=tokens, use_cache=False).logits.float().logsumexp(-1).mean().backward()
        optimizer.step(1e-3, 1.0)

    go_on(model, whole)
    other = nano(torch.bfloat16, seed=5)
    other.load_state_dict(weights)
    resumed = MasterAdamW(list(other.parameters()), learning_rate=1e-3, betas=(0.9, 0.99))
    resumed.load_state_dict(state)
    go_on(other, resumed)
    for a, b in zip(whole.masters, resumed.masters, strict=True):
        assert torch.equal(a, b)


def test_learning_rate_schedules():
    shape = {"peak": 1.0, "warmup_steps": 4, "final_fraction": 0.1}
    assert learning_rate_at(0, 0.0, schedule="constant", **shape) == 0.25
    assert learning_rate_at(9, 0.9, schedule="constant", **shape) == 1.0
    assert learning_rate_at(9, 1.0, schedule="linear", **shape) == pytest.approx(0.1)
    assert learning_rate_at(9, 0.5, schedule="cosine", **shape) == pytest.approx(0.55)
    assert learning_rate_at(9, 0.6, schedule="linear", flat_until=0.6, **shape) == 1.0
