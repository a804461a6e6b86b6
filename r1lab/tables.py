"""Tables of problems: the rows of a .jsonl or .parquet file, every cell checked as it is read.

Nothing here imports torch.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any

from r1lab.hints import missing, nearest

TABLES = (".jsonl", ".parquet")

Row = dict[str, Any]


def read_table(path: Path) -> Iterator[tuple[int, Row]]:
    """Rows with their numbers, from 1 (lines of a .jsonl file); ValueError says what is wrong."""
    if not path.is_file():
        raise ValueError(f"{path} is a folder" if path.is_dir() else missing(path))
    return _read_jsonl(path) if path.suffix == ".jsonl" else _read_parquet(path)


def place_of(path: Path, number: int) -> str:
    """`problems.jsonl, line 3`: where a row stands, for a message."""
    return f"{path}, {'line' if path.suffix == '.jsonl' else 'row'} {number}"


def text_of(row: Mapping[str, Any], column: str, place: str) -> str:
    """The text or number in a column, as text; ValueError for anything else.

    Lists, objects, true and null are refused rather than spelt out: a model would be asked, and
    answers judged, by Python's spelling of them.
    """
    if column not in row:
        raise ValueError(
            f"{place}: no column {column!r}{nearest(column, row)}; it has "
            f"{', '.join(row) or 'none'}; map them with options.columns"
        )
    value = row[column]
    is_number = isinstance(value, int | float | Decimal) and not isinstance(value, bool)
    if is_number and math.isfinite(value):
        return str(value)
    if not isinstance(value, str):
        shown = json.dumps(value, default=str)[:40]
        raise ValueError(f"{place}: {column} is {shown}, and must be text or a number")
    if not value.strip():
        raise ValueError(f"{place}: {column} is empty; leave the row out")
    if not value.isascii() and any("\ud800" <= sign <= "\udfff" for sign in value):
        raise ValueError(f"{place}: {column} holds half a character (\\ud800...); mend its escapes")
    return value


def _read_jsonl(path: Path) -> Iterator[tuple[int, Row]]:
    number = 0
    try:
        with path.open(encoding="utf-8-sig") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    yield number, _parse_line(line, place_of(path, number))
    except UnicodeDecodeError:
        raise ValueError(f"{path}: not UTF-8 text behind line {number}; save it as UTF-8") from None


def _parse_line(line: str, place: str) -> Row:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        whole = "; a .jsonl file holds one object a line" if line.strip() in ("[", "{") else ""
        raise ValueError(f"{place}: not JSON: {error}{whole}") from None
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, deep nesting
        raise ValueError(f"{place}: not JSON that can be read: {error}") from None
    if not isinstance(row, dict):
        raise ValueError(f"{place}: not an object with named columns")
    return row


def _read_parquet(path: Path) -> Iterator[tuple[int, Row]]:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError:
        raise ValueError(f"{path}: reading Parquet needs pyarrow: pip install pyarrow") from None
    try:
        table = parquet.read_table(path)
    except (ArrowException, OSError) as error:
        raise ValueError(f"{path}: not Parquet: {error}") from None
    yield from enumerate(table.to_pylist(), start=1)
