"""The k3 estimate against exact KL, and what the guard stops and lets pass."""

from __future__ import annotations

import math

import pytest
import torch

from r1lab.rollout.agreement import (
    HIGHEST_FLOOR,
    TOKEN_CAP,
    SyncGuard,
    advice,
    highest_floor,
    k3_kl,
    k3_sum,
)
from r1lab.types import RunStopped


def test_k3_of_worked_values():
    # r = 1, 2 and 1/2: r - 1 - log r = 0, 1 - log 2 and log 2 - 1/2.
    gap = torch.tensor([0.0, math.log(2), -math.log(2)])
    total, num_tokens = k3_sum(torch.zeros(3), gap, cap=math.inf).tolist()
    assert total == pytest.approx((1 - math.log(2)) + (math.log(2) - 0.5), rel=1e-6)
    assert num_tokens == 3


def test_k3_estimates_the_kl_of_sampler_to_trainer():
    generator = torch.Generator().manual_seed(0)
    sampler = torch.randn(50, generator=generator).log_softmax(-1)
    trainer = (sampler + 0.1 * torch.randn(50, generator=generator)).log_softmax(-1)
    exact = float((sampler.exp() * (sampler - trainer)).sum())
    tokens = torch.multinomial(sampler.exp(), 200_000, replacement=True, generator=generator)
    assert k3_kl(sampler[tokens], trainer[tokens]) == pytest.approx(exact, rel=0.03)


def test_sums_add_up_over_parts():
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 100, generator=generator) * 0.1
    parts = k3_sum(a[:30], b[:30]) + k3_sum(a[30:], b[30:])
    assert torch.allclose(parts, k3_sum(a, b))
    assert k3_kl(a[:0], b[:0]) == 0.0


@pytest.mark.parametrize("gap", [5.0, -50.0, 1e4, math.nan, math.inf, -math.inf])
def test_one_token_counts_for_the_cap_at_most(gap: float):
    trainer = torch.zeros(100)
    trainer[7] = gap
    assert k3_kl(torch.zeros(100), trainer) == pytest.approx(TOKEN_CAP / 100)


def measured(floor: float, num_tokens: int = 10_000) -> SyncGuard:
    guard = SyncGuard()
    guard.check(floor, num_tokens, version=0)
    return guard


def test_the_bound_is_five_floors_where_tokens_are_many():
    guard = measured(6e-5, 100_000)
    assert guard.bound(100_000) == pytest.approx(3e-4)
    guard.check(2.9e-4, 100_000, version=1)
    with pytest.raises(RunStopped, match=r"version 2.*0\.00031.*0\.0003 .*baseline of 6e-05"):
        guard.check(3.1e-4, 100_000, version=2)


def test_few_tokens_widen_the_bound_and_a_float32_floor_does_not_close_it():
    guard = measured(6e-5)
    assert guard.bound(100) > guard.bound(1_000) > guard.bound(10_000) >= 3e-4
    # One token that rounding sent to another expert, in a run without any rounding at its start.
    measured(1e-13).check(TOKEN_CAP / 2_000, 2_000, version=1)


def test_chance_does_not_stop_a_healthy_run():
    """Shares as on the shipped base: mostly rounding, now and then a flipped expert."""
    generator = torch.Generator().manual_seed(0)

    def estimate(num_tokens: int) -> float:
        gap = 0.008 * torch.randn(num_tokens, generator=generator)
        flipped = torch.rand(num_tokens, generator=generator) < 1e-3
        gap[flipped] = torch.randn(int(flipped.sum()), generator=generator)
        return k3_kl(torch.zeros(num_tokens), gap)

    for num_tokens in (50, 1_000, 10_000):
        for _ in range(20):
            guard = measured(estimate(num_tokens), num_tokens)
            for version in range(1, 50):
                guard.check(estimate(num_tokens), num_tokens, version)


def test_a_wrong_start_is_no_floor():
    with pytest.raises(RunStopped, match="highest plausible floor"):
        SyncGuard().check(2 * HIGHEST_FLOOR, 10_000, version=0)


def test_what_rounding_explains_depends_on_precision_and_device():
    found = [highest_floor(*of) for of in (("float32", "cpu"), ("float32", "cuda"))]
    assert found == [1e-6, 1e-3]
    assert highest_floor("bfloat16", "cpu") == highest_floor("float16", "cuda") == HIGHEST_FLOOR


@pytest.mark.parametrize("num_tokens", [10, 1_000, 100_000])
def test_without_chance_the_first_bound_is_the_highest_floor_however_few_tokens(num_tokens: int):
    guard = SyncGuard(highest_floor=1e-6, allow_chance=False)
    with pytest.raises(RunStopped):
        guard.check(1.1e-6, num_tokens, version=0)
    guard.check(1e-13, num_tokens, version=0)
    guard.check(9e-7, num_tokens, version=1)
    with pytest.raises(RunStopped):
        guard.check(1.1e-6, num_tokens, version=1)


@pytest.mark.parametrize("engine", ["vllm", "transformers", "server"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_advice_is_nothing_that_is_set_already(engine: str, dtype: str):
    guard = SyncGuard(highest_floor=1e-6, advice=advice(engine, dtype))
    with pytest.raises(RunStopped) as stopped:
        guard.check(1.0, 1000, version=0)
    assert ("sampling.engine: transformers" in str(stopped.value)) == (engine != "transformers")
    assert ("model.dtype: float32" in str(stopped.value)) == (dtype != "float32")
    assert guard.advice in str(stopped.value) and guard.advice


def test_nan_stops_and_nothing_measured_passes():
    guard = SyncGuard()
    guard.check(None, 0, version=0)
    assert guard.floor is None
    with pytest.raises(RunStopped):
        guard.check(math.nan, 10_000, version=0)


def test_a_bound_from_the_recipe_is_the_only_one():
    guard = SyncGuard(max_kl=1e-3)
    guard.check(9e-4, 10, version=0)
    with pytest.raises(RunStopped, match=r"algorithm\.max_sync_kl"):
        guard.check(1.1e-3, 10, version=1)


def test_the_floor_survives_a_resume():
    guard = SyncGuard()
    guard.load_state_dict(measured(6e-5).state_dict())
    assert guard.bound(10_000) == measured(6e-5).bound(10_000)
