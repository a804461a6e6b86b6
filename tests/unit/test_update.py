"""The policy's update on a small V3-style model: old and reference log-probs, epochs, routing."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest
import tiny
import torch
from records import problem
from torch import Tensor
from transformers import DeepseekV3ForCausalLM, LlamaForCausalLM

from r1lab.config.recipe import (
    AlgorithmSettings,
    LoraSettings,
    OptimizerSettings,
    ProblemSettings,
    SourceSettings,
    TrainRecipe,
)
from r1lab.grpo.advantage import group_advantages
from r1lab.grpo.batch import microbatches, pack, split
from r1lab.grpo.micro_loss import micro_loss, old_logprobs
from r1lab.grpo.policy import Policy
from r1lab.grpo.step import minibatches
from r1lab.model.adapters import add_lora
from r1lab.model.balance import routers
from r1lab.model.replay import RouterReplay, require_routers, routed_layers
from r1lab.prompts import TEMPLATES
from r1lab.rollout.hf_sampler import TransformersSampler
from r1lab.types import (
    Batch,
    Completion,
    RecipeError,
    Rollout,
    SamplingSettings,
    ScoredGroup,
    Verdict,
)

SHAPE: dict[str, Any] = {
    "hidden_size": 48, "intermediate_size": 64, "moe_intermediate_size": 32, "kv_lora_rank": 32,
    "num_hidden_layers": 4, "first_k_dense_replace": 2, "initializer_range": 0.2,
}  # fmt: skip


def v3() -> DeepseekV3ForCausalLM:
    torch.manual_seed(0)
    return DeepseekV3ForCausalLM._from_config(
        tiny.v3_config(**SHAPE), experts_implementation="eager"
    )


def policy_of(model: Any, **options: Any) -> Policy:
    from accelerate import Accelerator

    return Policy(
        model, optimizer=OptimizerSettings(learning_rate=3e-3, warmup_steps=0), total_updates=20,
        temperature=1.0, accelerator=Accelerator(cpu=True), **options,
    )  # fmt: skip


def scored_groups(versions: tuple[int, ...] = (0, 0)) -> list[ScoredGroup]:
    """A group of four for each version, with log-probs and routed experts that are made up."""
    draw = random.Random(0)
    groups = []
    for index, version in enumerate(versions):
        prompt = tuple(draw.randrange(8, 128) for _ in range(4 + index))
        completions = []
        for _ in range(4):
            tokens = tuple(draw.randrange(8, 128) for _ in range(draw.randrange(3, 9)))
            given = [
                [draw.sample(range(8), 2) for _ in range(2)]
                for _ in range(len(prompt) + len(tokens) - 1)
            ]
            logprobs = tuple(-draw.random() for _ in tokens)
            experts = torch.tensor(given)
            completions.append(
                Completion(tokens, "", "stop", version, logprobs=logprobs, routed_experts=experts)
            )
        scores = tuple(Verdict(float(i % 2) + 0.1 * i) for i in range(4))
        groups.append(ScoredGroup(Rollout(problem(index), prompt, tuple(completions)), scores))
    return groups


def batch_of(versions: tuple[int, ...] = (0, 0), *, replay: bool = False) -> Batch:
    groups = scored_groups(versions)
    batch = pack(
        groups, group_advantages(groups, "group_std"), loss="token_mean", max_tokens=10,
        version=max(versions),
    )  # fmt: skip
    return batch if replay else replace(batch, experts=None)


def step(policy: Policy, batch: Batch, algorithm: AlgorithmSettings) -> list[dict[str, float]]:
    """The updates of one step, as `rl_step` takes them; the means of each."""
    sources = ProblemSettings(sources=(SourceSettings(source="boxes"),))
    recipe = TrainRecipe(name="x", problems=sources, algorithm=algorithm)
    means = []
    for part in minibatches(policy, policy.with_old_and_ref_logprobs(batch, algorithm), recipe):
        means.append(policy.forward_backward(part, algorithm).means)
        policy.optimizer_step(router_bias_speed=algorithm.router_bias_speed)
    policy.advance_version(algorithm.reference_every)
    return means


def trained(policy: Policy) -> list[Tensor]:
    return [p.detach().clone() for p in policy.optimizer.parameters]


# ------------------------------------------------------------------------------- old log-probs


def test_stale_sequences_are_held_against_the_sampler() -> None:
    policy = policy_of(v3())
    batch = batch_of((0, 1))
    assert batch.stale.tolist() == [True] * 4 + [False] * 4
    (micro,) = microbatches(batch, 10_000)
    with torch.no_grad():
        logp, _ = policy.logprobs(micro)
    old = old_logprobs(micro, logp)
    assert micro.logp_sampler is not None
    stale = micro.stale.repeat_interleave(micro.completion_lens)
    assert torch.equal(old[stale], micro.logp_sampler[stale])
    assert torch.equal(old[~stale], logp[~stale])
    # A correction weighs the way from the sampler by itself, stale or not: the ratio begins at 1.
    assert torch.equal(old_logprobs(micro, logp, corrected=True), logp)
    algorithm = AlgorithmSettings(correction="token_truncate", correction_high=2.0)
    loss, _ = micro_loss(micro, logp, torch.zeros_like(logp), algorithm)
    weights = (logp - micro.logp_sampler).exp().clamp(max=2.0)
    spread = micro.advantages.repeat_interleave(micro.completion_lens)
    torch.testing.assert_close(loss, -(weights * spread).sum() / micro.denominator)
    assert (weights - 1).abs().max() > 1e-3
    # Agreement of sampler and trainer is judged on what was sampled under these weights.
    stats = policy.forward_backward(batch, AlgorithmSettings())
    assert stats.num_tokens == int((~stale).sum())
    # Alone, the fresh group is judged by the same tokens (computed in another micro-batch).
    (_, fresh) = scored_groups((0, 1))
    alone = pack(
        [fresh], group_advantages([fresh], "group_std"), loss="token_mean", max_tokens=10, version=1
    )
    fresh_alone = policy.forward_backward(replace(alone, experts=None), AlgorithmSettings())
    assert fresh_alone.num_tokens == stats.num_tokens > 0
    assert fresh_alone.sync_kl == pytest.approx(stats.sync_kl, rel=1e-4)
    everything_stale = replace(batch, stale=torch.ones_like(batch.stale))
    assert policy.forward_backward(everything_stale, AlgorithmSettings()).sync_kl is None


def test_epochs_and_minibatches_remember_the_policy_before_them() -> None:
    algorithm = AlgorithmSettings(num_minibatches=2, num_epochs=3)
    policy = policy_of(v3())
    batch = policy.with_old_and_ref_logprobs(batch_of(), algorithm)
    assert batch.logp_old is not None
    means = step(policy, batch_of(), algorithm)
    assert len(means) == algorithm.updates_per_step == policy.num_updates == 6
    kl = [m["kl_old"] for m in means]
    assert kl[0] < 1e-10 < 1e-4 < kl[-1]
    # Every epoch goes through everything, in an order of its own that the next run repeats.
    assert sum(m["sequences"] for m in means) == 3 * 8
    again = policy_of(v3())
    assert step(again, batch_of(), algorithm) == means
    assert all(torch.equal(a, b) for a, b in zip(trained(policy), trained(again), strict=True))


def test_bnpo_divides_each_minibatch_by_its_own_tokens() -> None:
    groups = [*scored_groups(), scored_groups((0,))[0]]
    even = ScoredGroup(groups[2].rollout, (Verdict(1.0),) * 4)  # no variance: its tokens count
    advantages = group_advantages([*groups[:2], even], "group_std")
    batch = pack(
        [*groups[:2], even], advantages, loss="bnpo", max_tokens=10, drop_zero_advantage=False
    )
    parts = split(batch, 3, own_denominators=True)
    counts = [float((part.lengths - part.prompt_lens).sum()) for part in parts]
    assert [part.denominator for part in parts] == counts
    doubled = split(batch, 3, own_denominators=True, all_reduce_sum=lambda n: 2 * n)
    assert [part.denominator for part in doubled] == [2 * count for count in counts]


# --------------------------------------------------------------------------------- reference


def own_logprobs(policy: Policy) -> Tensor:
    return policy.completion_logprobs(batch_of(), 200)[0]


@pytest.mark.parametrize("way", ["full", "lora"])
def test_the_reference_is_the_model_as_it_was(way: str) -> None:
    base = v3()
    policy = policy_of(
        base if way == "full" else add_lora(base, LoraSettings(rank=4)), with_reference=True
    )
    assert policy.reference is not None
    algorithm = AlgorithmSettings(kl_coefficient=0.1, reference_every=2, router_bias_speed=0.01)
    start = own_logprobs(policy)
    assert step(policy, batch_of(), algorithm)[0]["kl_ref"] < 1e-10
    moved = own_logprobs(policy)
    assert not torch.allclose(moved, start, atol=1e-3)
    before = trained(policy)
    with policy.reference.in_place():
        assert torch.equal(own_logprobs(policy), start)
    if way == "lora":
        with policy.model.disable_adapter():  # up to the router bias, which moved
            torch.testing.assert_close(own_logprobs(policy), start, atol=0.1, rtol=0.1)
    assert all(torch.equal(a, b) for a, b in zip(trained(policy), before, strict=True))
    assert torch.equal(own_logprobs(policy), moved)
    assert step(policy, batch_of(), algorithm)[0]["kl_ref"] > 1e-5
    # After every second step the reference is the policy.
    now = own_logprobs(policy)
    with policy.reference.in_place():
        assert torch.equal(own_logprobs(policy), now)


def test_the_kl_term_pulls_towards_the_reference() -> None:
    """The same step from the same moved weights, with and without the term."""
    distances = []
    for coefficient in (0.0, 20.0):
        policy = policy_of(v3(), with_reference=True)
        assert policy.reference is not None
        with torch.no_grad():
            for parameter in policy.optimizer.parameters:
                parameter += 0.02 * torch.sin(torch.arange(parameter.numel())).view_as(parameter)
        with policy.reference.in_place():
            start = own_logprobs(policy)
        for _ in range(3):
            step(policy, batch_of(), AlgorithmSettings(kl_coefficient=coefficient or 1e-9))
        distances.append(float((own_logprobs(policy) - start).square().sum()))
    assert distances[1] < 0.7 * distances[0]


def test_a_saved_policy_goes_on_as_the_one_that_was_not_interrupted() -> None:
    algorithm = AlgorithmSettings(
        kl_coefficient=0.1, reference_every=2, num_minibatches=2, num_epochs=2,
        router_bias_speed=0.01, router_replay="old",
    )  # fmt: skip
    whole = policy_of(v3(), with_reference=True)
    figures = [step(whole, batch_of(), algorithm) for _ in range(4)]
    first = policy_of(v3(), with_reference=True)
    assert [step(first, batch_of(), algorithm) for _ in range(3)] == figures[:3]
    second = policy_of(v3(), with_reference=True)
    second.load_state_dict(first.state_dict())
    assert step(second, batch_of(), algorithm) == figures[3]
    for a, b in zip(trained(second), trained(whole), strict=True):
        assert torch.equal(a, b)


# ----------------------------------------------------------------------------------- routing


def test_layers_with_routed_experts_are_counted_past_the_dense_ones() -> None:
    """The layers that a sampler which counts all of them is read at are those that have gates."""
    model = v3()
    gates = {id(router) for router in routers(model)}
    names = [name for name, module in model.named_modules() if id(module) in gates]
    assert names == [f"model.layers.{layer}.mlp.gate" for layer in routed_layers(model.config)]
    assert routed_layers(model.config) == [2, 3]


def test_replay_routes_as_it_is_told() -> None:
    model = v3().eval()
    ids = torch.randint(8, 128, (2, 7))
    replay = RouterReplay(model)
    with torch.no_grad(), replay.recorded() as own:
        model(input_ids=ids)
    given = (torch.stack(own, 1).view(2, 7, 2, 2) + 1) % 8  # the neighbour of every choice
    given[1, 5:] = -1  # as at padding
    with torch.no_grad(), replay.replayed(given), replay.recorded() as followed:
        # recorded() hooks run after those of replayed(): they see what the experts get
        model(input_ids=ids)
    routed = torch.stack(followed, 1).view(2, 7, 2, 2)
    told = given >= 0
    assert torch.equal(routed[told], given[told])
    assert torch.equal(routed[1, 5:, 0], torch.stack(own, 1).view(2, 7, 2, 2)[1, 5:, 0])
    with torch.no_grad(), replay.recorded() as after:
        model(input_ids=ids)
    assert all(torch.equal(a, b) for a, b in zip(after, own, strict=True))


def test_replaying_a_models_own_choice_changes_nothing() -> None:
    model = v3().eval()
    ids = torch.randint(8, 128, (2, 7))
    replay = RouterReplay(model)
    with replay.recorded() as own:
        plain = model(input_ids=ids).logits
    plain.square().sum().backward()
    gradients = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    with replay.replayed(torch.stack(own, 1).view(2, 7, 2, 2)):
        again = model(input_ids=ids).logits
    assert torch.equal(plain, again)
    again.square().sum().backward()
    found = [p.grad for p in model.parameters() if p.grad is not None]
    for one, two in zip(gradients, found, strict=True):
        torch.testing.assert_close(one, two)


def test_the_samplers_choices_reach_the_trainers_forward() -> None:
    """R3: what the completions carry is what the update routes by, packed, split and padded."""
    policy = policy_of(v3())
    batch = batch_of(replay=True)
    assert batch.experts is not None
    starts = (batch.lengths.cumsum(0) - batch.lengths).tolist()
    ends = batch.lengths.cumsum(0).tolist()
    for group_row, (start, end) in enumerate(zip(starts, ends, strict=True)):
        completion = scored_groups()[group_row // 4].rollout.completions[group_row % 4]
        assert torch.equal(batch.experts[start : end - 1].long(), completion.routed_experts)
        assert (batch.experts[end - 1] == -1).all()
    for part in split(batch, 2, torch.Generator().manual_seed(0)):
        for micro in microbatches(part, 30):
            with policy._replay.recorded() as chosen:
                policy.logprobs(micro)
            # the recording hooks came first: they saw the router's own choice
            assert micro.experts is not None
            with policy._replay.replayed(micro.experts), policy._replay.recorded() as routed:
                policy._decoder(input_ids=micro.token_ids)
            told = micro.experts.flatten(0, 1)
            for layer, (followed, own) in enumerate(zip(routed, chosen, strict=True)):
                given = told[:, layer]
                known = (given >= 0).all(-1)
                assert torch.equal(followed[known], given[known])
                assert not torch.equal(own[known], given[known])


def test_a_real_samplers_choices_are_replayed(tmp_path: Any) -> None:
    """R3 end to end: the transformers sampler records, a trainer with other gates follows."""
    model = v3()
    sampler = TransformersSampler(tiny.save(model, tmp_path), tiny.tokenizer(), dtype="float32")
    prompts = tiny.prompts(3, length=6) + tiny.prompts(1, length=9)  # padded on the left
    settings = SamplingSettings(
        num_samples=4, max_tokens=12, logprobs=True, routed_experts=True, seed=0
    )
    groups = sampler.generate(prompts, settings, template=TEMPLATES["plain"])
    scored = [
        ScoredGroup(Rollout(problem(i), prompt, group), tuple(Verdict(float(j)) for j in range(4)))
        for i, (prompt, group) in enumerate(zip(prompts, groups, strict=True))
    ]
    advantages = group_advantages(scored, "group_std")
    batch = pack(scored, advantages, loss="token_mean", max_tokens=12)
    assert batch.experts is not None
    policy = policy_of(model)
    _, own = policy.completion_logprobs(replace(batch, experts=None), 200, record_experts=True)
    assert own is not None
    told = batch.experts >= 0
    assert int((~told).sum()) == len(batch) * 2 * 2  # the last token of each sequence
    assert torch.equal(own[told].sort().values, batch.experts[told].sort().values)
    with torch.no_grad():
        for router in routers(policy.model):
            router.weight += torch.randn(router.weight.shape)
    _, moved = policy.completion_logprobs(replace(batch, experts=None), 200, record_experts=True)
    assert moved is not None and not torch.equal(moved[told], batch.experts[told])
    for micro in microbatches(batch, 60):
        with policy._replay.replayed(micro.experts), policy._replay.recorded() as routed:
            policy._decoder(input_ids=micro.token_ids)
        assert micro.experts is not None
        followed = torch.stack(routed, 1).view_as(micro.experts)
        known = micro.experts >= 0
        assert torch.equal(followed[known], micro.experts[known])


def test_a_model_without_routers_is_refused() -> None:
    with pytest.raises(RecipeError, match="LlamaForCausalLM has no router"):
        require_routers(LlamaForCausalLM(tiny.llama_config()))


def test_old_choices_are_replayed_in_later_updates() -> None:
    """R2: after the weights have moved, routing is still that of the forward before."""
    algorithm = AlgorithmSettings(num_epochs=2, router_replay="old")
    policy = policy_of(v3())
    batch = policy.with_old_and_ref_logprobs(batch_of(), algorithm)
    assert batch.experts is not None and (batch.experts >= 0).all()
    with torch.no_grad():
        for router in routers(policy.model):
            router.weight += torch.randn(router.weight.shape)
    _, now = policy.completion_logprobs(replace(batch, experts=None), 200, record_experts=True)
    assert now is not None and not torch.equal(now, batch.experts)
    (micro,) = microbatches(batch, 10_000)
    with policy._replay.replayed(micro.experts), policy._replay.recorded() as routed:
        policy._decoder(input_ids=micro.token_ids)
    real = micro.attention_mask.bool()
    followed = torch.stack(routed, 1).view(*real.shape, 2, 2)[real]
    assert torch.equal(followed.short(), batch.experts[micro.where[real]])


def test_the_router_bias_moves_only_when_asked() -> None:
    for speed in (0.0, 0.01):
        policy = policy_of(v3())
        before = [router.e_score_correction_bias.clone() for router in routers(policy.model)]
        step(policy, batch_of(), AlgorithmSettings(router_bias_speed=speed))
        for old, router in zip(before, routers(policy.model), strict=True):
            moved = (router.e_score_correction_bias - old).abs()
            assert moved.max() == pytest.approx(speed)
