"""What fits the context: prompts, responses, and the words that a tokenizer knows.

Pure functions over token ids, so that the same words are said by a dry run, which reads
tokenizer.json alone, and by a run with its whole tokenizer. Nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from r1lab.prompts import Encode, Template
from r1lab.types import Problem, RecipeError

if TYPE_CHECKING:
    from r1lab.config.recipe import ProblemSettings


Keep = Callable[[Problem], bool]

# What config.json calls the positions of a model, by family.
_POSITIONS = ("max_position_embeddings", "n_positions", "max_sequence_length", "max_seq_len")
_SPECIALS = 16  # tokens that a tokenizer may put around a prompt, and more
_NOTICED = 0.01  # of the tokens: as many unknown ones are worth a word


def context_limit(values: Mapping[str, Any], max_model_len: int | None) -> int | None:
    """Tokens of prompt and response together: the recipe's, else what config.json allows.

    None where neither says. Raises RecipeError where the recipe asks for more than the model has.
    """
    allowed = positions(values)
    if allowed is None:
        return max_model_len
    if max_model_len is not None and max_model_len > allowed:
        raise RecipeError(
            f"sampling.max_model_len: {max_model_len} is more than the {allowed} positions of the "
            f"model (max_position_embeddings); take at most {allowed}, or null for all"
        )
    return max_model_len or allowed


def positions(values: Mapping[str, Any]) -> int | None:
    """The most tokens that a model has positions for, by its config.json; None: it names none."""
    found = (values.get(name) for name in _POSITIONS)
    return next((n for n in found if isinstance(n, int) and not isinstance(n, bool)), None)


def fits(text: str, encode: Encode, room: int) -> bool:
    """Whether a prompt has at most `room` tokens.

    Plain ASCII never has more tokens than letters, so that short ones of a long table are passed
    without being encoded.
    """
    return (text.isascii() and len(text) + _SPECIALS <= room) or len(encode(text)) <= room


def keeps_what_fits(
    settings: ProblemSettings, template: Template, encode: Encode, *, max_tokens: int, limit: int
) -> Keep | None:
    """What `problems.leave_out_long` keeps of tables; None where it is not asked for."""
    if not settings.leave_out_long:
        return None
    return lambda problem: fits(template.prompt(problem.question), encode, limit - max_tokens)


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
    allowed: int | None = None,
) -> None:
    """Refuse prompts that leave no room for a response; RecipeError names the longest.

    `allowed`: the positions of the model, where they are known: no more is advised.
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
