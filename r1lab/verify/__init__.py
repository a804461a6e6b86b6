"""Load rewards by name, call them, and sum their scores.

A reward is a plain function in any file, with one of two signatures that differ in parameter names:

    def reward(problem, completion, **options) -> float | Verdict | None     # one response
    def reward(prompts, completions, **columns) -> list[float | None]        # TRL's, unchanged

`load_reward` finds and checks one, `call_reward` runs it on items in this process, `Verifiers` sums
those of a recipe. A `Runner` decides where a reward runs: `InProcessRunner` here,
`IsolatedRunner` in worker processes with time and memory limits for each response.
"""

from r1lab.verify.call import (
    InProcessRunner,
    RewardCall,
    RewardError,
    Runner,
    TrainerState,
    call_reward,
)
from r1lab.verify.isolation import IsolatedRunner
from r1lab.verify.load import Reward, RewardLimits, load_reward
from r1lab.verify.verifiers import Verifiers

__all__ = [
    "InProcessRunner",
    "IsolatedRunner",
    "Reward",
    "RewardCall",
    "RewardError",
    "RewardLimits",
    "Runner",
    "TrainerState",
    "Verifiers",
    "call_reward",
    "load_reward",
]
