"""A reward that knows nothing: a coin, as a control (arXiv 2506.10947 trains on such rewards).

Whatever improves under it was not taught by the reward. The coin falls by a hash of the question
and the sampled tokens, so that a response always scores the same and a run can be repeated.
"""

from __future__ import annotations

import hashlib

from r1lab.types import Completion, Problem, Verdict


def reward(problem: Problem, completion: Completion, *, chance: float = 0.5) -> Verdict:
    """1.0 with probability `chance`, else 0.0; ValueError where that is no probability."""
    if not 0 <= chance <= 1:
        raise ValueError(f"chance: {chance} must be between 0 and 1")
    drawn = hashlib.sha256(f"{problem.question} {completion.token_ids}".encode()).digest()
    heads = int.from_bytes(drawn[:8], "big") < chance * 2**64
    return Verdict(float(heads), "heads" if heads else "tails")
