"""Evaluation: samples of held-out problems, and figures with their intervals.

`evaluate` asks and judges; `ask` and `judge` are its two halves, for several processes.
"""

from r1lab.evaluate.estimators import maj_at_k, pass_at_k, same_text
from r1lab.evaluate.intervals import Estimate, bootstrap
from r1lab.evaluate.result import EvalResult, ProblemResult, Sample, Scores
from r1lab.evaluate.run import Asked, ask, evaluate, judge

__all__ = [
    "Asked",
    "Estimate",
    "EvalResult",
    "ProblemResult",
    "Sample",
    "Scores",
    "ask",
    "bootstrap",
    "evaluate",
    "judge",
    "maj_at_k",
    "pass_at_k",
    "same_text",
]
