"""Prompt templates, and reading a response back into its thinking and its answer.

Source of the form: DeepSeek-R1 (arXiv 2501.12948), Table 1: the model thinks inside
<think> </think> and then answers inside <answer> </answer>. Written down here once:

* Well-formed: over the template's prefix and the completion together, one thinking part opened and
  closed, then one answer part, and nothing but white space before, between and after. An empty
  thinking part is well-formed: the reward must not pay for length.
* The answer is read from after the thinking part only: from the last terminated answer tag behind
  the last `</think>`. No closed thinking part, or no terminated answer tag behind it: no answer.
* Models that were not trained to this form are read as they were asked (`Template.answer_in`): from
  the last terminated `\\boxed{}` behind the thinking, or from all that stands behind it. A thinking
  part that was opened and never closed holds no answer there either.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

Encode = Callable[[str], Sequence[int]]  # text -> token ids

THINK_OPEN, THINK_CLOSE = "<think>", "</think>"
ANSWER_OPEN, ANSWER_CLOSE = "<answer>", "</answer>"
TAGS = (THINK_OPEN, THINK_CLOSE, ANSWER_OPEN, ANSWER_CLOSE)

# Deliberately linear: no nested quantifiers, because model output is hostile input.
_WELL_FORMED = re.compile(
    r"\s*<think>(?P<thinking>.*?)</think>\s*<answer>(?P<answer>.*?)</answer>\s*", re.DOTALL
)
# `\\{` and `\\}` are no braces; any other backslash goes with the sign behind it.
_BRACES = re.compile(r"\\[^a-zA-Z]|[{}]")


@dataclass(frozen=True, slots=True)
class Response:
    """A response taken apart. `thinking` and `answer` are None where the part is missing."""

    thinking: str | None
    answer: str | None
    well_formed: bool


def read_response(response: str) -> Response:
    """Take a whole response (prefix and completion together) apart by the rules above."""
    well_formed = _WELL_FORMED.fullmatch(response) is not None and all(
        response.count(tag) == 1 for tag in TAGS
    )
    head, closed, tail = response.rpartition(THINK_CLOSE)
    if not closed:
        _, opened, rest = response.partition(THINK_OPEN)
        return Response(rest.strip() if opened else None, None, False)
    thinking = head.partition(THINK_OPEN)[2] if THINK_OPEN in head else head
    before, terminated, _ = tail.rpartition(ANSWER_CLOSE)
    _, opened, answer = before.rpartition(ANSWER_OPEN)
    found = answer.strip() if terminated and opened else None
    return Response(thinking.strip(), found, well_formed)


AnswerPlace = Literal["tags", "box", "whole"]


def read_plain(response: str, place: AnswerPlace) -> Response:
    """Take a response apart that has no answer tags; `place` is `box` or `whole`."""
    head, closed, tail = response.rpartition(THINK_CLOSE)
    if not closed and THINK_OPEN in response:
        return Response(response.partition(THINK_OPEN)[2].strip(), None, False)
    thinking = head.rpartition(THINK_OPEN)[2].strip() if closed else None
    answer = last_box(tail) if place == "box" else tail.strip()
    return Response(thinking, answer, answer is not None)


def last_box(text: str) -> str | None:
    """What the last terminated `\\boxed{...}` holds; None where there is none. One linear pass."""
    found: str | None = None
    open_at: list[int] = []
    for sign in _BRACES.finditer(text):
        if sign[0] == "{":
            open_at.append(sign.start())
        elif sign[0] == "}" and open_at:
            start = open_at.pop()
            if text.endswith("\\boxed", max(0, start - 6), start):
                found = text[start + 1 : sign.start()].strip()
    return found


@dataclass(frozen=True, slots=True)
class Template:
    """A prompt: `text` with {question} in it, ending in `prefix`, the start of the response.

    `answer_in` says where a response has its answer, `stop` what ends a response beside the end
    token: a base model that was shown solved problems goes on with problems of its own.
    `message` is what a user says in a chat, for a server that puts it into its own template.
    """

    name: str
    text: str
    prefix: str
    answer_in: AnswerPlace = "tags"
    stop: tuple[str, ...] = ()
    message: str | None = None

    def prompt(self, question: str) -> str:
        """The prompt for a question, the response's prefix at its end."""
        # Not str.format: a question may hold braces of its own (LaTeX).
        return self.text.replace("{question}", question) + self.prefix

    def read(self, completion_text: str) -> Response:
        """Take the completion apart, read together with the prefix that stands in the prompt."""
        whole = self.prefix + completion_text
        return (
            read_response(whole) if self.answer_in == "tags" else read_plain(whole, self.answer_in)
        )


TEMPLATES = {
    template.name: template
    for template in (
        # The small tokenizer's: every token counts on two cores.
        Template("compact", "User: {question} Assistant: ", THINK_OPEN),
        # DeepSeek-R1-Zero's contract in our own words (arXiv 2501.12948, Table 1).
        Template(
            "r1-zero",
            "Below is a conversation between User and Assistant. User asks a question and "
            "Assistant solves it. Assistant first works the solution out in its mind and then "
            "gives the answer. The work stands between <think> and </think> and the answer "
            "between <answer> and </answer>, like this: <think> the work </think> "
            "<answer> the answer </answer>. User: {question}. Assistant: ",
            THINK_OPEN,
        ),
        # What Qwen's mathematical models were trained with, which their bases know as well
        # (github.com/QwenLM/Qwen2.5-Math; arXiv 2503.20783 calls it the Qwen-Math template).
        Template(
            "qwen-math",
            "<|im_start|>system\nPlease reason step by step, and put your final answer within "
            "\\boxed{}.<|im_end|>\n<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n",
            "",
            answer_in="box",
        ),
        # ChatML without a system's message, the form of Qwen's and SmolLM2's chat templates; the
        # whole response is the answer, for questions that say so.
        Template(
            "chatml",
            "<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n",
            "",
            answer_in="whole",
        ),
        # The question alone, for models that are to find the form by themselves.
        Template("plain", "{question}\n", ""),
    )
}
