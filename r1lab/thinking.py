"""Taking thinking and answer apart while a response is still being written.

`prompts.read_response` judges whole responses; this shows them as they come. The thinking part
ends at the first `</think>`, and what stands behind it is content, answer tags and all. White space
around the thinking and before the content belongs to neither. The parts of a response come out the
same however it is cut into pieces.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from r1lab.prompts import THINK_CLOSE, THINK_OPEN


@dataclass(frozen=True, slots=True)
class StreamDelta:
    """What a piece of text brought: more of the thinking, then more of the content."""

    thinking: str = ""
    content: str = ""


class ThinkingSplitter:
    """Takes one response apart, piece by piece.

    `opened`: the prompt ends in `<think>`, so the response begins inside the thinking part. Else
    there is one only where the response itself begins with the tag.
    """

    def __init__(self, *, opened: bool) -> None:
        self._part: Literal["begin", "thinking", "between", "content"]
        self._part = "thinking" if opened else "begin"
        self._held = ""  # what may yet be a tag, or white space at the end of a part
        self._begun = False  # whether any thinking came out

    @property
    def in_content(self) -> bool:
        """Whether the content has begun; nothing is held back from then on."""
        return self._part == "content"

    def feed(self, text: str) -> StreamDelta:
        """Take the next piece of the response."""
        self._held += text
        if self._part == "begin":
            self._begin()
        thinking = self._think() if self._part == "thinking" else ""
        if self._part == "between" and (rest := self._held.lstrip()):
            self._part, self._held = "content", rest
        content = ""
        if self._part == "content":
            content, self._held = self._held, ""
        return StreamDelta(thinking, content)

    def finish(self) -> StreamDelta:
        """The response has ended: what was held back was no tag."""
        rest, self._held = self._held.rstrip(), ""
        if self._part == "thinking":
            return StreamDelta(thinking=rest if self._begun else rest.lstrip())
        return StreamDelta(content=rest.lstrip())

    def _begin(self) -> None:
        self._held = self._held.lstrip()
        if self._held.startswith(THINK_OPEN):
            self._part, self._held = "thinking", self._held.removeprefix(THINK_OPEN)
        elif not THINK_OPEN.startswith(self._held):
            self._part = "content"

    def _think(self) -> str:
        thought, closed, rest = self._held.partition(THINK_CLOSE)
        if closed:
            self._part, self._held = "between", rest
            thought = thought.rstrip()
        else:
            thought, self._held = _before_tag(self._held)
        if not self._begun:
            thought = thought.lstrip()
            self._begun = bool(thought)
        return thought


def split_thinking(response: str, *, opened: bool) -> StreamDelta:
    """A whole response, taken apart."""
    splitter = ThinkingSplitter(opened=opened)
    first, last = splitter.feed(response), splitter.finish()
    return StreamDelta(first.thinking + last.thinking, first.content + last.content)


def _before_tag(text: str) -> tuple[str, str]:
    """The text, and the end of it that may go on to `</think>`, with the white space before."""
    for length in range(min(len(THINK_CLOSE) - 1, len(text)), -1, -1):
        if text.endswith(THINK_CLOSE[:length]):
            break
    kept = text[: len(text) - length].rstrip()
    return kept, text[len(kept) :]
