"""Evaluation: sample held-out problems and compute metrics with their intervals.

`evaluate` samples and scores; `ask` and `judge` are its two halves, for several processes.
`compare` compares two results. `r1lab eval` is in `standalone`.
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
