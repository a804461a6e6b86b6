"""Choose a prompt: the template of training, the chat template, or few-shot examples."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from r1lab.evaluate.suites import Suite, few_shots, solved
from r1lab.evaluate.target import Target
from r1lab.hints import nearest
from r1lab.lineage import read_lineage
from r1lab.prompts import TEMPLATES, THINK_OPEN, AnswerPlace, Encode, Template
from r1lab.types import Problem, R1labError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CHAT, FEW_SHOT, AUTO = "chat", "few-shot", "auto"
_ASKED_FOR = {
    "box": "Please reason step by step, and put your final answer within \\boxed{}.",
    "whole": "Please reason step by step, and put your final answer within \\boxed{}.",
    "tags": "Please reason step by step inside <think> </think>, and put your final answer inside "
    "<answer> </answer>.",
}


def choose_template(
    name: str, tokenizer: PreTrainedTokenizerBase | None, suite: Suite, shots: int, seed: int
) -> Template:
    """Return the template named `name`; `auto` inspects the tokenizer (None: a server's).

    auto: the model's chat template where it has one, else `compact` for a tokenizer that does not
    know the words of R1-Zero's prompt, else that prompt. `shots` solved problems make it few-shot.
    """
    if shots:
        if name not in (AUTO, FEW_SHOT):
            raise R1labError(f"--shots: examples have a template of their own, not {name!r}")
        return few_shot_template(suite, shots, seed=seed)
    if name == FEW_SHOT:
        raise R1labError("--template few-shot: give the number of examples with --shots")
    if name == AUTO:
        name = _fitting(tokenizer)
    if name == CHAT:
        return chat_template(tokenizer, suite.answer_in)
    if name not in TEMPLATES:
        known = (AUTO, CHAT, FEW_SHOT, *TEMPLATES)
        raise R1labError(
            f"--template: {name!r} is not one of {', '.join(known)}{nearest(name, known)}"
        )
    return TEMPLATES[name]


def template_name(
    name: str, target: Target, folder: Path, tokenizer: PreTrainedTokenizerBase
) -> str:
    """The name of the prompt that a model is asked with; `auto`: the one that it was trained with.

    That is its recipe's, or that of its lineage record; else its own
    chat template; else the one whose words its tokenizer knows. Raises R1labError.
    """
    if name == AUTO and target.recipe is not None:
        return target.recipe.template
    if name == AUTO:
        record = read_lineage(folder)
        return (record.template if record else None) or _fitting(tokenizer)
    if name not in (CHAT, *TEMPLATES):
        known = (AUTO, CHAT, *TEMPLATES)
        raise R1labError(
            f"--template: {name!r} is not one of {', '.join(known)}{nearest(name, known)}"
        )
    if name == CHAT:
        _check_chat(tokenizer)
    return name


def chat_template(tokenizer: PreTrainedTokenizerBase | None, place: AnswerPlace) -> Template:
    """One user's message in the tokenizer's own chat template, as text with {question} in it.

    Without a tokenizer the message alone: the server has the template.
    """
    message = "{question}\n\n" + _ASKED_FOR[place]
    if tokenizer is None:
        return Template(CHAT, message, "", place, message=message)
    _check_chat(tokenizer)
    rendered = tokenizer.apply_chat_template(
        [{"role": "user", "content": message}], tokenize=False, add_generation_prompt=True
    )
    text = str(rendered)
    # Some templates open the thinking part themselves.
    _, opened, tail = text.rpartition(THINK_OPEN)
    prefix = opened + tail if opened and not tail.strip() else ""
    return Template(CHAT, text.removesuffix(prefix), prefix, place, message=message)


def few_shot_template(suite: Suite, num: int, *, seed: int) -> Template:
    """`num` solved problems before the question. A response ends where the next question begins."""
    examples = few_shots(suite, num, seed=seed, form="words")
    shown = "".join(f"Question: {p.question}\nAnswer: {solved(p)}\n\n" for p in examples)
    text = shown + "Question: {question}\nAnswer:"
    if text.count("{question}") != 1:
        raise R1labError("--shots: an example holds the text {question}; take another --seed")
    return Template(FEW_SHOT, text, "", "whole", stop=("\nQuestion:",))


def form_of(template: Template) -> str:
    """Return the form of generated problems that fits a template."""
    return "compact" if template.name == "compact" else "words"


def prompt_encoder(tokenizer: PreTrainedTokenizerBase, template: Template) -> Encode:
    """Token ids of a prompt; a chat template writes its special tokens itself."""
    from r1lab.rollout.source import encode_prompt

    if template.name == CHAT:
        return lambda text: tuple(tokenizer(text, add_special_tokens=False)["input_ids"])
    return lambda text: encode_prompt(tokenizer, text)


def check_prompts(
    problems: Sequence[Problem],
    prompts: Sequence[Sequence[int]],
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    """Reject prompts with words unknown to the tokenizer: the model would not see them."""
    unknown = tokenizer.unk_token_id
    if unknown is None:
        return
    lost = [
        problem for problem, ids in zip(problems, prompts, strict=True) if unknown in tuple(ids)
    ]
    if lost:
        words = lost[0].question.split()
        word = next(
            (word for word in words if unknown in tokenizer(word)["input_ids"]), lost[0].question
        )
        raise R1labError(
            f"{len(lost)} of {len(problems)} prompts hold words that the model's tokenizer does "
            f"not know (first: {word!r:.40}); take another suite, template or model"
        )


def _check_chat(tokenizer: PreTrainedTokenizerBase) -> None:
    if not getattr(tokenizer, "chat_template", None):
        raise R1labError("--template chat: this model's tokenizer has no chat template")


def _fitting(tokenizer: PreTrainedTokenizerBase | None) -> str:
    if tokenizer is None or getattr(tokenizer, "chat_template", None):
        return CHAT
    words = tokenizer(TEMPLATES["r1-zero"].text)["input_ids"]
    unknown = tokenizer.unk_token_id
    return "compact" if unknown is not None and unknown in words else "r1-zero"
