"""Text for a terminal or a pipe: what a model wrote is hostile until it is cleaned, and whoever
reads may go away.
"""

from __future__ import annotations

import os
import sys
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO

# Cc: control characters (escape sequences start with one); Cf: format characters, among them those
# that turn the direction of writing; Cs: lone surrogates; Co, Cn: private and unassigned.
_UNSAFE = frozenset({"Cc", "Cf", "Cs", "Co", "Cn"})
_KEPT = frozenset("\n\t")


def printable(text: str) -> str:
    """The text with every character that could steer a terminal made visible.

    Control characters become their pictures (U+2400 and on: an escape shows as ␛), other unsafe
    ones U+FFFD. Line feeds and tabs stay.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(_safe(character) for character in text)


def _safe(character: str) -> str:
    if character in _KEPT or unicodedata.category(character) not in _UNSAFE:
        return character
    code = ord(character)
    if code < 0x20:
        return chr(0x2400 + code)
    return "\u2421" if code == 0x7F else "\ufffd"


class GuardedStream:
    """A stream for work that does not depend on being read: what cannot be written is dropped."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write, or drop, the text; its length."""
        try:
            return self._stream.write(text)
        except UnicodeEncodeError:
            encoding = self._stream.encoding
            self._stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
        except (OSError, ValueError):  # a ValueError where the stream was closed
            discard(self._stream)
        return len(text)

    def flush(self) -> None:
        """Write, or drop, what is waiting."""
        try:
            self._stream.flush()
        except (OSError, ValueError):
            discard(self._stream)


def discard(stream: TextIO) -> None:
    """From here on lead all that is written to a stream to nowhere.

    By the descriptor: libraries write past the stream, and what waits in its buffer would fail
    again when Python ends, with an exit code of its own.
    """
    with suppress(OSError, ValueError):  # a stream that has no descriptor is nobody's to flush
        descriptor = os.open(os.devnull, os.O_WRONLY)
        os.dup2(descriptor, stream.fileno())
        os.close(descriptor)


def open_standard_streams() -> None:
    """Open the standard streams that this process was started without (`>&-`).

    Else the next file that is opened, a checkpoint maybe, gets the number of standard output, and
    everything that a library prints.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest number that is free, this one
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115 - open until the end


@contextmanager
def guarded_output(*, stdout: bool = True) -> Iterator[None]:
    """While inside, nothing fails because standard error (and `stdout`) cannot be written."""
    before = sys.stdout, sys.stderr
    sys.stderr = GuardedStream(sys.stderr)
    if stdout:
        sys.stdout = GuardedStream(sys.stdout)
    try:
        yield
    finally:
        sys.stdout.flush() if stdout else None
        sys.stderr.flush()
        sys.stdout, sys.stderr = before
