"""The records of an evaluation. `EvalResult.as_dict` is the content of eval/*.json."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from r1lab.evaluate.intervals import Estimate

# Above this share of faulted samples an evaluation has no figures that rest on verdicts.
MAX_FAULT_SHARE = 0.2


@dataclass(frozen=True, slots=True)
class Sample:
    """One judged response. `length` in tokens, the end of sequence included.

    `correct` and `score` are None where no reward applied. Where judging failed (`fault` says how)
    `correct` is False and `score` None. `group` numbers the answers of a problem that are equal as
    the verifier sees them (0: the right ones); None if it has no answer.
    `readable`: the verifier found an answer in it, right or wrong. `token_ids` only where they were
    to be kept.
    """

    text: str
    answer: str | None
    correct: bool | None
    score: float | None
    reason: str
    parts: Mapping[str, float]
    fault: str | None
    length: int
    finish_reason: str
    well_formed: bool
    group: int | None = None
    readable: bool = True
    token_ids: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True)
class ProblemResult:
    """A problem with all its samples; `greedy` where a greedy answer was asked for.

    `majority` is maj@k over the samples, the chance that a vote among them is right.
    """

    id: str
    source: str
    question: str
    answer: str
    samples: tuple[Sample, ...]
    greedy: Sample | None = None
    majority: float | None = None


@dataclass(frozen=True, slots=True)
class Scores:
    """The metrics of a set of problems, each with its interval.

    pass_at_1    mean over problems of the share of right samples
    cons_at_k    mean over problems of maj@k over all k samples of a problem
    pass_at_k    by k, as text: powers of two up to the number of samples
    reward       mean score;  format, truncated, unanswered  shares of samples
    unparsable   share of samples in which the verifier found no answer that it can read
    length       mean tokens of a sample; length_right and length_wrong of those
    None where there was nothing to count. `num_problems` are those with a judged sample.

    A faulted sample counts as wrong, and in `reward` with the lowest score of these problems, at
    most 0. Above MAX_FAULT_SHARE of the samples the figures that rest on verdicts are None.
    """

    num_problems: int
    num_samples: int
    num_faults: int
    pass_at_1: Estimate | None
    cons_at_k: Estimate | None
    pass_at_k: Mapping[str, Estimate]
    reward: Estimate | None
    format: Estimate | None
    length: Estimate | None
    length_right: Estimate | None
    length_wrong: Estimate | None
    truncated: Estimate | None
    unanswered: Estimate | None
    unparsable: Estimate | None = None
    fault_share: float = 0.0


@dataclass(frozen=True, slots=True)
class EvalResult:
    """An evaluation: how it was sampled, its figures, and every sample.

    `step` is the training step it belongs to (None: none), `accuracy` the part of a verdict that
    tells right from wrong, `level` that of the intervals, `k` the samples of each problem. `model`
    and `suite` are what `r1lab eval` was asked for, `shots` the solved examples in each prompt.
    """

    step: int | None
    weight_version: int | None
    template: str
    accuracy: str
    k: int
    temperature: float
    top_p: float
    max_tokens: int
    seed: int
    level: float
    overall: Scores
    greedy: Scores | None
    by_source: Mapping[str, Scores]
    problems: tuple[ProblemResult, ...]
    model: str | None = None
    suite: str | None = None
    shots: int = 0

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self)

    def headline(self) -> dict[str, float | None]:
        """Return the metrics alone, under their names in a run's summary."""

        def value(estimate: Estimate | None) -> float | None:
            return None if estimate is None else estimate.value

        scores = self.overall
        return {
            "pass_at_1": value(scores.pass_at_1),
            f"cons_at_{self.k}": value(scores.cons_at_k),
            "greedy": value(self.greedy.pass_at_1) if self.greedy else None,
            "format": value(scores.format),
            "length": value(scores.length),
            "truncated": value(scores.truncated),
            "unanswered": value(scores.unanswered),
            "unparsable": value(scores.unparsable),
            "reward": value(scores.reward),
            "faulted": scores.fault_share or None,  # said only where there are any
        }
