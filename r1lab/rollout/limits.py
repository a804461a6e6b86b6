"""What fits the context: prompts, responses, and the words that a tokenizer knows.

Pure functions over token ids, so that the same words are said by a dry run, which reads
tokenizer.json alone, and by a run with its whole tokenizer. Nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from r1lab.prompts import Template
from r1lab.types import Problem, RecipeError

Encode = Callable[[str], Sequence[int]]

_NOTICED = 0.01  # of the tokens: as many unknown ones are worth a word


def context_limit(values: Mapping[str, Any], max_model_len: int | None) -> int | None:
    """Tokens of prompt and response together: the recipe's, else what config.json allows.

    None where neither says. Raises RecipeError where the recipe asks for more than the model has.
    """
    allowed = values.get("max_position_embeddings")
    if not isinstance(allowed, int) or isinstance(allowed, bool):
        return max_model_len
    if max_model_len is not None and max_model_len > allowed:
        raise RecipeError(
            f"sampling.max_model_len: {max_model_len} is more than the {allowed} positions of the "
            f"model (max_position_embeddings); take at most {allowed}, or null for all"
        )
    return max_model_len or allowed


def check_max_tokens(max_tokens: int, limit: int) -> None:
    """Refuse responses that would fill the context alone; raises RecipeError."""
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
) -> None:
    """Refuse prompts that leave no room for a response; RecipeError names the longest."""
    if not prompts:
        return
    longest = max(range(len(prompts)), key=lambda i: len(prompts[i]))
    needed = len(prompts[longest]) + max_tokens
    if needed > limit:
        raise RecipeError(
            f"sampling.max_model_len: {limit} is too short for problem {problems[longest].id}: "
            f"its prompt has {len(prompts[longest])} tokens, and sampling.max_tokens asks for "
            f"{max_tokens} more; raise it to {needed}, lower max_tokens, or leave the problem out"
        )


def encode_all(problems: Iterable[Problem], template: Template, encode: Encode) -> list[Any]:
    """The token ids of each problem's prompt."""
    return [encode(template.prompt(problem.question)) for problem in problems]


def unknown_words(
    problems: Sequence[Problem], encode: Encode, unknown: int | None
) -> tuple[float, list[str]]:
    """(share of unknown tokens, the words with them) in the questions and answers.

    Words are what white space parts, each once, in order.
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
    """What to say about unknown words; None where there are next to none."""
    if share < _NOTICED:
        return None
    shown = ", ".join(repr(word) for word in words[:4])
    return (
        f"model.path: the tokenizer of {path!r} does not know {share:.0%} of the problems' words "
        f"({shown}{', ...' if len(words) > 4 else ''}): the model sees one and the same token for "
        "all of them; take another base, or problems in its words"
    )
