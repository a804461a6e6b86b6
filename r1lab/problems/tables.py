"""Tables of problems: the rows of a .jsonl or .parquet file, every cell checked as it is read.

A number becomes the shortest text that reads back equal in the type it was stored in: a float32
3.7 is `3.7`, and not the double of its bits, `3.700000047683716`; 3.0 is `3`, the decimal 3.70 is
`3.7`. JSON numbers are their exact decimal value: `1.0` is `1`, and digits that a double cannot
hold are kept. Nothing here imports torch.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from decimal import Context, Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard

from r1lab.hints import missing, nearest

if TYPE_CHECKING:
    from pyarrow import DataType, Table

TABLES = (".jsonl", ".parquet")

TableRow = dict[str, Any]

_LARGEST_DOCUMENT = 64 * 2**20  # bytes of a .jsonl file that are read again to see what it is
_LONGEST_PLAIN = 40  # digits of a number before or after its point; longer ones get an exponent


def read_table(path: Path) -> Iterator[tuple[int, TableRow]]:
    """Rows with their numbers, from 1 (lines of a .jsonl file); ValueError says what is wrong."""
    if not path.is_file():
        raise ValueError(no_table(path))
    return _read_jsonl(path) if path.suffix == ".jsonl" else _read_parquet(path)


def no_table(path: Path) -> str:
    """Why `path` is no table that can be read, and what to do about it."""
    if not path.is_dir():
        pattern = (
            "; a pattern is not expanded: name one file" if set("*?[") & set(path.name) else ""
        )
        return f"{missing(path)}{pattern}"
    found = sorted(file for suffix in TABLES for file in path.rglob(f"*{suffix}"))
    if not found:
        return f"{path} is a folder without a {' or '.join(TABLES)} file"
    if len(found) == 1:
        return f"{path} is a folder; name the table in it, {found[0]}"
    return (
        f"{path} is a folder of {len(found)} tables ({found[0].relative_to(path)}, ...), and one "
        "file is read; name each as a source of its own, or join them (docs/rewards.md, Shards)"
    )


def rows_of(table: Table) -> Iterator[tuple[int, TableRow]]:
    """The rows of an Arrow table as Python values, with their numbers from 1."""
    columns = [
        [_widened(value, column.type) for value in column.to_pylist()]
        if _holds_narrow(column.type)
        else column.to_pylist()
        for column in table.columns
    ]
    cells = zip(*columns, strict=True) if columns else iter([()] * table.num_rows)
    for number, row in enumerate(cells, start=1):
        yield number, dict(zip(table.column_names, row, strict=True))


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
    if is_number(value) and is_finite(value):
        return number_text(value)
    if not isinstance(value, str):
        shown = json.dumps(value, default=str)[:40]
        raise ValueError(f"{place}: {column} is {shown}, and must be text or a number")
    if not value.strip():
        raise ValueError(f"{place}: {column} is empty; leave the row out")
    if not value.isascii() and any("\ud800" <= sign <= "\udfff" for sign in value):
        raise ValueError(f"{place}: {column} holds half a character (\\ud800...); fix its escapes")
    return value


def is_number(value: object) -> TypeGuard[float | Decimal]:
    """Whether a cell holds a number; true and false are none."""
    return isinstance(value, int | float | Decimal) and not isinstance(value, bool)


def is_finite(value: float | Decimal) -> bool:
    """Whether a number is one; a Decimal may be larger than any float."""
    return value.is_finite() if isinstance(value, Decimal) else math.isfinite(value)


def number_text(value: float | Decimal) -> str:
    """A finite number in the fewest digits that read back equal, without an exponent up to 1e16."""
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() and abs(value) < 1e16 else repr(value)
    if isinstance(value, int):
        return str(value)
    if not value:
        return "0"
    _, digits, exponent = value.as_tuple()
    if max(value.adjusted(), -int(exponent)) > _LONGEST_PLAIN:
        return str(Context(prec=len(digits)).normalize(value))  # the default context would round
    plain = format(value, "f")
    return plain.rstrip("0").rstrip(".") if "." in plain else plain


def _read_jsonl(path: Path) -> Iterator[tuple[int, TableRow]]:
    # Bytes that are no UTF-8 become surrogates, so that their line is known when it comes.
    with path.open(encoding="utf-8-sig", errors="surrogateescape") as lines:
        is_first = True
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            place = place_of(path, number)
            try:
                line.encode()
            except UnicodeEncodeError as error:
                byte = ord(line[error.start]) & 0xFF
                raise ValueError(
                    f"{place}: byte {byte:#04x} is not UTF-8 text; save the file as UTF-8"
                ) from None
            try:
                row = _parse_line(line, place)
            except ValueError as error:
                kind = _other_json(path) if is_first else ""
                raise ValueError(f"{error}{kind}") from None
            is_first = False
            yield number, row


def _parse_line(line: str, place: str) -> TableRow:
    try:
        row = json.loads(line, object_pairs_hook=_distinct, parse_float=_exact)
    except _RepeatedKey as error:
        raise ValueError(f"{place}: the key {str(error)!r} is given twice; keep one") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"{place}: not JSON: {error}") from None
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, deep nesting
        raise ValueError(f"{place}: not JSON that can be read: {error}") from None
    if not isinstance(row, dict):
        raise ValueError(f"{place}: not an object with named columns")
    return row


class _RepeatedKey(Exception):
    """A key that an object has twice; Python's reader would keep the last one without a word."""


def _distinct(pairs: list[tuple[str, Any]]) -> TableRow:
    row = dict(pairs)
    if len(row) < len(pairs):
        keys = [key for key, _ in pairs]
        raise _RepeatedKey(next(key for key in keys if keys.count(key) > 1))
    return row


def _exact(text: str) -> float | Decimal:
    """A JSON number: a float, or a Decimal where a float would be another number."""
    value, exact = float(text), Decimal(text)
    return value if math.isfinite(value) and Decimal(repr(value)) == exact else exact


def _other_json(path: Path) -> str:
    """What a .jsonl file is whose first line is no row: one JSON document, or ordinary text."""
    hint = "; a .jsonl file holds one object a line"
    if path.stat().st_size > _LARGEST_DOCUMENT:
        return hint
    text = path.read_text(encoding="utf-8-sig", errors="replace").strip()
    if text.startswith("["):
        return f"{hint}, and this is a JSON array: jq -c '.[]' {path.name} writes its lines"
    try:
        _, end = json.JSONDecoder().raw_decode(text)
    except (ValueError, RecursionError):
        return hint if not text.startswith("{") or "\n" in text else ""
    if "\n" in text[:end]:
        said = "and this is JSON over several lines: jq -c ."
        return f"{hint}, {said} {path.name} writes one line of each object"
    return "" if text[end : end + 1] in ("", "\n") and text.startswith("{") else hint


def _read_parquet(path: Path) -> Iterator[tuple[int, TableRow]]:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError:
        raise ValueError(f"{path}: reading Parquet needs pyarrow: pip install pyarrow") from None
    try:
        table = parquet.read_table(path)
    except (ArrowException, OSError) as error:
        raise ValueError(f"{path}: not Parquet: {error}") from None
    yield from rows_of(table)


def _holds_narrow(kind: DataType) -> bool:
    """Whether values of an Arrow type are, or hold, floats narrower than Python's."""
    from pyarrow import types

    if types.is_float16(kind) or types.is_float32(kind):
        return True
    return any(_holds_narrow(kind.field(i).type) for i in range(kind.num_fields))


def _widened(value: Any, kind: DataType) -> Any:
    """A value with narrow floats as the doubles of their shortest text, not of their bits."""
    import numpy
    from pyarrow import types

    if value is None:
        return None
    if types.is_float16(kind) or types.is_float32(kind):
        narrow = numpy.float16 if types.is_float16(kind) else numpy.float32
        return float(str(narrow(value)))
    if types.is_map(kind):
        return [(_widened(k, kind.key_type), _widened(v, kind.item_type)) for k, v in value]
    if types.is_struct(kind):
        fields = (kind.field(i) for i in range(kind.num_fields))
        return {field.name: _widened(value[field.name], field.type) for field in fields}
    if kind.num_fields == 1:  # lists of every form
        return [_widened(one, kind.field(0).type) for one in value]
    return value
