"""Evaluation: samples of held-out problems, and figures with their intervals.

`evaluate` asks and judges; `ask` and `judge` are its two halves, for several processes. `compare`
holds two results against each other. `r1lab eval` stands in `standalone`.
"""

from r1lab.evaluate.compare import Difference, across_seeds, compare
from r1lab.evaluate.estimators import maj_at_k, pass_at_k
from r1lab.evaluate.intervals import Estimate, bootstrap
from r1lab.evaluate.result import EvalResult, ProblemResult, Sample, Scores
from r1lab.evaluate.run import Asked, ask, evaluate, judge

__all__ = [
    "Asked",
    "Difference",
    "Estimate",
    "EvalResult",
    "ProblemResult",
    "Sample",
    "Scores",
    "across_seeds",
    "ask",
    "bootstrap",
    "compare",
    "evaluate",
    "judge",
    "maj_at_k",
    "pass_at_k",
]
