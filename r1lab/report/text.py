"""Model text in a terminal: hostile until it is cleaned."""

from __future__ import annotations

import unicodedata

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
