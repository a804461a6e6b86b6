"""For problems that no rule can judge: the reward does not apply.

Everyday requests name it as their verifier; a reward model judges them (`rewards/reward_model.py`).
"""

from __future__ import annotations

from r1lab.types import Completion, Problem, Verdict


def reward(problem: Problem, completion: Completion) -> Verdict:
    """No score."""
    return Verdict(None, "no rule judges this")
