"""Prompt templates, and reading a response back into its thinking and its answer.

Source of the form: DeepSeek-R1 (arXiv 2501.12948), Table 1: the model thinks inside
<think> </think> and then answers inside <answer> </answer>. Written down here once:

* Well-formed: over the template's prefix and the completion together, one thinking part opened and
  closed, then one answer part, and nothing but white space before, between and after. An empty
  thinking part is well-formed: the reward must not pay for length.
* The answer is read from after the thinking part only: from the last terminated answer tag behind
  the last `</think>`. No closed thinking part, or no terminated answer tag behind it: no answer.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

THINK_OPEN, THINK_CLOSE = "<think>", "</think>"
ANSWER_OPEN, ANSWER_CLOSE = "<answer>", "</answer>"
TAGS = (THINK_OPEN, THINK_CLOSE, ANSWER_OPEN, ANSWER_CLOSE)

# Deliberately linear: no nested quantifiers, because model output is hostile input.
_WELL_FORMED = re.compile(
    r"\s*<think>(?P<thinking>.*?)</think>\s*<answer>(?P<answer>.*?)</answer>\s*", re.DOTALL
)


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


@dataclass(frozen=True, slots=True)
class Template:
    """A prompt: `text` with {question} in it, ending in `prefix`, the start of the response."""

    name: str
    text: str
    prefix: str

    def prompt(self, question: str) -> str:
        """The prompt for a question, the response's prefix at its end."""
        # Not str.format: a question may hold braces of its own (LaTeX).
        return self.text.replace("{question}", question) + self.prefix

    def read(self, completion_text: str) -> Response:
        """Take the completion apart, read together with the prefix that stands in the prompt."""
        return read_response(self.prefix + completion_text)


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
        # The question alone, for models that are to find the form by themselves.
        Template("plain", "{question}\n", ""),
    )
}
