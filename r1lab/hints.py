"""Words for errors: the nearest match to a misspelt name, and what the user's own code raised."""

from __future__ import annotations

import difflib
import traceback
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


def raised(error: BaseException, own: str | None = None) -> str:
    """Describe an error in the user's code with its location: `mine.py, line 12: KeyError: 'x'`.

    The location is the last frame in the file `own`, or in any file outside Python and r1lab.
    """
    message = " ".join(str(error).split())[:300]
    text = f"{type(error).__name__}: {message}" if message else type(error).__name__
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}, line {error.lineno}: {text}"
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.filename == own or _is_users(frame.filename)
    ]
    return f"{frames[-1].filename}, line {frames[-1].lineno}: {text}" if frames else text


def _is_users(filename: str) -> bool:
    inside = filename.startswith((str(Path(__file__).parent), "<"))
    return not inside and "importlib" not in filename
