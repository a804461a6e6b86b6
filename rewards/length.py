"""Rewards for length: DAPO's penalty near the limit, and the cosine of "Demystifying Long CoT".

`soft_overlong` (also `reward`): DAPO, arXiv 2503.14476, equation 13. With L = `max_tokens` and
C = `buffer`, over the number of sampled tokens |y|:
    0                    |y| <= L - C
    (L - C - |y|) / C    L - C < |y| <= L
    -1                   L < |y|
Deviation: a completion cut at the sampler's limit gets -1, also where that limit is below L.

`cosine`: arXiv 2502.03373, section 4.1. With l the length, L the limit:
    r(l) = r_L + (r_0 - r_L) (1 + cos(pi l / L)) / 2,   r = `exceed` for l >= L or a cut completion,
r_0 and r_L being one pair for right answers and one for wrong ones. Right or wrong is what the
verifier that the problem names says.
"""

from __future__ import annotations

from importlib import import_module
from math import cos, pi

from r1lab.types import Completion, Problem, Verdict


def soft_overlong(
    problem: Problem, completion: Completion, *, max_tokens: int, buffer: int
) -> Verdict:
    """-1 to 0: the penalty for coming near `max_tokens`, from `buffer` tokens before it."""
    if not 0 < buffer <= max_tokens:
        raise ValueError(f"buffer: {buffer} must be between 1 and max_tokens ({max_tokens})")
    length = len(completion.token_ids)
    if completion.finish_reason == "length" or length > max_tokens:
        return Verdict(-1.0, f"{length} tokens, beyond the limit")
    over = length - (max_tokens - buffer)
    if over <= 0:
        return Verdict(0.0, f"{length} tokens")
    return Verdict(-over / buffer, f"{length} tokens, {over} into the buffer")


reward = soft_overlong


def cosine(
    problem: Problem,
    completion: Completion,
    *,
    max_tokens: int,
    right_short: float = 2.0,
    right_long: float = 1.0,
    wrong_short: float = -10.0,
    wrong_long: float = 0.0,
    exceed: float = -10.0,
    verifier: str | None = None,
) -> Verdict:
    """The cosine reward; the defaults are the paper's. `verifier`: None is the problem's own.

    Only verifiers that ship can be named here.
    """
    if max_tokens < 1:
        raise ValueError(f"max_tokens: {max_tokens} must be above 0")
    length = len(completion.token_ids)
    if completion.finish_reason == "length" or length >= max_tokens:
        return Verdict(exceed, f"{length} tokens, at or beyond the limit")
    judged = _judge(verifier or problem.verifier, problem, completion)
    right = judged.score is not None and judged.score >= 1.0
    at_start, at_end = (right_short, right_long) if right else (wrong_short, wrong_long)
    score = at_end + (at_start - at_end) * (1 + cos(pi * length / max_tokens)) / 2
    return Verdict(score, f"{'right' if right else 'wrong'}, {length} tokens")


def _judge(name: str, problem: Problem, completion: Completion) -> Verdict:
    if not name.isidentifier():
        raise ValueError(f"verifier: {name!r} is no verifier that ships; name one such as math")
    verdict = import_module(f"r1lab.rewards.{name}").reward(problem, completion)
    return verdict if isinstance(verdict, Verdict) else Verdict(verdict)
