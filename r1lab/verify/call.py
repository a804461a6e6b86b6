"""Call one reward on many responses.

If user code raises, during judging or while its return value is read, that response gets a
`ScoringFailure` and never a score. A reward that breaks its contract (a list of the wrong length,
NaN, a value that is not a number) is a bug in its code: a `RewardError` names the file and line.

Deviations from TRL 1.16's GRPOTrainer, whose reward functions run here unchanged:
1. NaN is rejected; TRL treats it as None.
2. A function without `**kwargs` gets only the columns it names; TRL's call would fail.
3. When a batched function raises, it is called again for each response separately, so that only
   the responses that make it raise are lost.
"""

from __future__ import annotations

import asyncio
import dis
import inspect
import math
import traceback
from collections.abc import Callable, Mapping, Sequence, Sized
from dataclasses import dataclass
from functools import partial
from itertools import islice
from numbers import Real
from typing import Any, Protocol, TypeVar

from r1lab.hints import nearest
from r1lab.types import (
    Completion,
    Interrupted,
    Outcome,
    Problem,
    R1labError,
    ScoreError,
    ScoringFailure,
    Verdict,
)
from r1lab.verify.load import Reward, where_defined
from r1lab.verify.output import Bounded, bounded_output

ReadValue = TypeVar("ReadValue")


class RewardError(R1labError):
    """A reward function broke its contract: the message names file, line and what to return."""


@dataclass(frozen=True, slots=True)
class TrainerState:
    """The part of TRL's `trainer_state` that rewards can use here.

    `global_step` is the number of training steps behind the weights that sampled these responses,
    `max_steps` the run's number of steps (0 outside a run).
    """

    global_step: int = 0
    max_steps: int = 0


@dataclass(frozen=True, slots=True)
class RewardCall:
    """One response to judge: `prompt` is the full prompt text, including its prefix."""

    problem: Problem
    completion: Completion
    prompt: str
    state: TrainerState = TrainerState()


class Runner(Protocol):
    """Where rewards run: in this process or in isolated worker processes."""

    def run(self, reward: Reward, items: Sequence[RewardCall]) -> list[Outcome]:
        """Return one outcome per item, in order: a ScoringFailure if scoring failed.

        Raises RewardError if the reward breaks its contract.
        """


class InProcessRunner:
    """Runs rewards in this process, without limits: for rewards that need a model or a network."""

    def __init__(self) -> None:
        self._output = Bounded()

    def run(self, reward: Reward, items: Sequence[RewardCall]) -> list[Outcome]:
        """See Runner."""
        with bounded_output(self._output):
            return call_reward(reward, items)

    def close(self) -> None:
        """Report how many printed lines of the rewards were not shown."""
        self._output.close()


def call_reward(reward: Reward, items: Sequence[RewardCall]) -> list[Outcome]:
    """Judge the items in this process. Raises RewardError; exceptions give ScoringFailures."""
    function, options = reward.function(), reward.options
    if reward.style == "single":
        return [judge_one(function, item, options) for item in items]
    outcomes = judge_together(function, items, options) if items else []
    if not isinstance(outcomes, ScoringFailure):
        return outcomes
    if len(items) == 1:
        return [outcomes]
    return [judge_alone(function, item, options) for item in items]


def judge_one(
    function: Callable[..., Any], item: RewardCall, options: Mapping[str, Any]
) -> Outcome:
    """Call a reward over one response. This and `judge_together` catch what user code raises."""
    try:
        value = function(problem=item.problem, completion=item.completion, **options)
        if inspect.isawaitable(value):
            value = asyncio.run(_finish(value))
    except ScoreError as error:
        raise _score_error(function, error, item) from error
    except BaseException as error:
        return _fault(function, error)
    return _read(function, lambda: _verdict(function, value, item))


def judge_alone(
    function: Callable[..., Any], item: RewardCall, options: Mapping[str, Any]
) -> Outcome:
    """Call a batched reward with a batch of one."""
    outcomes = judge_together(function, [item], options)
    return outcomes if isinstance(outcomes, ScoringFailure) else outcomes[0]


def judge_together(
    function: Callable[..., Any], items: Sequence[RewardCall], options: Mapping[str, Any]
) -> list[Outcome] | ScoringFailure:
    """Call a batched reward once for all items; one ScoringFailure for all if it raises."""
    logs = _Logs()
    arguments = {
        **_columns(items),
        "trainer_state": items[0].state,
        "log_extra": logs.log_extra,
        "log_metric": logs.log_metric,
        **options,
    }
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
    except ScoreError as error:
        raise _score_error(function, error, items[0]) from error
    except BaseException as error:
        return _fault(function, error)
    scores = _read(function, lambda: _scores(function, values, items))
    if isinstance(scores, ScoringFailure):
        return scores
    outcomes = [
        _read(function, partial(_verdict, function, value, item))
        for value, item in zip(scores, items, strict=True)
    ]
    return logs.attach(function, outcomes)


def _scores(function: Callable[..., Any], values: Any, items: Sequence[RewardCall]) -> list[Any]:
    """Return the result of a batched reward as a list with one value per item."""
    if isinstance(values, str | bytes | Mapping) or not hasattr(values, "__iter__"):
        raise RewardError(
            f"{_name(function)} returned {type(values).__name__}; "
            f"return a list of {len(items)} numbers or None, one for each completion"
        )
    scores = list(islice(values, len(items) + 1))  # an iterator may be infinite
    if len(scores) != len(items):
        num = str(len(values)) if isinstance(values, Sized) else str(len(scores))
        more = "" if isinstance(values, Sized) or len(scores) < len(items) else " or more"
        raise RewardError(
            f"{_name(function)} returned {num}{more} scores for {len(items)} completions; "
            "return one for each, None where it does not apply"
        )
    return scores


def _read(
    function: Callable[..., Any], convert: Callable[[], ReadValue]
) -> ReadValue | ScoringFailure:
    """Return `convert()`, or a ScoringFailure if reading the returned value raises."""
    try:
        return convert()
    except RewardError:
        raise
    except BaseException as error:
        return _fault(function, error)


def _columns(items: Sequence[RewardCall]) -> dict[str, list[Any]]:
    """Return TRL's arguments, one list per column. Metadata cannot replace the fixed columns.

    A missing metadata key is None in that row, so that tasks can be mixed.
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


class _Logs:
    """What a reward logs through TRL's `log_metric` and `log_extra`, put into its verdicts.

    A number becomes a part of each verdict it belongs to (a metric of all: its mean where it was
    logged twice), other values a word of the reason: so they are kept with the rollouts, and the
    means of the parts reach the metrics of the step.
    """

    def __init__(self) -> None:
        self.metrics: dict[str, list[float]] = {}
        self.extras: dict[str, list[Any]] = {}

    def log_metric(self, name: str, value: float) -> None:
        self.metrics.setdefault(_text(name), []).append(float(value))

    def log_extra(self, column: str, values: Sequence[Any]) -> None:
        self.extras[_text(column)] = list(values)

    def attach(self, function: Callable[..., Any], outcomes: Sequence[Outcome]) -> list[Outcome]:
        for column, values in self.extras.items():
            if len(values) != len(outcomes):
                raise RewardError(
                    f"{_name(function)}: log_extra({column!r}) got {len(values)} values for "
                    f"{len(outcomes)} completions; give one for each"
                )
        if not (self.metrics or self.extras):
            return list(outcomes)
        means = {name: sum(values) / len(values) for name, values in self.metrics.items()}
        means = {name: value for name, value in means.items() if math.isfinite(value)}
        return [
            outcome
            if isinstance(outcome, ScoringFailure)
            else _read(function, partial(self._attach, outcome, row, means))
            for row, outcome in enumerate(outcomes)
        ]

    def _attach(self, verdict: Verdict, row: int, means: Mapping[str, float]) -> Verdict:
        parts, words = dict(means), [verdict.reason] if verdict.reason else []
        for column, values in self.extras.items():
            value = _plain(values[row])
            if isinstance(value, Real) and math.isfinite(value):
                parts[column] = float(value)
            elif value is not None:
                words.append(f"{column}: {_text(value)[:200]}")
        return Verdict(verdict.score, "; ".join(words), {**verdict.parts, **parts})


async def _finish(value: Any) -> Any:
    return await value


def _text(value: Any) -> str:
    """Convert to a plain `str`: a subclass may have methods that raise later."""
    return str.__str__(str(value))


def _plain(value: Any) -> Any:
    """Convert a NumPy or torch scalar to a Python number; return anything else unchanged."""
    if not isinstance(value, Real) and callable(getattr(value, "item", None)):
        return value.item()
    return value


def _verdict(function: Callable[..., Any], value: Any, item: RewardCall) -> Verdict:
    if isinstance(value, Verdict):
        return _checked(function, value, item)
    if value is None:
        return Verdict(None)
    return Verdict(_number(function, value, item, "a score is a number, a Verdict or None"))


def _checked(function: Callable[..., Any], verdict: Verdict, item: RewardCall) -> Verdict:
    """Return the verdict with plain types only: no user code runs after this."""
    fix = "the score and the parts of a Verdict are numbers"
    score, reason, given = verdict.score, verdict.reason, verdict.parts
    if type(score) is not float and score is not None:
        score = _number(function, score, item, fix)
    rows = given.items() if given else ()
    parts = {_text(name): _number(function, part, item, fix) for name, part in rows}
    return Verdict(score, reason if type(reason) is str else _text(reason), parts)


def _number(function: Callable[..., Any], value: Any, item: RewardCall, fix: str) -> float:
    value = _plain(value)
    if not isinstance(value, Real):
        raise RewardError(
            f"{_name(function)} returned {value!r:.80} ({type(value).__name__}) for problem "
            f"{item.problem.id}; {fix}"
        )
    if not math.isfinite(value):
        raise RewardError(
            f"{_name(function)} returned {float(value)} for problem {item.problem.id}; "
            "return a finite number, or None where it does not apply"
        )
    return float(value)


def _fault(function: Callable[..., Any], error: BaseException) -> ScoringFailure:
    """Describe the exception and the last executed line of the reward's own file.

    Re-raises exceptions that do not come from the reward: Ctrl-C, or a signal to the run.
    """
    if isinstance(error, Interrupted) or (
        isinstance(error, KeyboardInterrupt) and not _is_raised_by_code(error)
    ):
        raise error
    try:
        message = " ".join(_text(error)[:1000].split())[:200]
    except BaseException:  # its own __str__ may raise
        message = "(its text cannot be read)"
    kind = "memory" if isinstance(error, MemoryError) else "exception"
    return ScoringFailure(kind, f"{type(error).__name__}: {message} ({_where(function, error)})")


def _is_raised_by_code(error: BaseException) -> bool:
    """Whether a `raise` statement raised it: a signal's arrives between instructions."""
    frames = error.__traceback__
    while frames is not None and frames.tb_next is not None:
        frames = frames.tb_next
    if frames is None:
        return False
    return frames.tb_frame.f_code.co_code[frames.tb_lasti] == dis.opmap["RAISE_VARARGS"]


def _score_error(function: Callable[..., Any], error: ScoreError, item: RewardCall) -> RewardError:
    """A Verdict that the reward could not make: the line that tried to."""
    name = getattr(function, "__name__", "reward")
    return RewardError(
        f"{name} ({_where(function, error)}): {error}, for problem {item.problem.id}; "
        "return a finite number, or None where it does not apply"
    )


def _where(function: Callable[..., Any], error: BaseException) -> str:
    """Return the last executed line in the function's own file."""
    code = getattr(inspect.unwrap(function), "__code__", None)
    frames = traceback.extract_tb(error.__traceback__, limit=-200)
    own = [frame for frame in frames if code is not None and frame.filename == code.co_filename]
    place = (own or frames)[-1]
    return f"{place.filename}, line {place.lineno}"


def _name(function: Callable[..., Any]) -> str:
    return f"{getattr(function, '__name__', 'reward')} ({where_defined(function)})"
