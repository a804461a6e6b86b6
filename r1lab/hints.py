"""Words for errors: the nearest match to a misspelt name."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path


def nearest(word: str, words: Iterable[str]) -> str:
    """' (did you mean ...?)' when one of the words is close to this one, else ''."""
    by_lower = {candidate.lower(): candidate for candidate in words}
    match = difflib.get_close_matches(word.lower(), by_lower, n=1, cutoff=0.6)
    return f" (did you mean {by_lower[match[0]]!r}?)" if match else ""


def missing(path: Path, *, what: str = "file") -> str:
    """'no file X', with the nearest name in its folder, or the first folder that is missing."""
    parent = path.parent
    if not parent.is_dir():
        return f"no {what} {path} (there is no folder {parent})"
    fits = Path.is_dir if what == "folder" else Path.is_file
    names = [entry.name for entry in parent.iterdir() if fits(entry)]
    match = difflib.get_close_matches(path.name, names, n=1)
    hint = f" (did you mean {str(parent / match[0])!r}?)" if match else ""
    return f"no {what} {path} (from {Path.cwd()}){hint}"
