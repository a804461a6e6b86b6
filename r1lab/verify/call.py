"""Calling one reward on many responses.

What user code raises becomes a `Fault` in the place of that response, never a score. What breaks
the contract of a reward (a list of the wrong length, NaN, something that is no number) is a mistake
in its code and stops with a `RewardError` that names the file and the line.

Deviations from TRL 1.16's GRPOTrainer, whose reward functions run here unchanged:
1. A NaN is refused; TRL takes it for None.
2. A function without `**kwargs` gets only the columns it names; TRL's call would fail.
3. When a batched function raises, it is called again for each response alone, so that only those
   that make it raise are lost.
"""

from __future__ import annotations

import asyncio
import inspect
import math
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, Protocol

from r1lab.hints import nearest
from r1lab.types import Completion, Fault, Outcome, Problem, R1labError, Verdict
from r1lab.verify.load import Reward, where_defined


class RewardError(R1labError):
    """A reward function broke its contract: the message names file, line and what to return."""


@dataclass(frozen=True, slots=True)
class Item:
    """One response to judge: `prompt` is the text it was asked with, its prefix included."""

    problem: Problem
    completion: Completion
    prompt: str


class Runner(Protocol):
    """Where rewards run: in this process, or behind a wall of worker processes."""

    def run(self, reward: Reward, items: Sequence[Item]) -> list[Outcome]:
        """One outcome for each item, in order: a Fault where the machinery failed on it.

        Raises RewardError where the reward breaks its contract.
        """


class InProcessRunner:
    """Runs rewards in this process, without limits: for trusted rewards and short answers."""

    def run(self, reward: Reward, items: Sequence[Item]) -> list[Outcome]:
        """See Runner."""
        return call_reward(reward, items)


def call_reward(reward: Reward, items: Sequence[Item]) -> list[Outcome]:
    """Judge the items, in order, in this process. Raises RewardError; user exceptions are Faults.

    This is the boundary where exceptions of user code are caught.
    """
    function = reward.function()
    if reward.style == "single":
        return [_judge_one(function, item, reward.options) for item in items]
    return _judge_batch(function, items, reward.options) if items else []


def _judge_one(function: Callable[..., Any], item: Item, options: Mapping[str, Any]) -> Outcome:
    try:
        value = function(problem=item.problem, completion=item.completion, **options)
    except Exception as error:
        return _fault(function, error)
    return _verdict(function, value, item)


def _judge_batch(
    function: Callable[..., Any], items: Sequence[Item], options: Mapping[str, Any]
) -> list[Outcome]:
    arguments = {**_columns(items), **options}
    parameters = inspect.signature(function).parameters
    for name, parameter in parameters.items():
        named = parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
        if named and parameter.default is parameter.empty and name not in arguments:
            raise RewardError(
                f"{_name(function)} needs a column {name!r}{nearest(name, arguments)}; these "
                f"problems have {', '.join(arguments)}"
            )
    if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        arguments = {name: value for name, value in arguments.items() if name in parameters}
    try:
        values = function(**arguments)
        if inspect.isawaitable(values):
            values = asyncio.run(_finish(values))
    except Exception as error:
        if len(items) == 1:
            return [_fault(function, error)]
        return [_judge_batch(function, [item], options)[0] for item in items]
    if isinstance(values, str | bytes | Mapping) or not hasattr(values, "__iter__"):
        raise RewardError(
            f"{_name(function)} returned {type(values).__name__}; "
            f"return a list of {len(items)} numbers or None, one for each completion"
        )
    values = list(values)
    if len(values) != len(items):
        raise RewardError(
            f"{_name(function)} returned {len(values)} scores for {len(items)} completions; "
            "return one for each, None where it does not apply"
        )
    return [_verdict(function, value, item) for value, item in zip(values, items, strict=True)]


def _columns(items: Sequence[Item]) -> dict[str, list[Any]]:
    """TRL's arguments: one list a column. Metadata cannot replace columns that are always there.

    A metadata key that a problem lacks is None in its row, so that tasks can be mixed.
    """
    keys = dict.fromkeys(key for item in items for key in item.problem.metadata)
    columns = {key: [item.problem.metadata.get(key) for item in items] for key in keys}
    return {
        **columns,
        "question": [item.problem.question for item in items],
        "answer": [item.problem.answer for item in items],
        "prompts": [item.prompt for item in items],
        "completions": [item.completion.text for item in items],
        "completion_ids": [list(item.completion.token_ids) for item in items],
    }


async def _finish(value: Any) -> Any:
    return await value


def _verdict(function: Callable[..., Any], value: Any, item: Item) -> Verdict:
    if isinstance(value, Verdict):
        return value
    if value is None:
        return Verdict(None)
    if not isinstance(value, Real) and callable(getattr(value, "item", None)):
        value = value.item()  # a NumPy or torch scalar
    if not isinstance(value, Real):
        raise RewardError(
            f"{_name(function)} returned {value!r:.80} ({type(value).__name__}) for problem "
            f"{item.problem.id}; a score is a number, a Verdict or None"
        )
    if not math.isfinite(value):
        raise RewardError(
            f"{_name(function)} returned {float(value)} for problem {item.problem.id}; "
            "return a finite number, or None where it does not apply"
        )
    return Verdict(float(value))


def _fault(function: Callable[..., Any], error: Exception) -> Fault:
    """Names the exception and the last line of the reward's own file that was running."""
    code = getattr(inspect.unwrap(function), "__code__", None)
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if code is not None and frame.filename == code.co_filename]
    place = (own or frames)[-1]
    message = " ".join(str(error).split())[:200]
    return Fault(
        "exception", f"{type(error).__name__}: {message} ({place.filename}, line {place.lineno})"
    )


def _name(function: Callable[..., Any]) -> str:
    return f"{getattr(function, '__name__', 'reward')} ({where_defined(function)})"
