"""ScoredGroup groups as plain containers, for checkpoints, which hold nothing else."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from r1lab.types import Completion, Outcome, Problem, Rollout, ScoredGroup, ScoringFailure, Verdict


def as_plain(group: ScoredGroup) -> dict[str, Any]:
    """The group in dicts, lists, strings, numbers and tensors."""
    outcomes = [_plain_outcome(outcome) for outcome in group.outcomes]
    return {**rollout_as_plain(group.rollout), "outcomes": outcomes}


def rollout_as_plain(rollout: Rollout) -> dict[str, Any]:
    """The same of a group that is not scored yet."""
    return {
        "problem": {**_values(rollout.problem), "metadata": dict(rollout.problem.metadata)},
        "prompt": rollout.prompt_token_ids,
        "completions": [_values(completion) for completion in rollout.completions],
    }


def from_plain(state: dict[str, Any]) -> ScoredGroup:
    """The group that `as_plain` took apart."""
    return ScoredGroup(
        rollout_from_plain(state), tuple(_outcome(values) for values in state["outcomes"])
    )


def rollout_from_plain(state: dict[str, Any]) -> Rollout:
    """The group that `rollout_as_plain` took apart."""
    return Rollout(
        Problem(**state["problem"]),
        tuple(state["prompt"]),
        tuple(Completion(**values) for values in state["completions"]),
    )


def _values(record: Any) -> dict[str, Any]:
    """The fields of a flat record."""
    return {item.name: getattr(record, item.name) for item in fields(record)}


def _plain_outcome(outcome: Outcome) -> dict[str, Any]:
    values = _values(outcome)
    if isinstance(outcome, Verdict):
        values["parts"] = dict(outcome.parts)
    return values


def _outcome(values: dict[str, Any]) -> Outcome:
    return ScoringFailure(**values) if "kind" in values else Verdict(**values)
