"""The stream of rollouts: draws problems, requests groups, sends weights to the sampler.

The rollouts of a step depend only on (seed, position, rank), the weights and, if there is one, the
counts of the curriculum. A run that resumes from a saved position therefore continues with the same
rollouts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from r1lab.config.recipe import SamplingRecipe
from r1lab.problems.curriculum import Curriculum
from r1lab.prompts import Template
from r1lab.rollout.agreement import SyncGuard
from r1lab.rollout.limits import check_fit
from r1lab.rollout.sampler import GroupStream, Sampler, WeightSource, seed_of, stream_of
from r1lab.rollout.serialization import as_plain, from_plain
from r1lab.types import (
    Completion,
    Problem,
    Prompts,
    RecipeError,
    Rollout,
    RunStopped,
    SamplingSettings,
    ScoredGroup,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


Drawn = tuple[list[Problem], list[tuple[int, ...]]]  # problems and their prompts
Measure = Callable[[list[Rollout]], tuple[float | None, int]]


@dataclass(frozen=True, slots=True)
class SyncAgreement:
    """A step's k3 estimate of KL(sampler, trainer), None without tokens, and its tokens.

    `rechecked` is a second estimate, from fresh samples, made if the first exceeded the bound.
    """

    kl: float | None
    num_tokens: int
    rechecked: float | None = None


class Problems(Protocol):
    """Endless problems by index, as created by `r1lab.problems.mixture`."""

    def __getitem__(self, index: int) -> Problem: ...


class RolloutSource:
    """Groups of completions, for `settings.questions_per_step` problems a step over all processes.

    The process of this `rank` draws every `world_size`-th problem of a step: shares are disjoint
    and, together, independent of the number of processes. `guard` bounds the mismatch of sampler
    and trainer; without one `max_sync_kl` does, or the measured baseline if that is None: see
    `SyncGuard`. `routed_experts` requests from the sampler the experts that it selected.
    """

    def __init__(
        self,
        problems: Problems,
        sampler: Sampler,
        tokenizer: PreTrainedTokenizerBase,
        template: Template,
        settings: SamplingRecipe,
        *,
        rank: int = 0,
        world_size: int = 1,
        seed: int = 0,
        max_sync_kl: float | None = None,
        guard: SyncGuard | None = None,
        routed_experts: bool = False,
    ) -> None:
        if settings.questions_per_step % world_size:
            raise RecipeError(
                f"sampling.questions_per_step: {settings.questions_per_step} cannot be shared "
                f"evenly by {world_size} processes; take a multiple of {world_size}"
            )
        self.sampler = sampler
        self.guard = guard or SyncGuard(max_sync_kl)
        self.problems, self._tokenizer, self._template = problems, tokenizer, template
        self._settings = settings
        self._routed_experts = routed_experts
        self._rank, self._world_size, self._seed = rank, world_size, seed
        # Problems drawn so far by all processes together, if each drew the same number.
        self._position = 0
        self.waiting: tuple[ScoredGroup, ...] = ()  # groups carried over from the last step
        # The first prompts of a step: a failed agreement check is repeated on them.
        self._problems_of_step: list[Problem] = []
        self._prompts: list[tuple[int, ...]] = []

    def start(self, policy: WeightSource) -> None:
        """Send the policy's weights to the sampler, whatever it was built with."""
        self.sync(policy)

    @property
    def curriculum(self) -> Curriculum | None:
        """The problems, if the shares of their levels depend on results; otherwise None."""
        return self.problems if isinstance(self.problems, Curriculum) else None

    @property
    def share(self) -> int:
        """Number of groups that this process contributes to a step."""
        return self._settings.questions_per_step // self._world_size

    def next(self, version: int) -> list[Rollout]:
        """Return the groups of this process's share of the next problems, sampled at `version`."""
        self._check_version(version)
        self._problems_of_step, self._prompts = problems, prompts = self._draw(self.share)
        self._check_fit(problems, prompts)
        groups = self._sample(prompts, seed_of(self._seed, self._position, self._rank))
        self._position += self.share * self._world_size
        return as_rollouts(problems, prompts, groups)

    def stream(self, version: int) -> RolloutStream:
        """Open a stream of the next problems' groups, returned one by one as they finish.

        Its seed is that of this position. `next`, and any other call that samples, ends it.
        """
        self._check_version(version)
        self._problems_of_step, self._prompts = [], []
        settings = self._sampling(seed_of(self._seed, self._position, self._rank))
        groups = stream_of(self.sampler, settings, template=self._template)
        return RolloutStream(self._ask, groups)

    def _ask(self, count: int) -> Drawn:
        """Draw and check the next `count` problems, advancing the stream."""
        problems, prompts = self._draw(count)
        self._check_fit(problems, prompts)
        self._position += count * self._world_size
        if not self._prompts:  # keep the first prompts of a step
            self._problems_of_step, self._prompts = problems, prompts
        return problems, prompts

    def _check_version(self, version: int) -> None:
        if self.sampler.version != version:
            raise RunStopped(
                f"the sampler holds weight version {self.sampler.version} and the trainer is at "
                f"{version}: weights were not synced"
            )

    def probe(self) -> list[Rollout]:
        """Return groups of the next problems without advancing the stream, for measurements."""
        problems, prompts = self._draw(self.share)
        groups = self._sample(prompts, seed_of(self._seed, self._position, self._rank, 2))
        return as_rollouts(problems, prompts, groups)

    def check_fit(self, problems: Sequence[Problem]) -> None:
        """Reject prompts that leave no room for a response; raises RecipeError."""
        prompts = [self.encode(self._template.prompt(problem.question)) for problem in problems]
        self._check_fit(problems, prompts)

    def sync(self, policy: WeightSource) -> None:
        """Send the policy's weights to the sampler; complete when it returns."""
        self.sampler.sync(policy.checkpoint_weights(), policy.version)

    def settle(self) -> None:
        """Wait until the sampler holds the weights of the last sync and is idle."""

    def check_agreement(self, kl: float | None, num_tokens: int, measure: Measure) -> SyncAgreement:
        """Compare the k3 estimate over this step's own tokens with the bound; may stop the run.

        Rounding that sends a token to another expert changes the rest of its response too, and late
        in a run the step's own tokens are those of its hardest problems, so chance is larger than
        `SyncGuard.bound` assumes. An estimate above the bound is therefore measured again, on fresh
        samples of all the step's problems: `measure` returns (KL, tokens) of rollouts over all
        processes. Stale weights exceed the bound again; a chance excess does not.
        """
        if self.guard.holds(kl, num_tokens):
            return SyncAgreement(kl, num_tokens)
        groups = self._sample(self._prompts, seed_of(self._seed, self._position, self._rank, 1))
        rollouts = as_rollouts(self._problems_of_step, self._prompts, groups)
        again, num_again = measure(rollouts)
        self.guard.check(again, num_again, self.sampler.version)
        return SyncAgreement(kl, num_tokens, again)

    def encode(self, text: str) -> tuple[int, ...]:
        """Return the token ids of a prompt, in training and evaluation."""
        return encode_prompt(self._tokenizer, text)

    def state_dict(self) -> dict[str, Any]:
        """Return the position, groups carried over, the measured baseline and curriculum counts."""
        return {
            "position": self._position,
            "waiting": [as_plain(group) for group in self.waiting],
            "guard": self.guard.state_dict(),
            "curriculum": self.curriculum.state_dict() if self.curriculum else None,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue at the position of a saved stream."""
        self._position = state["position"]
        self.waiting = tuple(from_plain(group) for group in state["waiting"])
        self.guard.load_state_dict(state["guard"])
        if self.curriculum is not None and state.get("curriculum"):
            self.curriculum.load_state_dict(state["curriculum"])

    def close(self) -> None:
        """Close the sampler."""
        self.sampler.close()

    def _draw(self, count: int) -> Drawn:
        """Return the next `count` problems of this process, and their prompts."""
        drawn = range(self._position, self._position + count * self._world_size)
        problems = [self.problems[index] for index in drawn[self._rank :: self._world_size]]
        return problems, [self.encode(self._template.prompt(p.question)) for p in problems]

    def _sample(
        self, prompts: Prompts, seed: int, at_most: int | None = None
    ) -> list[tuple[Completion, ...]]:
        settings = self._sampling(seed, at_most)
        return self.sampler.generate(prompts, settings, template=self._template)

    def _sampling(self, seed: int, at_most: int | None = None) -> SamplingSettings:
        max_tokens = self._settings.max_tokens_after(self.sampler.version)
        return SamplingSettings(
            num_samples=self._settings.group_size,
            temperature=self._settings.temperature,
            top_p=self._settings.top_p,
            max_tokens=min(max_tokens, at_most or max_tokens),
            logprobs=True,
            routed_experts=self._routed_experts,
            seed=seed,
        )

    def _check_fit(self, problems: Sequence[Problem], prompts: Sequence[tuple[int, ...]]) -> None:
        max_tokens, limit = self._settings.most_tokens, self.sampler.max_model_len
        check_fit(problems, prompts, max_tokens=max_tokens, limit=limit)


class RolloutStream:
    """Groups of a stream's next problems, returned as they finish."""

    def __init__(self, draw: Callable[[int], Drawn], groups: GroupStream) -> None:
        """`draw(n)` returns the next n problems and their prompts; `groups` samples them."""
        self._draw, self._groups = draw, groups
        self._asked: list[tuple[Problem, tuple[int, ...]]] = []

    def ask(self, count: int) -> None:
        """Request the next `count` problems; they are numbered from 0 in that order."""
        problems, prompts = self._draw(count)
        self._asked += zip(problems, prompts, strict=True)
        self._groups.add(prompts)

    def finished(self) -> dict[int, Rollout]:
        """Wait for at least one group; return the finished ones by number.

        Empty if nothing is in flight.
        """
        return {
            number: Rollout(*self._asked[number], group) for number, group in self._groups.wait()
        }


def redistribute_state(
    states: Sequence[dict[str, Any]], rank: int, world_size: int
) -> dict[str, Any]:
    """Return the stream's state for one of `world_size` processes, from the saved `states`.

    With the same number of processes each gets its own state. With another, the stream continues
    after the furthest of them (after dynamic sampling their positions differ), so that no problem
    repeats, and the groups carried over are distributed in turn.
    """
    if len(states) == world_size:
        return states[rank]
    furthest = max(state["position"] for state in states)
    waiting = [group for state in states for group in state["waiting"]]
    return {
        **states[0],
        "position": -(-furthest // world_size) * world_size,  # rounded up to a multiple
        "ahead": [],  # those batches were divided among another number of processes
        "waiting": waiting[rank::world_size],
    }


def as_rollouts(
    problems: Sequence[Problem], prompts: Prompts, groups: Sequence[tuple[Completion, ...]]
) -> list[Rollout]:
    """Combine the problems with their prompts and their groups."""
    return [
        Rollout(problem, prompt, group)
        for problem, prompt, group in zip(problems, prompts, groups, strict=True)
    ]


def encode_prompt(tokenizer: PreTrainedTokenizerBase, text: str) -> tuple[int, ...]:
    """Return a prompt's token ids, with leading special tokens but no trailing ones."""
    ids = tokenizer(text)["input_ids"]
    if ids and ids[-1] == tokenizer.eos_token_id:
        ids = ids[:-1]
    return tuple(ids)
