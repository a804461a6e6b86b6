"""Context limits: prompts, responses, and the words that a tokenizer knows.

Pure functions over token ids, so that a dry run, which reads only tokenizer.json, reports the same
as a run with its full tokenizer. This module does not import torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from r1lab.prompts import Encode, Template
from r1lab.types import Problem, RecipeError

if TYPE_CHECKING:
    from r1lab.config.recipe import ProblemSettings


Keep = Callable[[Problem], bool]

# Names of the number of positions in config.json, by family.
_POSITIONS = ("max_position_embeddings", "n_positions", "max_sequence_length", "max_seq_len")
_SPECIALS = 16  # upper bound of the tokens that a tokenizer adds around a prompt
_NOTICED = 0.01  # share of unknown tokens that deserves a warning


def context_limit(values: Mapping[str, Any], max_model_len: int | None) -> int | None:
    """Return the limit of prompt and response in tokens: the recipe's, else that of config.json.

    None if neither sets one. Raises RecipeError if the recipe exceeds the model's positions.
    """
    allowed = positions(values)
    if allowed is None:
        return max_model_len
    if max_model_len is not None and max_model_len > allowed:
        raise RecipeError(
            f"sampling.max_model_len: {max_model_len} is more than the {allowed} positions of the "
            f"model (max_position_embeddings); set at most {allowed}, or null for all"
        )
    return max_model_len or allowed


def positions(values: Mapping[str, Any]) -> int | None:
    """Return the number of positions in a model's config.json; None if it names none."""
    numbers = (values.get(name) for name in _POSITIONS)
    return next((n for n in numbers if isinstance(n, int) and not isinstance(n, bool)), None)


def fits(text: str, encode: Encode, room: int) -> bool:
    """Return whether a prompt has at most `room` tokens.

    ASCII text never has more tokens than characters, so short prompts of a long table pass without
    being encoded.
    """
    return (text.isascii() and len(text) + _SPECIALS <= room) or len(encode(text)) <= room


def keeps_what_fits(
    settings: ProblemSettings, template: Template, encode: Encode, *, max_tokens: int, limit: int
) -> Keep | None:
    """Return the filter of `problems.leave_out_long` for tables; None if not set."""
    if not settings.leave_out_long:
        return None
    return lambda problem: fits(template.prompt(problem.question), encode, limit - max_tokens)


def check_max_tokens(max_tokens: int, limit: int) -> None:
    """Reject responses that would fill the context on their own; raises RecipeError."""
    if max_tokens >= limit:
        raise RecipeError(
            f"sampling.max_tokens: {max_tokens} leaves no room for a prompt in the model's "
            f"{limit} tokens of context; lower it"
        )


def check_fit(
    problems: Sequence[Problem],
    prompts: Sequence[Sequence[int]],
    *,
    max_tokens: int,
    limit: int,
    allowed: int | None = None,
) -> None:
    """Reject prompts that leave no room for a response; RecipeError names the longest.

    `allowed` is the model's number of positions, if known: the message suggests no more.
    """
    if not prompts:
        return
    longest = max(range(len(prompts)), key=lambda i: len(prompts[i]))
    length = len(prompts[longest])
    needed = length + max_tokens
    if needed > limit:
        raised = f"raise it to {needed}, " if needed <= (allowed or limit) else ""
        lowered = f"lower max_tokens to {limit - length}, or " if length < limit else ""
        raise RecipeError(
            f"sampling.max_model_len: {limit} is too short for problem {problems[longest].id}: "
            f"its prompt has {length} tokens, and sampling.max_tokens asks for {max_tokens} more; "
            f"{raised}{lowered}leave the problem out (--problems.leave_out_long true leaves out "
            "all such rows of tables)"
        )


def encode_all(problems: Iterable[Problem], template: Template, encode: Encode) -> list[Any]:
    """Return the token ids of each problem's prompt."""
    return [encode(template.prompt(problem.question)) for problem in problems]


def unknown_words(
    problems: Sequence[Problem], encode: Encode, unknown: int | None
) -> tuple[float, list[str]]:
    """Return (share of unknown tokens, words that contain them) of questions and answers.

    Words are separated by white space, each listed once, in order.
    """
    if unknown is None:
        return 0.0, []
    words: dict[str, None] = {}
    num_unknown = num_tokens = 0
    for problem in problems:
        for word in f"{problem.question} {problem.answer}".split():
            ids = list(encode(word))
            num_tokens += len(ids)
            if unknown in ids:
                num_unknown += ids.count(unknown)
                words[word] = None
    return num_unknown / max(num_tokens, 1), list(words)


def unknown_warning(path: str, share: float, words: Sequence[str]) -> str | None:
    """Return a warning about unknown words; None if there are almost none."""
    if share < _NOTICED:
        return None
    shown = ", ".join(repr(word) for word in words[:4])
    return (
        f"model.path: the tokenizer of {path!r} does not know {share:.0%} of the problems' words "
        f"({shown}{', ...' if len(words) > 4 else ''}): the model sees one and the same token for "
        "all of them; use another base, or problems in its vocabulary"
    )
