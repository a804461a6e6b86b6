"""The contract of a sampler, held to both engines on the shipped base."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from rig import long_prompts

from r1lab.config.recipe import ModelSettings
from r1lab.model.load import load_base
from r1lab.prompts import TEMPLATES
from r1lab.rollout.agreement import both_logprobs, k3_kl
from r1lab.rollout.build import build_sampler
from r1lab.rollout.sampler import Sampler, Streaming, stream_of
from r1lab.types import Completion, SamplingSettings

TEMPLATE = TEMPLATES["compact"]


@pytest.fixture(scope="module")
def base() -> tuple[Any, Any, Any]:
    return load_base(ModelSettings(path="nano"))


@pytest.fixture(scope="module", params=["vllm", "transformers"])
def sampler(request, base) -> Iterator[Sampler]:
    model, tokenizer, folder = base
    dtype = str(model.dtype).removeprefix("torch.")
    sampler = build_sampler(
        request.param, folder, tokenizer, dtype=dtype, max_model_len=128, seed=3
    )
    yield sampler
    sampler.close()


@pytest.fixture(scope="module")
def prompts(base) -> list[tuple[int, ...]]:
    return long_prompts(base[1], 12)


def sample(sampler: Sampler, prompts, **settings) -> list[tuple[Completion, ...]]:
    settings = {"num_samples": 4, "max_tokens": 40, "logprobs": True, "seed": 1, **settings}
    return sampler.generate(prompts, SamplingSettings(**settings), template=TEMPLATE)


def test_it_is_a_sampler(sampler: Sampler):
    assert isinstance(sampler, Sampler)
    assert (sampler.version, sampler.max_model_len) == (0, 128)
    assert sampler.generate([], SamplingSettings(), template=TEMPLATE) == []


@pytest.mark.parametrize("settings", [{}, {"temperature": 0.6}, {"temperature": 1.5}])
def test_logprobs_are_of_the_distribution_sampled_from(sampler, base, prompts, settings):
    groups = sample(sampler, prompts, num_samples=16, **settings)
    both = both_logprobs(base[0], prompts, groups, temperature=settings.get("temperature", 1.0))
    assert k3_kl(*both) < 1e-3
    wrong = both_logprobs(base[0], prompts, groups, temperature=1.1)
    assert k3_kl(*wrong) > k3_kl(*both)


def test_top_p_draws_from_the_nucleus_and_says_its_probability(sampler, base, prompts):
    groups = sample(sampler, prompts, top_p=0.5, num_samples=8)
    sampled, trained = both_logprobs(base[0], prompts, groups)
    assert float((sampled - trained).min()) > -0.1  # what is left of the nucleus is scaled up
    assert float((sampled - trained).mean()) > 0.05
    # A token whose own probability passes top_p has the nucleus to itself.
    alone = trained > -0.6
    assert float(sampled[alone].abs().max()) < 0.1


def test_completions_are_whole_records(sampler, base, prompts):
    tokenizer = base[1]
    groups = sample(sampler, prompts)
    assert [len(group) for group in groups] == [4] * len(prompts)
    finished = [c for group in groups for c in group if c.finish_reason == "stop"]
    assert finished, "the base ends some responses within 40 tokens"
    for completion in finished:
        assert completion.token_ids[-1] == tokenizer.eos_token_id
        assert tokenizer.eos_token_id not in completion.token_ids[:-1]
        assert tokenizer.eos_token not in completion.text
        assert completion.text == tokenizer.decode(completion.token_ids[:-1])
        assert len(completion.logprobs) == len(completion.token_ids)
        assert completion.prefix == "<think>" and completion.weight_version == 0
    assert any(c.answer is not None and c.thinking is not None for c in finished)
    (cut,) = sample(sampler, prompts[:1], num_samples=1, max_tokens=2, logprobs=False)
    assert (cut[0].finish_reason, len(cut[0].token_ids), cut[0].logprobs) == ("length", 2, None)


def test_a_seed_makes_the_call_and_the_stream_goes_on_without_one(sampler, prompts):
    first, unseeded = sample(sampler, prompts), sample(sampler, prompts, seed=None)
    assert sample(sampler, prompts) == first
    assert sample(sampler, prompts, seed=2) != first
    assert sample(sampler, prompts, seed=None) != unseeded


def streamed(sampler: Sampler, prompts, at_first: int, **settings) -> list[tuple[int, int, Any]]:
    """(prompt, prompts in flight when it finished, group), in order; one prompt more after each."""
    settings = {"num_samples": 4, "max_tokens": 40, "logprobs": True, "seed": 1, **settings}
    stream = stream_of(sampler, SamplingSettings(**settings), template=TEMPLATE)
    stream.add(prompts[:at_first])
    added, found = at_first, []
    while done := stream.wait():
        for number, group in done:
            found.append((number, added - len(found) - 1, group))
        stream.add(prompts[added : added + len(done)])
        added = min(len(prompts), added + len(done))
    return found


def test_prompts_are_added_while_others_are_in_flight_and_a_seed_repeats_it_all(sampler, prompts):
    found = streamed(sampler, prompts, at_first=6)
    assert sorted(number for number, _, _ in found) == list(range(len(prompts)))
    assert all(len(group) == 4 for _, _, group in found)
    assert streamed(sampler, prompts, at_first=6) == found
    assert streamed(sampler, prompts, at_first=6, seed=2) != found
    if isinstance(sampler, Streaming):
        assert any(overtook_one_of_the_first(sampler, prompts, seed) for seed in range(1, 9))
    else:  # in batches
        assert [others for _, others, _ in found[:6]] == [5, 4, 3, 2, 1, 0]


def overtook_one_of_the_first(sampler: Sampler, prompts, seed: int) -> bool:
    """Whether a prompt that was added later came back before the last of the first six did."""
    order = [number for number, _, _ in streamed(sampler, prompts, at_first=6, seed=seed)]
    last_of_the_first = max(order.index(number) for number in range(6))
    return any(number >= 6 for number in order[:last_of_the_first])


def test_a_stream_to_which_nothing_is_added_is_a_call(sampler, prompts):
    groups = sample(sampler, prompts)
    found = streamed(sampler, prompts, at_first=len(prompts))
    assert [group for _, _, group in sorted(found, key=lambda one: one[0])] == groups


def test_a_call_drops_what_a_stream_left_in_flight(sampler, prompts):
    groups = sample(sampler, prompts)
    settings = SamplingSettings(num_samples=4, max_tokens=40, logprobs=True, seed=5)
    stream = stream_of(sampler, settings, template=TEMPLATE)
    stream.add(prompts)
    assert stream.wait()
    assert sample(sampler, prompts) == groups


def test_tokens_come_one_by_one_as_a_call_gives_them_and_stop_when_closed(sampler, prompts):
    settings = SamplingSettings(num_samples=1, max_tokens=40, seed=5)
    for prompt in prompts[:4]:
        ((whole,),) = sampler.generate([prompt], settings, template=TEMPLATE)
        tokens = tuple(sampler.tokens(prompt, settings))
        assert tokens == whole.token_ids == tuple(sampler.tokens(prompt, settings))
    greedy = SamplingSettings(num_samples=1, max_tokens=40, temperature=0.0)
    stopped = sampler.tokens(prompts[0], greedy)
    first = next(stopped)
    stopped.close()
    # What was stopped is out of the way of what comes next.
    ((answer,),) = sampler.generate([prompts[0]], greedy, template=TEMPLATE)
    assert answer.token_ids[0] == first
    assert tuple(sampler.tokens(prompts[0], greedy)) == answer.token_ids


def test_the_trainers_random_state_is_left_alone(sampler, prompts):
    torch.manual_seed(11)
    before = torch.get_rng_state()
    streamed(sampler, prompts, at_first=6)
    sample(sampler, prompts)
    sample(sampler, prompts, seed=None)
    assert torch.equal(torch.get_rng_state(), before)


def test_greedy_answers_are_the_most_probable_and_the_same(sampler, base, prompts):
    groups = sample(sampler, prompts, temperature=0.0, num_samples=3)
    assert all(group[0] == group[1] == group[2] for group in groups)
    ids = torch.tensor([prompts[0] + groups[0][0].token_ids])
    with torch.no_grad():
        best = base[0](input_ids=ids).logits[0, len(prompts[0]) - 1 : -1].argmax(-1)
    assert tuple(best.tolist()) == groups[0][0].token_ids
    assert sample(sampler, prompts, temperature=0.0, num_samples=1, seed=9)[0][0] == groups[0][0]


def test_versions_are_those_of_the_last_sync(sampler, base, prompts):
    from r1lab.model.weights import checkpoint_weights

    sampler.sync(checkpoint_weights(base[0]), 7)
    assert sampler.version == 7
    assert sample(sampler, prompts[:1])[0][0].weight_version == 7
