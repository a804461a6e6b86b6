"""Docstrings as they are laid out: lists of names with aligned meanings stay aligned on the site.

Called by mkdocstrings (mkdocs.yml). A paragraph's lines from the first one with a gap of two spaces
or more inside, to the paragraph's end, become a block of plain text.
"""

from __future__ import annotations

import re
from typing import Any

import griffe

_GAP = re.compile(r"\S {2,}\S")


class Layout(griffe.Extension):
    """Rewrites each docstring once, when its object has been read."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """See griffe.Extension."""
        if obj.docstring is not None and not obj.is_alias:
            obj.docstring.value = laid_out(obj.docstring.value)


def laid_out(text: str) -> str:
    """The text with its aligned parts fenced."""
    return "\n\n".join(map(_paragraph, re.split(r"\n{2,}", text)))


def _paragraph(text: str) -> str:
    lines = text.split("\n")
    first = next((n for n, line in enumerate(lines) if _GAP.search(line)), None)
    if first is None or text.lstrip().startswith("```"):
        return text
    if first and lines[first].startswith("    ") and _GAP.search(lines[first]):
        while first > 1 and lines[first - 1].startswith("    "):
            first -= 1  # a list's earlier entries
    indent = min(len(line) - len(line.lstrip()) for line in lines[first:])
    block = "\n".join(line[indent:] for line in lines[first:])
    before = "\n".join(lines[:first])
    return f"{before}\n\n```text\n{block}\n```" if before else f"```text\n{block}\n```"
