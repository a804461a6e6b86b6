"""Find a reward by its name in a recipe and check its signature before anything runs."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from r1lab.hints import nearest
from r1lab.problems.registry import FunctionReference, find
from r1lab.types import RecipeError

Style = Literal["single", "batched"]

SINGLE = frozenset({"problem", "completion"})
# Arguments that TRL adds to the dataset columns; any one of them identifies its signature.
BATCHED = frozenset({"prompts", "completions", "completion_ids"})
SIGNATURES = (
    "reward(problem, completion, **options), or TRL's reward(prompts, completions, **columns)"
)


@dataclass(frozen=True, slots=True)
class RewardLimits:
    """Limits for judging one response in a worker process.

    seconds      of wall clock
    memory_mib   beyond what the worker held before it began with this response
    """

    seconds: float = 5.0
    memory_mib: int = 1024


@dataclass(frozen=True, slots=True)
class Reward:
    """A reward with a checked signature.

    It holds the location of the function, not the function, so that it can be pickled to a worker.
    """

    reference: FunctionReference
    style: Style
    options: Mapping[str, Any] = field(default_factory=dict)
    limits: RewardLimits = RewardLimits()

    @property
    def short_name(self) -> str:
        """Return the short display name: `format`, `my_rewards` for my_rewards.py:reward."""
        if self.reference.function != "reward":
            return self.reference.function
        path = self.reference.path
        return Path(path).stem if path else self.reference.module.rpartition(".")[2]

    def function(self) -> Callable[..., Any]:
        """The function itself, imported once in this process."""
        return self.reference.load()


def load_reward(
    reference: str,
    options: Mapping[str, Any] | None = None,
    *,
    key: str = "rewards",
    limits: RewardLimits = RewardLimits(),
) -> Reward:
    """Load the reward that `reference` names (`r1lab.problems.registry`); check its signature.

    `key` is the recipe's key, for the message ("" outside a recipe). Raises RecipeError, one line,
    for a missing file or function, a signature of neither kind, an unknown option, and a missing
    one.
    """
    own_key, options_key = (f"{key}.{part}".lstrip(".") for part in ("reward", "options"))
    found = find(reference, "reward", key=own_key)
    function = found.load(key=own_key)
    reward = Reward(found, _style(function, own_key), dict(options or {}), limits)
    _check_options(function, reward, options_key)
    return reward


def where_defined(function: Callable[..., Any]) -> str:
    """`file.py, line 12`: where a function starts."""
    function = inspect.unwrap(function)
    if inspect.isclass(function):
        return f"{inspect.getsourcefile(function)}, line {inspect.getsourcelines(function)[1]}"
    code = getattr(function, "__code__", None) or getattr(type(function).__call__, "__code__", None)
    return f"{code.co_filename}, line {code.co_firstlineno}" if code else repr(function)


def _style(function: Callable[..., Any], key: str) -> Style:
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):  # of something built in
        raise RecipeError(f"{key}: {function!r} has no signature; write {SIGNATURES}") from None
    names = set(parameters)
    single, batched = names >= SINGLE, bool(names & BATCHED)
    unnamed = any(parameters[n].kind is inspect.Parameter.POSITIONAL_ONLY for n in names)
    if single == batched or unnamed or inspect.isclass(function):
        problem = "mixes two signatures" if single and batched else "has no signature of a reward"
        if unnamed:
            problem = "takes arguments without their names"
        if inspect.isclass(function):
            problem = "is a class"
        raise RecipeError(
            f"{key}: {getattr(function, '__name__', function)}({', '.join(parameters)}) {problem} "
            f"({where_defined(function)}); write {SIGNATURES}"
        )
    return "single" if single else "batched"


def _check_options(function: Callable[..., Any], reward: Reward, key: str) -> None:
    given = SINGLE if reward.style == "single" else BATCHED
    parameters = inspect.signature(function).parameters.values()
    open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters)
    named = {
        p.name: p
        for p in parameters
        if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD) and p.name not in given
    }
    for option in reward.options:
        if option in given or not (open_ended or option in named):
            allowed = f"allowed: {', '.join(named)}" if named else "this reward takes none"
            raise RecipeError(f"{key}.{option}: unknown option{nearest(option, named)}; {allowed}")
    if reward.style == "batched":
        return  # its other parameters are columns, known only with the problems
    for name, parameter in named.items():
        if parameter.default is parameter.empty and name not in reward.options:
            raise RecipeError(
                f"{key}.{name}: missing; {reward.reference.text!r} needs it "
                f"({where_defined(function)})"
            )
