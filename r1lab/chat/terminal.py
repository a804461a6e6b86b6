"""The conversation: questions in, answers out, thinking shown, dimmed or hidden.

In a terminal one line is one question; `/thinking`, or Ctrl-T, switches how thinking is shown;
Ctrl-C stops an answer, Ctrl-D leaves. Where input or output is no terminal, each line of the input
is a question and each answer ends its line; thinking, if shown, is in its tags.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, Literal, TextIO

from r1lab.chat.backends import Speaker
from r1lab.hints import nearest
from r1lab.prompts import THINK_CLOSE, THINK_OPEN
from r1lab.report.text import printable
from r1lab.types import R1labError

Thinking = Literal["show", "dim", "hide"]

MODES: tuple[Thinking, ...] = ("show", "dim", "hide")
_DIM, _PLAIN = "\x1b[2m", "\x1b[0m"
_HELP = """\
  /thinking [show|dim|hide]   how thinking is shown; alone, or Ctrl-T: the next way
  /help                       this
  Ctrl-C stops an answer, Ctrl-D leaves. Every question stands alone."""


def converse(speaker: Speaker, thinking: Thinking | None, title: str) -> None:
    """Talk until the input ends; `thinking` None: dimmed in a terminal, hidden elsewhere."""
    if sys.stdin.isatty() and sys.stdout.isatty():
        _Conversation(speaker, thinking or "dim").run(title)
    else:
        _answer_lines(speaker, thinking or "hide", sys.stdin, sys.stdout)


def _answer_lines(speaker: Speaker, thinking: Thinking, lines: TextIO, out: TextIO) -> None:
    """A question a line in, its answer out; what cannot be answered is said on standard error."""
    for line in lines:
        question = line.strip()
        if not question:
            continue
        if lost := speaker.unknown_words(question):
            _warn(_unknown(lost))
        inside = begun = False
        try:
            for piece in speaker.answer(question):
                if piece.thinking and thinking != "hide":
                    out.write(piece.thinking if inside else f"{THINK_OPEN} {piece.thinking}")
                    inside = True
                if piece.content:
                    out.write(f" {THINK_CLOSE} {piece.content}" if inside else piece.content)
                    inside, begun = False, True
                out.flush()
        except R1labError as error:
            _warn(str(error))
        out.write("\n")
        out.flush()
        if speaker.ended == "length":
            what = "the answer" if begun else "the thinking"
            _warn(f"{what} was cut off (--max-tokens, or the model's context)")


class _Conversation:
    """One at the terminal. What the model writes is cleaned: it must not steer it."""

    def __init__(self, speaker: Speaker, thinking: Thinking) -> None:
        self._speaker, self._thinking = speaker, thinking
        self._dims = os.environ.get("TERM", "dumb") != "dumb" and "NO_COLOR" not in os.environ

    def run(self, title: str) -> None:
        self._say(f"{title}; thinking: {self._thinking} (Ctrl-T). /help says more.")
        _bind_keys()
        while True:
            try:
                line = input("> ").strip()
            except EOFError:
                self._write("\n")
                return
            except KeyboardInterrupt:  # at the prompt: the line is given up
                self._write("\n")
                continue
            if line.startswith("/"):
                self._command(line)
            elif line:
                self._ask(line)

    def _command(self, line: str) -> None:
        name, *words = line.split()
        if name == "/help":
            self._write(f"{_HELP}\n")
        elif name == "/thinking" and (not words or words[0] in MODES):
            following = MODES[(MODES.index(self._thinking) + 1) % len(MODES)]
            self._thinking = words[0] if words else following  # type: ignore[assignment]
            self._say(f"thinking: {self._thinking}")
        elif name == "/thinking":
            self._say(f"/thinking {printable(words[0])}: one of {', '.join(MODES)}")
        else:
            known = ("/thinking", "/help")
            self._say(f"{printable(name)} is no command{nearest(name, known)}; /help lists them")

    def _ask(self, question: str) -> None:
        if lost := self._speaker.unknown_words(question):
            self._say(_unknown(lost))
        pieces = self._speaker.answer(question)
        stopped = False
        try:
            with _first_ctrl_c() as pressed:
                stopped = self._show(pieces, pressed)
        except R1labError as error:
            self._say(printable(str(error)))
            return
        except KeyboardInterrupt:  # pressed again while nothing came
            stopped = True
        finally:
            pieces.close()
        if stopped:
            self._say("[stopped]")
        elif self._speaker.ended == "length":
            self._say("[cut off: --max-tokens, or the model's context]")

    def _show(self, pieces: Iterator[Any], pressed: list[int]) -> bool:
        """Write the pieces as they come; whether Ctrl-C stopped them."""
        thought = content = False
        for piece in pieces:
            if pressed:
                break
            if piece.thinking:
                if self._thinking == "hide" and not thought:
                    self._write(self._dimmed("(thinking)"))
                elif self._thinking != "hide":
                    text = printable(piece.thinking)
                    self._write(self._dimmed(text) if self._thinking == "dim" else text)
                thought = True
            if piece.content:
                if thought and not content:
                    self._write("\n")
                self._write(printable(piece.content))
                content = True
        self._write("\n")
        return bool(pressed)

    def _say(self, text: str) -> None:
        """Print a message of the program."""
        self._write(f"{self._dimmed(text)}\n")

    def _dimmed(self, text: str) -> str:
        return f"{_DIM}{text}{_PLAIN}" if self._dims else text

    def _write(self, text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()


@contextmanager
def _first_ctrl_c() -> Iterator[list[int]]:
    """Inside, the first Ctrl-C is noted in the list, and the next one interrupts.

    An engine that is interrupted in the middle of a step is of no use afterwards.
    """
    pressed: list[int] = []

    def note(number: int, frame: Any) -> None:
        if pressed:
            raise KeyboardInterrupt
        pressed.append(number)

    before = signal.signal(signal.SIGINT, note)
    try:
        yield pressed
    finally:
        signal.signal(signal.SIGINT, before)


def _bind_keys() -> None:
    """Lines that can be edited and come again; Ctrl-T types the command in their place."""
    with suppress(ImportError):  # a Python without readline has plain lines
        import readline

        readline.parse_and_bind(r'"\C-t": "\C-a\C-k/thinking\n"')


def _unknown(words: list[str]) -> str:
    shown = ", ".join(printable(word) for word in words[:5])
    more = f" and {len(words) - 5} more" if len(words) > 5 else ""
    return f"not in the model's vocabulary, so it does not see them: {shown}{more}"


def _warn(text: str) -> None:
    print(f"r1lab: {text}", file=sys.stderr, flush=True)
