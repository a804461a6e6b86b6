"""Sampling that runs ahead: in which order, under which weights, and never older than allowed."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from typing import Any

import pytest
import tiny
import torch

from r1lab.config.recipe import ProblemSettings, SamplingRecipe, SourceSettings, TrainRecipe
from r1lab.prompts import TEMPLATES, Template
from r1lab.rollout.async_source import AsyncRolloutSource
from r1lab.rollout.source import RolloutSource, SyncAgreement, redistribute_state
from r1lab.types import Completion, Problem, Rollout, RunStopped, SamplingSettings


class Problems:
    def __getitem__(self, index: int) -> Problem:
        return Problem(str(index), f"w{index % 100}", "", "none")


class Policy:
    def __init__(self) -> None:
        self.version = 0

    def checkpoint_weights(self) -> Iterable[tuple[str, torch.Tensor]]:
        yield "w", torch.tensor([float(self.version)])


class Diary:
    """A sampler in process that writes down what it was asked."""

    def __init__(self) -> None:
        self.version, self.max_model_len = 0, 64
        self.said: list[str] = []

    def generate(
        self, prompts: Sequence[tuple[int, ...]], settings: SamplingSettings, *, template: Template
    ) -> list[tuple[Completion, ...]]:
        self.said.append(f"sample {len(prompts)}x{settings.max_tokens} under {self.version}")
        one = Completion((1,), str(settings.seed), "stop", self.version, logprobs=(0.0,))
        return [(one,) * settings.num_samples for _ in prompts]

    def sync(self, weights: Iterable[tuple[str, torch.Tensor]], version: int) -> None:
        assert [float(t) for _, t in weights] == [version]
        self.version = version
        self.said.append(f"sync {version}")

    def close(self) -> None: ...


class Elsewhere(Diary):
    """The same as a server has it: it works beside, and may be held up while `gate` is closed."""

    sends_beside = True

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.published = threading.Event(), -1
        self.gate.set()

    def generate(self, *arguments: Any, **options: Any) -> list[tuple[Completion, ...]]:
        assert self.gate.wait(60)
        return super().generate(*arguments, **options)

    def publish(self, weights: Iterable[tuple[str, torch.Tensor]], version: int) -> None:
        assert [float(t) for _, t in weights] == [version]
        self.published = version

    def take_over(self, version: int) -> None:
        assert version <= self.published
        self.version = version
        self.said.append(f"sync {version}")


def stream_of(sampler: Diary, lag: int, **options: Any) -> AsyncRolloutSource:
    settings = SamplingRecipe(questions_per_step=2, group_size=2, max_tokens=48, max_lag=lag)
    template = TEMPLATES["compact"]
    return AsyncRolloutSource(Problems(), sampler, tiny.tokenizer(), template, settings, **options)


def agrees(rollouts: list[Rollout]) -> tuple[float, int]:
    return 1e-5, sum(len(c.token_ids) for r in rollouts for c in r.completions)


def run(stream: RolloutSource, policy: Policy, steps: int) -> list[tuple[list[str], int, str]]:
    """(questions, version of the weights, seed) of each step."""
    taken = []
    for _ in range(steps):
        rollouts = stream.next(policy.version)
        stream.check_agreement(None, 0, agrees)
        (version,) = {c.weight_version for r in rollouts for c in r.completions}
        (seed,) = {c.text for r in rollouts for c in r.completions}
        taken.append(([r.problem.id for r in rollouts], version, seed))
        policy.version += 1
        stream.sync(policy)
    return taken


def begun(sampler: Diary, lag: int, **options: Any) -> tuple[AsyncRolloutSource, Policy]:
    stream, policy = stream_of(sampler, lag, **options), Policy()
    stream.start(policy)
    return stream, policy


@pytest.mark.parametrize("kind", [Diary, Elsewhere])
@pytest.mark.parametrize("lag", [1, 2, 3])
def test_a_step_has_the_samples_of_the_weights_that_many_steps_before(kind, lag):
    sampler = kind()
    stream, policy = begun(sampler, lag, seed=5)
    taken = run(stream, policy, 7)
    assert [version for _, version, _ in taken] == [max(0, step - lag) for step in range(7)]
    # The questions and seeds are those of a run without a lag.
    plain = RolloutSource(
        Problems(), Diary(), tiny.tokenizer(), TEMPLATES["compact"],
        SamplingRecipe(questions_per_step=2, group_size=2, max_tokens=48), seed=5,
    )  # fmt: skip
    assert [(q, s) for q, _, s in taken] == [(q, s) for q, _, s in run(plain, Policy(), 7)]
    stream.close()


def test_servers_and_samplers_in_process_are_asked_the_same_in_the_same_order():
    diaries = []
    for sampler in (Diary(), Elsewhere()):
        stream, policy = begun(sampler, 2)
        run(stream, policy, 5)
        stream.settle()
        diaries.append(sampler.said)
        stream.close()
    assert diaries[0] == diaries[1]
    batch, probe = "sample 2x48 under", "sample 2x48 under"  # two questions are all there are
    assert diaries[0][:5] == ["sync 0", f"{probe} 0", *[f"{batch} 0"] * 3]
    assert diaries[0][5:8] == ["sync 1", f"{batch} 1", "sync 2"]


def test_training_goes_on_while_a_server_samples():
    sampler = Elsewhere()
    stream, policy = begun(sampler, 2)
    stream.next(0)
    stream.settle()
    sampler.gate.clear()  # from here on nothing new is sampled
    policy.version = 1
    stream.sync(policy)
    stream.next(1)  # what was asked at step 0
    policy.version = 2
    stream.sync(policy)
    assert sampler.published == 2 and "sync 2" not in sampler.said
    sampler.gate.set()
    stream.settle()
    assert sampler.version == 2
    stream.close()


def test_a_sample_that_is_too_old_stops_the_run():
    sampler = Diary()
    stream, policy = begun(sampler, 1)
    run(stream, policy, 3)
    state = stream.state_dict()
    (batch,) = state["ahead"]
    for group in batch:
        for completion in group["completions"]:
            completion["weight_version"] = 0
    restored, policy = stream_of(sampler, 1), Policy()
    restored.load_state_dict(state)
    with pytest.raises(RunStopped, match=r"sampling\.max_lag: step 3 .* version 0"):
        restored.next(3)


def test_weights_that_were_not_sent_stop_the_run():
    stream, _ = begun(Diary(), 1)
    stream.next(0)
    with pytest.raises(RunStopped, match="holds weight version 0 and the trainer is at 1"):
        stream.next(1)


def test_a_failure_beside_is_raised_where_its_samples_are_wanted():
    class Failing(Elsewhere):
        def take_over(self, version: int) -> None:
            if version == 1:
                raise RunStopped("no such weights")
            super().take_over(version)

    stream, policy = begun(Failing(), 1)
    with pytest.raises(RunStopped, match="no such weights"):
        run(stream, policy, 3)
    stream.close()


@pytest.mark.parametrize("lag", [1, 3])
def test_a_restored_stream_goes_on_with_the_very_samples(lag):
    stream, policy = begun(Diary(), lag, seed=5)
    run(stream, policy, 4)
    state = stream.state_dict()
    expected = run(stream, policy, 4)
    sampler, policy = Diary(), Policy()
    restored, policy.version = stream_of(sampler, lag, seed=5), 4
    restored.load_state_dict(state)
    restored.start(policy)
    assert run(restored, policy, 4) == expected


def test_what_a_server_still_works_on_is_asked_again():
    sampler = Elsewhere()
    stream, policy = begun(sampler, 2, seed=5)
    run(stream, policy, 2)
    stream.settle()
    sampler.gate.clear()
    stream.next(2)
    policy.version = 3
    stream.sync(policy)
    state = stream.state_dict()  # of two batches ahead, one is ready
    sampler.gate.set()
    stream.close()
    assert len(state["ahead"]) == 1
    restored, policy = stream_of(Diary(), 2, seed=5), Policy()
    policy.version = 3
    restored.load_state_dict(state)
    restored.start(policy)
    taken = run(restored, policy, 3)
    plain, policy = begun(Diary(), 2, seed=5)
    assert [(q, s) for q, _, s in taken] == [(q, s) for q, _, s in run(plain, policy, 6)[3:]]
    assert [version for _, version, _ in taken] == [1, 3, 3]  # the second is newer than it would be


def test_other_numbers_of_processes_ask_anew():
    stream, policy = begun(Diary(), 1)
    run(stream, policy, 2)
    assert redistribute_state([stream.state_dict()], 0, 2)["ahead"] == []


def test_the_probe_is_what_is_held_against_the_bound():
    stream, policy = begun(Diary(), 2, max_sync_kl=1e-3)
    seen = []

    def measure(rollouts: list[Rollout]) -> tuple[float, int]:
        seen.append({c.weight_version for r in rollouts for c in r.completions})
        return 5e-4, 100

    for step in range(4):
        stream.next(step)
        # What the step's own tokens say is left aside: the policy has moved since.
        agreement = stream.check_agreement(9.0, 1000, measure)
        assert agreement == (SyncAgreement(5e-4, 100) if step % 2 == 0 else SyncAgreement(None, 0))
        policy.version += 1
        stream.sync(policy)
    assert seen == [{0}, {2}]
    stream.next(4)
    with pytest.raises(RunStopped, match=r"KL 0\.5 "):
        stream.check_agreement(None, 0, lambda rollouts: (0.5, 100))


def test_a_recipe_with_a_lag_needs_a_correction():
    def recipe(**algorithm: Any) -> TrainRecipe:
        return TrainRecipe.model_validate(
            {
                "name": "x", "sampling": {"max_lag": 1}, "algorithm": algorithm,
                "problems": ProblemSettings(sources=(SourceSettings(source="boxes"),)),
            }
        )  # fmt: skip

    assert recipe(correction="token_truncate").sampling.max_lag == 1
    with pytest.raises(
        ValueError, match=r"max_lag: 1 trains on samples from earlier .* token_trunc"
    ):
        recipe()
    with pytest.raises(ValueError, match=r"max_lag: 1 is not supported with .*dynamic_sampling"):
        recipe(correction="token_truncate", dynamic_sampling=True)
