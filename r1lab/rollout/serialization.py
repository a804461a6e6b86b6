"""Convert scored groups to plain containers, the only content that checkpoints allow."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from r1lab.types import Completion, Outcome, Problem, Rollout, ScoredGroup, ScoringFailure, Verdict


def as_plain(group: ScoredGroup) -> dict[str, Any]:
    """Convert a group to dicts, lists, strings, numbers and tensors."""
    outcomes = [_plain_outcome(outcome) for outcome in group.outcomes]
    return {**rollout_as_plain(group.rollout), "outcomes": outcomes}


def rollout_as_plain(rollout: Rollout) -> dict[str, Any]:
    """Convert a group that is not scored yet."""
    return {
        "problem": {**_values(rollout.problem), "metadata": dict(rollout.problem.metadata)},
        "prompt": rollout.prompt_token_ids,
        "completions": [_values(completion) for completion in rollout.completions],
    }


def from_plain(state: dict[str, Any]) -> ScoredGroup:
    """Rebuild the group from the result of `as_plain`."""
    return ScoredGroup(
        rollout_from_plain(state), tuple(_outcome(values) for values in state["outcomes"])
    )


def rollout_from_plain(state: dict[str, Any]) -> Rollout:
    """Rebuild the group from the result of `rollout_as_plain`."""
    return Rollout(
        Problem(**state["problem"]),
        tuple(state["prompt"]),
        tuple(Completion(**values) for values in state["completions"]),
    )


def _values(record: Any) -> dict[str, Any]:
    """Return the fields of a flat record."""
    return {item.name: getattr(record, item.name) for item in fields(record)}


def _plain_outcome(outcome: Outcome) -> dict[str, Any]:
    values = _values(outcome)
    if isinstance(outcome, Verdict):
        values["parts"] = dict(outcome.parts)
    return values


def _outcome(values: dict[str, Any]) -> Outcome:
    return ScoringFailure(**values) if "kind" in values else Verdict(**values)
