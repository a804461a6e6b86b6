"""The stream of rollouts: which questions, which seeds, and what it refuses."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import pytest
import tiny
import torch

from r1lab.config.recipe import CapRaise, SamplingRecipe
from r1lab.prompts import TEMPLATES, Template
from r1lab.rollout.build import build_sampler, check_engine
from r1lab.rollout.restart import RestartingSampler
from r1lab.rollout.sampler import BatchStream, stream_of
from r1lab.rollout.source import RolloutSource, SyncAgreement, encode_prompt
from r1lab.types import Completion, Problem, RecipeError, RunStopped, SamplingSettings


class Problems:
    """Problem i asks for w<i>."""

    def __getitem__(self, index: int) -> Problem:
        return Problem(str(index), f"w{index % 100}", "", "none")


class CountingSampler:
    """A sampler that answers with its seed: what the source asks for can be read off."""

    def __init__(self, max_model_len: int = 64) -> None:
        self.version, self.max_model_len = 0, max_model_len
        self.weights: dict[str, torch.Tensor] = {}

    def generate(
        self, prompts: Sequence[tuple[int, ...]], settings: SamplingSettings, *, template: Template
    ) -> list[tuple[Completion, ...]]:
        assert settings.logprobs and settings.seed is not None
        one = Completion((1,), str(settings.seed), "stop", self.version, logprobs=(0.0,))
        return [(one,) * settings.num_samples for _ in prompts]

    def sync(self, weights: Iterable[tuple[str, torch.Tensor]], version: int) -> None:
        self.weights, self.version = dict(weights), version

    def close(self) -> None:
        self.weights = {}


class Policy:
    version = 3

    def checkpoint_weights(self) -> Iterable[tuple[str, torch.Tensor]]:
        yield "w", torch.ones(1)


class OneByOne(CountingSampler):
    """A sampler with a stream: the prompt added last finishes first, alone.

    `dies_at` is the call of `wait` at which its engine dies.
    """

    def __init__(self, dies_at: int = -1) -> None:
        super().__init__()
        self.dies_at, self.waited = dies_at, 0
        self.added: list[int] = []  # so many prompts at each call

    def stream(self, settings: SamplingSettings, *, template: Template) -> OneByOneStream:
        return OneByOneStream(self, settings, template)


class OneByOneStream:
    def __init__(self, sampler, settings, template) -> None:
        self.sampler, self.settings, self.template = sampler, settings, template
        self.in_flight: list[int] = []
        self.num_added = 0

    def add(self, prompts) -> None:
        self.sampler.added.append(len(prompts))
        self.in_flight += range(self.num_added, self.num_added + len(prompts))
        self.num_added += len(prompts)

    def wait(self):
        self.sampler.waited += 1
        if self.sampler.waited == self.sampler.dies_at:
            raise OSError("the engine is gone")
        if not self.in_flight:
            return []
        number = self.in_flight.pop()
        one = Completion((1,), f"{self.settings.seed} {number}", "stop", self.sampler.version)
        return [(number, (one,) * self.settings.num_samples)]


class Unchanged:
    """The weights that a run starts with."""

    version = 0

    def checkpoint_weights(self) -> Iterable[tuple[str, torch.Tensor]]:
        yield "w", torch.ones(1)


def source(
    sampler: CountingSampler | None = None,
    questions: int = 6,
    cap_raise: CapRaise | None = None,
    **options,
) -> RolloutSource:
    settings = SamplingRecipe(
        questions_per_step=questions, group_size=2, max_tokens=32, cap_raise=cap_raise
    )
    return RolloutSource(
        Problems(),
        sampler or CountingSampler(),
        tiny.tokenizer(),
        TEMPLATES["compact"],
        settings,
        **options,
    )


def asked(rollouts) -> list[str]:
    return [rollout.problem.id for rollout in rollouts]


def unasked(rollouts):
    raise AssertionError("an estimate within the bound was taken again")


def seeds(rollouts) -> set[str]:
    return {completion.text for rollout in rollouts for completion in rollout.completions}


def test_steps_follow_each_other_and_groups_are_whole():
    stream = source()
    first, second = stream.next(0), stream.next(0)
    assert asked(first) == list("012345") and asked(second) == ["6", "7", "8", "9", "10", "11"]
    assert all(len(rollout.completions) == 2 for rollout in first)
    assert first[0].prompt_token_ids == encode_prompt(
        tiny.tokenizer(), "User: w0 Assistant: <think>"
    )
    assert len(seeds(first)) == 1 and seeds(first) != seeds(second)


def test_the_cap_is_raised_with_the_weights_that_follow_on_its_step():
    asked_for = []

    class Listening(CountingSampler):
        def generate(self, prompts, settings, *, template):
            asked_for.append(settings.max_tokens)
            return super().generate(prompts, settings, template=template)

    stream = source(Listening(), cap_raise=CapRaise(after_step=3, max_tokens=60))
    for version in (0, 2, 3, 4):
        stream.sampler.version = version
        stream.next(version)
    assert asked_for == [32, 32, 60, 60]


def test_processes_share_the_questions_of_a_step():
    shares = [source(rank=rank, world_size=3) for rank in range(3)]
    drawn = [asked(share.next(0)) for share in shares]
    assert sorted(id for share in drawn for id in share) == list("012345")
    assert [len(share) for share in drawn] == [2, 2, 2]
    assert len(set.union(*(seeds(share.next(0)) for share in shares))) == 3
    with pytest.raises(RecipeError, match=r"sampling\.questions_per_step: 6 .* multiple of 4"):
        source(world_size=4)


def test_a_restored_stream_goes_on_where_it_stood():
    stream = source(seed=5)
    stream.next(0)
    stream.check_agreement(1e-5, 1000, unasked)
    state = stream.state_dict()
    expected = stream.next(0)
    restored = source(seed=5)
    restored.load_state_dict(state)
    assert restored.next(0) == expected
    assert restored.guard.floor == 1e-5
    assert seeds(source(seed=6).next(0)) != seeds(source(seed=5).next(0))


def test_a_stream_takes_questions_while_others_are_in_flight():
    stream = source(OneByOne(), seed=4)
    rollouts = stream.stream(0)
    rollouts.ask(3)
    (number, first), *_ = rollouts.finished().items()
    assert (number, first.problem.id) == (2, "2")
    rollouts.ask(2)  # beside questions 0 and 1
    order = [number for _ in range(4) for number in rollouts.finished()]
    assert order == [4, 3, 1, 0] and rollouts.finished() == {}
    assert stream.sampler.added == [3, 2]
    # The questions go on after those, under another seed; a restored stream does the same.
    restored = source(OneByOne(), seed=4)
    restored.load_state_dict(stream.state_dict())
    texts = []
    for one in (stream, restored):
        following = one.stream(0)
        following.ask(1)
        (rollout,) = following.finished().values()
        assert rollout.problem.id == "5"
        texts += [rollout.completions[0].text]
    assert texts[0] == texts[1] and texts[0].split()[0] != first.completions[0].text.split()[0]


def test_a_step_that_streams_is_measured_again_on_the_questions_it_began_with():
    sampler = OneByOne()
    stream = source(sampler, max_sync_kl=1e-3)
    rollouts = stream.stream(0)
    rollouts.ask(2)
    rollouts.ask(3)

    def again(rollouts):
        assert asked(rollouts) == ["0", "1"]
        return 1e-4, 1000

    assert stream.check_agreement(2e-3, 1000, again).rechecked == 1e-4
    with pytest.raises(RunStopped, match="holds weight version 0 and the trainer is at 1"):
        stream.stream(1)


def test_processes_stream_disjoint_shares():
    shares = [source(rank=rank, world_size=2) for rank in range(2)]
    drawn = []
    for share, more in zip(shares, (1, 3), strict=True):
        rollouts = share.stream(0)
        rollouts.ask(3)
        found = rollouts.finished()
        rollouts.ask(more)
        drawn.append(asked([*found.values(), *rollouts.finished().values()]))
    assert drawn == [["0", "2", "4", "6"], ["1", "3", "5", "7", "9", "11"]]


def test_a_sampler_without_a_stream_is_asked_in_batches():
    settings = SamplingSettings(num_samples=2, logprobs=True, seed=7)
    template = TEMPLATES["compact"]
    sampler = CountingSampler()
    stream = stream_of(sampler, settings, template=template)
    assert isinstance(stream, BatchStream) and stream.wait() == []
    stream.add([(1,), (2,)])
    stream.add([(3,)])
    together = stream.wait()
    expected = sampler.generate([(1,), (2,), (3,)], settings, template=template)
    assert together == list(enumerate(expected))
    stream.add([(4,)])
    ((number, group),) = stream.wait()
    assert number == 3 and group[0].text != expected[0][0].text  # another seed


@pytest.mark.parametrize("dies_at", [1, 2, 4])
def test_a_stream_whose_engine_died_gives_what_it_would_have_given(dies_at):
    def run(sampler):
        stream = source(sampler, seed=3).stream(0)
        stream.ask(2)
        found = [stream.finished()]
        stream.ask(2)
        return [*found, *(stream.finished() for _ in range(4))]

    causes = []
    built = [OneByOne(dies_at), OneByOne()]
    left = list(built)
    restarting = RestartingSampler(
        lambda: left.pop(0), Unchanged(), on_restart=lambda cause: causes.append(cause)
    )
    assert run(restarting) == run(OneByOne()) and left == []
    assert causes == ["OSError: the engine is gone"]
    assert built[1].added == [2, 2]  # each prompt once, where it came before


def test_weights_travel_with_their_version_and_a_missed_sync_stops_the_run():
    stream = source()
    stream.sync(Policy())
    assert stream.sampler.version == 3 and "w" in stream.sampler.weights
    assert stream.next(3)[0].completions[0].weight_version == 3
    with pytest.raises(RunStopped, match="holds weight version 3 and the trainer is at 4"):
        stream.next(4)


def test_disagreement_stops_the_run_when_fresh_samples_confirm_it():
    stream = source(max_sync_kl=1e-3)
    drawn = stream.next(0)
    assert stream.check_agreement(5e-4, 1000, unasked) == SyncAgreement(5e-4, 1000)
    measured = []

    def measure(kl):
        def again(rollouts):
            measured.append(rollouts)
            return kl, 1000

        return again

    # Bad luck: the run goes on.
    taken = stream.check_agreement(2e-3, 1000, measure(3e-4))
    assert taken == SyncAgreement(2e-3, 1000, rechecked=3e-4)
    with pytest.raises(RunStopped, match=r"KL 0\.004 .*algorithm\.max_sync_kl"):
        stream.check_agreement(2e-3, 1000, measure(4e-3))
    for rollouts in measured:
        assert asked(rollouts) == asked(drawn) and seeds(rollouts) != seeds(drawn)
    # What comes next is what would have come without the second look.
    plain = source(max_sync_kl=1e-3)
    plain.next(0)
    assert stream.next(0) == plain.next(0)


def test_a_prompt_that_does_not_fit_is_named():
    with pytest.raises(
        RecipeError,
        match=r"sampling\.max_model_len: 35 .* problem 0: its prompt has 4 tokens",
    ):
        source(CountingSampler(max_model_len=35)).next(0)
    source(CountingSampler(max_model_len=36)).next(0)


def test_a_prompt_never_ends_in_the_end_of_sequence():
    from tokenizers.processors import TemplateProcessing

    tokenizer = tiny.tokenizer()
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<pad> $A <eos>", special_tokens=[("<pad>", 0), ("<eos>", 1)]
    )
    assert encode_prompt(tokenizer, "w0 w1") == (0, 8, 9)


def test_engines_are_checked_by_name():
    with pytest.raises(RecipeError, match=r"sampling\.engine: 'vlm' .*did you mean 'vllm'"):
        check_engine("vlm")


def test_a_missing_vllm_is_never_replaced(monkeypatch):
    monkeypatch.setattr("r1lab.rollout.build.find_spec", lambda name: None)
    with pytest.raises(
        RecipeError, match=r"sampling\.engine: 'vllm' is not installed; pip install"
    ):
        build_sampler("vllm", "nowhere", tiny.tokenizer())
    check_engine("transformers")
