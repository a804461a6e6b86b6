"""Rewards of this project as reward functions of TRL's GRPOTrainer (TRL 1.16). Imports no TRL.

Conversely, `r1lab.verify.load` accepts a reward written for TRL unchanged.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from r1lab.hints import nearest
from r1lab.prompts import TEMPLATES, THINK_OPEN, Template
from r1lab.types import Completion, Problem, R1labError, ScoringFailure
from r1lab.verify.call import InProcessRunner, RewardCall, Runner
from r1lab.verify.isolation import IsolatedRunner
from r1lab.verify.load import RewardLimits, load_reward

# Arguments that TRL passes in addition to the dataset columns.
_NO_COLUMNS = frozenset({"trainer_state", "log_extra", "log_metric", "completion_ids"})

_LIMITS = RewardLimits()

TrlReward = Callable[..., "list[float | None]"]


def trl_reward(
    reference: str,
    options: Mapping[str, Any] | None = None,
    *,
    question: str | None = None,
    answer: str | None = "answer",
    template: str = "r1-zero",
    isolate: bool = True,
    limits: RewardLimits = _LIMITS,
) -> TrlReward:
    """Return the reward that `reference` names as a function with TRL's signature.

    reference   as in a recipe: `math`, `format`, `file.py:function`, ...; `options` too
    question    the dataset's column with the question; None: the prompt itself
    answer      the column with the gold answer (TRL's own scripts call it `solution`); None: there
                is none, for a reward that looks at the form alone. Other columns become metadata
    template    how a response is taken apart (`r1lab.prompts.TEMPLATES`); whether `<think>` is
                already in the prompt is read from the prompt's end
    isolate     judge in worker processes under `limits` for each response; False: in this one

    The function returns one float for each completion, or None where the reward does not apply or
    broke down on that response (TRL leaves those out); the share of the latter is logged as
    `NAME/faults`. Completions may be strings or lists of messages. Raises RecipeError here for what
    cannot be loaded, and R1labError when it is called without the column `answer`.

    One deviation: TRL does not say which completions were cut off, so all count as ended.
    """
    if template not in TEMPLATES:
        raise R1labError(
            f"template: {template!r} is not one of {', '.join(sorted(TEMPLATES))}"
            f"{nearest(template, TEMPLATES)}"
        )
    reward = load_reward(reference, options, key="", limits=limits)
    runner: Runner = IsolatedRunner() if isolate else InProcessRunner()
    form = TEMPLATES[template]

    def judge(
        prompts: Sequence[Any], completions: Sequence[Any], **columns: Any
    ) -> list[float | None]:
        rows = {
            name: values
            for name, values in columns.items()
            if name not in _NO_COLUMNS and isinstance(values, Sequence)
        }
        for column in (question, answer):
            if column is not None and column not in rows:
                raise R1labError(
                    f"{reference}: the dataset has no column {column!r}{nearest(column, rows)}; it "
                    f"has {', '.join(rows) or 'none'} (trl_reward(..., answer=...) names another)"
                )
        tokens = columns.get("completion_ids") or [()] * len(completions)
        items = []
        for row, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
            asked = _text(prompt)
            problem = Problem(
                id=f"trl/{row}",
                question=asked if question is None else str(rows[question][row]),
                answer="" if answer is None else str(rows[answer][row]),
                verifier=reference,
                metadata={name: values[row] for name, values in rows.items()},
            )
            items.append(
                RewardCall(problem, _completion(_last(completion), asked, form, tokens[row]), asked)
            )
        outcomes = runner.run(reward, items)
        faults = sum(isinstance(outcome, ScoringFailure) for outcome in outcomes)
        log = columns.get("log_metric")
        if log is not None and outcomes:
            log(f"{reward.short_name}/faults", faults / len(outcomes))
        return [
            None if isinstance(outcome, ScoringFailure) else outcome.score for outcome in outcomes
        ]

    judge.__name__ = reward.short_name  # TRL's name for it in logs
    return judge


def _completion(text: str, asked: str, form: Template, tokens: Sequence[int]) -> Completion:
    prefix = THINK_OPEN if asked.rstrip().endswith(THINK_OPEN) else ""
    read = replace(form, prefix=prefix).read(text)
    return Completion(
        token_ids=tuple(tokens),
        text=text,
        finish_reason="stop",
        weight_version=0,
        prefix=prefix,
        thinking=read.thinking,
        answer=read.answer,
    )


def _text(prompt: Any) -> str:
    """A prompt as text: itself, or what its messages say."""
    if isinstance(prompt, str):
        return prompt
    return "\n".join(str(message["content"]) for message in prompt)


def _last(completion: Any) -> str:
    """What the model wrote: the text, or the content of the last message."""
    if isinstance(completion, str):
        return completion
    return str(completion[-1]["content"]) if completion else ""
