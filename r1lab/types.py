"""The records handed from room to room: frozen, typed, never half filled.

The legend for shapes, used everywhere in the project:
    P problems (questions) of a step        G completions of one problem, its group
    B sequences (usually P * G)             T tokens of a padded sequence
    N tokens of a packed, unpadded batch    V entries of the vocabulary

Nothing here imports torch, so that verifiers and recipes load in milliseconds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import torch

FinishReason = Literal["stop", "length", "abort"]


class R1labError(Exception):
    """An error that the user can fix: shown as one line, without a traceback.

    `exit_code` is 2 for bad input (the default) and other values for a run that had to stop.
    """

    exit_code = 2


class RecipeError(R1labError, ValueError):
    """A recipe that cannot be run: the message names the key, the value and what is allowed."""


class ScoreError(ValueError):
    """A score that is not a finite number: a mistake in the reward's code, not in a response."""


class RunStopped(R1labError):
    """A run stopped itself because continuing is pointless (weights out of step, no reward)."""

    exit_code = 4


class InfrastructureError(R1labError):
    """The run's infrastructure failed: the sampler's engine, memory, the disk."""

    exit_code = 5


class Interrupted(BaseException):
    """A signal asked the run to stop. Like KeyboardInterrupt, no `except Exception` may eat it."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One question with a checkable answer.

    `verifier` names the reward that judges the answer (`boxes` for `r1lab.rewards.boxes:reward`, or
    any reward reference); `metadata` holds what that reward needs beyond the answer.
    """

    id: str
    question: str
    answer: str
    verifier: str
    source: str = ""
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Completion:
    """One response as it was sampled; training uses these very tokens, never a re-encoding.

    `token_ids` are the sampled tokens, the end-of-sequence token included where it was sampled;
    `text` is their decoding without it. `prefix` is the start of the response that the prompt
    already holds (`<think>`). `thinking` and `answer` are what the prompt's template read from
    prefix + text: None where that part is missing. `logprobs` (natural log, one per token, of the
    distribution sampled from) and `routed_experts` (integers [tokens, layers, top_k], of the layers
    with routed experts and of all tokens but the last, the prompt's included) are None where they
    were not asked for. `weight_version` names the weights that sampled it.
    """

    token_ids: tuple[int, ...]
    text: str
    finish_reason: FinishReason
    weight_version: int
    prefix: str = ""
    thinking: str | None = None
    answer: str | None = None
    logprobs: tuple[float, ...] | None = None
    routed_experts: Any = None

    def __post_init__(self) -> None:
        if self.logprobs is not None and len(self.logprobs) != len(self.token_ids):
            raise ValueError(
                f"{len(self.logprobs)} log-probs for {len(self.token_ids)} sampled tokens"
            )


@dataclass(frozen=True, slots=True)
class Rollout:
    """A problem, the prompt tokens it was asked with, and its group of G completions."""

    problem: Problem
    prompt_token_ids: tuple[int, ...]
    completions: tuple[Completion, ...]


@dataclass(frozen=True, slots=True)
class Verdict:
    """A reward's judgement of one completion, with its reason.

    `score` is None where the reward does not apply. `parts` are the scores of single rewards
    by name, where several were added up.
    """

    score: float | None
    reason: str = ""
    parts: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        try:
            finite = self.score is None or math.isfinite(self.score)
        except (TypeError, ValueError):  # text, an array of several values
            finite = False
        if not finite:
            raise ScoreError(f"a score is a finite number or None, not {self.score!r:.80}")


@dataclass(frozen=True, slots=True)
class ScoringFailure:
    """The machinery failed on this item (killed worker, exception in user code): never a score."""

    kind: str
    detail: str = ""


Outcome = Verdict | ScoringFailure


@dataclass(frozen=True, slots=True)
class ScoredGroup:
    """A rollout with one outcome for each of its completions, in their order."""

    rollout: Rollout
    outcomes: tuple[Outcome, ...]

    def __post_init__(self) -> None:
        if len(self.outcomes) != len(self.rollout.completions):
            raise ValueError(
                f"{len(self.outcomes)} outcomes for {len(self.rollout.completions)} completions "
                f"of problem {self.rollout.problem.id}"
            )


@dataclass(frozen=True, slots=True)
class Batch:
    """The sequences of one step, packed end to end, and the one denominator of their loss.

    token_ids    [N] int64, prompt then completion of each sequence, one after the other
    lengths      [B] int64, tokens of each sequence (prompt and completion)
    prompt_lens  [B] int64, tokens of its prompt
    advantages   [B] float32
    logp_sampler [N] float32, the sampler's log-prob at each completion token, 0 at prompt tokens;
                 None where the sampler gave none
    logp_old     [N] float32, the trainer's log-prob before the first update of the step; None on
                 the first update, where it equals the current log-prob
    logp_ref     [N] float32, that of the reference of the KL term; None where there is none
    stale        [B] bool, sampled under earlier weights than those the step began with: the old
                 log-prob is then the sampler's
    experts      [N, layers, top_k] int16, the experts to route each token through, -1: as the
                 router likes; only layers with routed experts count. None: no replay
    denominator  what the loss is divided by: counted once over all processes and all sequences,
                 those left out for a zero advantage included (see grpo.batch.pack)
    """

    token_ids: torch.Tensor
    lengths: torch.Tensor
    prompt_lens: torch.Tensor
    advantages: torch.Tensor
    logp_sampler: torch.Tensor | None
    logp_old: torch.Tensor | None
    logp_ref: torch.Tensor | None
    stale: torch.Tensor
    experts: torch.Tensor | None
    denominator: float

    def __len__(self) -> int:
        return int(self.lengths.numel())


@dataclass(frozen=True, slots=True)
class SamplingSettings:
    """How to sample: the number of completions per prompt and the distribution they come from.

    `temperature` 0 is greedy decoding. `logprobs` asks for the log-prob of each sampled token,
    `routed_experts` for the experts that each token went through.
    """

    num_samples: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    max_tokens: int = 128
    logprobs: bool = False
    routed_experts: bool = False
    seed: int | None = None


Prompts = Sequence[tuple[int, ...]]
