"""Any generator of reasoning-gym (Stojanovski et al. 2025, arXiv 2505.24760) as a problem source.

Needs the package reasoning-gym (r1lab's extra `gym`). `dataset` names the generator, `config` holds
its own options; answers are scored by the generator itself (`rewards/reasoning_gym.py`). Problems
are held out by a hash of the question, as those of every generated source.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

from r1lab.data.streams import Draft, GeneratedProblems

_INDICES = 10_000  # problems that a generator is taken to have


def load(
    split: str,
    *,
    dataset: str,
    seed: int = 0,
    config: Mapping[str, Any] | None = None,
) -> GeneratedProblems:
    """Problems of one generator; ValueError for an unknown one or options it does not have."""
    try:
        from reasoning_gym import create_dataset
        from reasoning_gym.factory import DATASETS
    except ImportError:
        raise ValueError("reasoning-gym is not installed: pip install reasoning-gym") from None
    if dataset not in DATASETS:
        raise ValueError(f"dataset: {dataset!r} is no generator of reasoning-gym")
    try:
        # Its own seed stays: which of its problems are drawn is ours to say.
        problems = create_dataset(dataset, seed=0, size=_INDICES, **(config or {}))
    except (TypeError, AssertionError) as error:
        raise ValueError(f"config of {dataset}: {error}") from error

    def make(rng: random.Random) -> Draft:
        entry = problems[rng.randrange(_INDICES)]
        question = str(entry["question"])
        answer = entry.get("answer")
        return Draft(
            question=question,
            answer="" if answer is None else str(answer),
            verifier="reasoning_gym",
            metadata={"dataset": dataset, "answer": answer, "metadata": dict(entry["metadata"])},
        )

    return GeneratedProblems(f"gym-{dataset}", make, split=split, seed=seed)
