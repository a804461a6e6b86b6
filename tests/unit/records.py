"""Small records for the tests of pure functions."""

from __future__ import annotations

import random
from collections.abc import Sequence

from r1lab.prompts import TEMPLATES
from r1lab.types import (
    Completion,
    FinishReason,
    Problem,
    Rollout,
    ScoredGroup,
    ScoringFailure,
    Verdict,
)

COMPACT = TEMPLATES["compact"]


def problem(index: int = 0, **changes: object) -> Problem:
    values: dict[str, object] = {
        "id": f"p{index}", "question": f"{index} + 1", "answer": str(index + 1),
        "verifier": "exact", "source": "sums",
    }  # fmt: skip
    return Problem(**{**values, **changes})  # type: ignore[arg-type]


def completion(
    text: str = " so </think> <answer> 1 </answer>",
    tokens: Sequence[int] = (5, 6, 7),
    finish_reason: FinishReason = "stop",
    logprobs: Sequence[float] | None = None,
) -> Completion:
    """A completion under the compact template, its parts read by it."""
    read = COMPACT.read(text)
    return Completion(
        token_ids=tuple(tokens),
        text=text,
        finish_reason=finish_reason,
        weight_version=0,
        prefix=COMPACT.prefix,
        thinking=read.thinking,
        answer=read.answer,
        logprobs=None if logprobs is None else tuple(logprobs),
    )


def rollout(index: int = 0, *texts: str, prompt: Sequence[int] = (2, 3)) -> Rollout:
    return Rollout(problem(index), tuple(prompt), tuple(completion(text) for text in texts))


def scored_group(
    scores: Sequence[float | ScoringFailure | None],
    lengths: Sequence[int] | None = None,
    prompt_len: int = 2,
    seed: int = 0,
    logprobs: bool = False,
    vocabulary: int = 128,
) -> ScoredGroup:
    """A group with these scores (a ScoringFailure stands for itself) and random tokens."""
    draw = random.Random(seed)

    def tokens(count: int) -> tuple[int, ...]:
        return tuple(draw.randrange(2, vocabulary) for _ in range(count))

    lengths = [3] * len(scores) if lengths is None else lengths
    prompt = tokens(prompt_len)
    completions = []
    for length in lengths:
        ids = tokens(length)
        given = [-draw.random() for _ in ids] if logprobs else None
        completions.append(completion(tokens=ids, logprobs=given))
    outcomes = tuple(
        score if isinstance(score, ScoringFailure) else Verdict(score) for score in scores
    )
    return ScoredGroup(Rollout(problem(seed), prompt, tuple(completions)), outcomes)
