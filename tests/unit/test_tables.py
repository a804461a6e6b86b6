"""What a table's cells become: numbers keep their value, and a fault is told by its place."""

from __future__ import annotations

import json
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from r1lab.data import hub
from r1lab.problems.mixture import FileProblems, repeated_questions
from r1lab.problems.tables import read_table, text_of


def golds(folder: Path, column: pa.Array) -> list[str]:
    """The gold answers that a column of a Parquet file becomes."""
    questions = [f"question {i}" for i in range(len(column))]
    parquet.write_table(pa.table({"question": questions, "answer": column}), folder / "t.parquet")
    rows = FileProblems.load("train", path=str(folder / "t.parquet"), test_fraction=0.0)
    assert [row.answer for row in rows] == [
        row.answer for row in hub.load("train", path=str(folder / "t.parquet"))
    ]
    return [row.answer for row in rows]


@pytest.mark.parametrize(
    ("values", "kind", "expected"),
    [
        ([3.7, 0.1, 1e10, 3.0, -0.5], pa.float32(), ["3.7", "0.1", "10000000000", "3", "-0.5"]),
        ([np.float16(3.7), np.float16(0.1), np.float16(2)], pa.float16(), ["3.7", "0.1", "2"]),
        ([3.7, 3.0, 0.1 + 0.2, 2.0**53], pa.float64(),
         ["3.7", "3", "0.30000000000000004", "9007199254740992"]),
        ([Decimal("3.70"), Decimal("100.00"), Decimal("0.00")], pa.decimal128(10, 2),
         ["3.7", "100", "0"]),
        ([Decimal("1234567890123456789012345678.90")], pa.decimal128(38, 2),
         ["1234567890123456789012345678.9"]),
        ([2**63 - 1, -7], pa.int64(), ["9223372036854775807", "-7"]),
        ([2**64 - 1], pa.uint64(), ["18446744073709551615"]),
        ([3.7, 3.7], pa.dictionary(pa.int8(), pa.float32()), ["3.7", "3.7"]),
    ],
)  # fmt: skip
def test_a_number_is_the_shortest_text_that_reads_back_equal(tmp_path, values, kind, expected):
    if pa.types.is_dictionary(kind):
        column = pa.array(values, kind.value_type).dictionary_encode()
    else:
        column = pa.array(values, kind)
    assert golds(tmp_path, column) == expected


@pytest.mark.parametrize(
    ("narrow", "kind"), [(np.float32, pa.float32()), (np.float16, pa.float16())]
)
def test_every_narrow_float_reads_back_equal(tmp_path, narrow, kind):
    bits = np.random.default_rng(0).integers(0, 2**16, 2000, dtype=np.uint16)
    values = bits.view(np.float16).astype(narrow)
    if narrow is np.float32:
        values = np.random.default_rng(1).standard_normal(2000, np.float32) * narrow(1e5)
    values = values[np.isfinite(values)]
    texts = golds(tmp_path, pa.array(values, kind))
    assert all(narrow(text) == value for text, value in zip(texts, values, strict=True))
    assert all(
        len(text) <= len(repr(float(value))) + 1 for text, value in zip(texts, values, strict=True)
    )


def test_metadata_has_no_narrow_floats_either(tmp_path):
    nested = pa.array([{"a": 3.7, "b": [{"c": 0.1}, None]}], pa.struct(
        [("a", pa.float32()), ("b", pa.list_(pa.struct([("c", pa.float32())])))]
    ))  # fmt: skip
    parquet.write_table(pa.table({"plain": pa.array([3.7], pa.float32()), "nested": nested}),
                        tmp_path / "t.parquet")  # fmt: skip
    ((_, row),) = read_table(tmp_path / "t.parquet")
    assert row == {"plain": 3.7, "nested": {"a": 3.7, "b": [{"c": 0.1}, None]}}


@pytest.mark.parametrize(
    "written",
    ["1.0", "0.1", "1e400", "1e-400", "12345678901234567890", "1E5", "-0.0", "1.50",
     "0.10000000000000000001", "3.14159265358979323846", "123456789012345678901234567890.5"],
)  # fmt: skip
def test_a_json_number_keeps_its_value(tmp_path, written):
    (tmp_path / "t.jsonl").write_text(f'{{"answer": {written}}}\n')
    ((_, row),) = read_table(tmp_path / "t.jsonl")
    text = text_of(row, "answer", "here")
    assert Fraction(text) == Fraction(written) and len(text) <= max(len(written), 6)


@pytest.mark.parametrize("cell", ["NaN", "Infinity", "-Infinity", "true", "null", "[1]"])
def test_what_is_no_number_is_refused(tmp_path, cell):
    (tmp_path / "t.jsonl").write_text(f'{{"answer": {cell}}}\n')
    ((_, row),) = read_table(tmp_path / "t.jsonl")
    with pytest.raises(ValueError, match="must be text or a number"):
        text_of(row, "answer", "here")


@pytest.mark.parametrize(
    ("content", "line", "parts"),
    [
        (b'{"a": 1}\n{"a": 2, "b": 1, "a": 3}\n', 2, ["'a'", "twice"]),
        (b'{"a": 1}\n{"x": {"a": 2, "a": 3}}\n', 2, ["'a'", "twice"]),
        (b'{"a": 1}\n\n{"a": "\xe9"}\n{"a": 2}\n', 3, ["0xe9", "UTF-8"]),
        (b'{"a": "\xff"}\n', 1, ["UTF-8"]),
        (b'{"a": 1}\r\n{"a": "\xff"}\r\n', 2, ["UTF-8"]),
        ('{"a": 1}\n'.encode("utf-16"), 1, ["UTF-8"]),
        (b'[{"a": 1},\n {"a": 2}]\n', 1, ["one object a line", "array"]),
        (b'[{"a": 1}, {"a": 2}]\n', 1, ["one object a line", "array"]),
        (b'{\n  "a": 1\n}\n', 1, ["one object a line", "several lines"]),
        (b'{"a": 1,\n "b": 2}\n{"a": 1}\n', 1, ["one object a line", "several lines"]),
    ],
)
def test_a_fault_is_told_by_its_own_line(tmp_path, content, line, parts):
    (tmp_path / "t.jsonl").write_bytes(content)
    with pytest.raises(ValueError) as caught:
        list(read_table(tmp_path / "t.jsonl"))
    said = str(caught.value)
    assert f"t.jsonl, line {line}: " in said and "\n" not in said, said
    assert all(part in said for part in parts), said


def test_a_mark_of_byte_order_is_no_part_of_the_first_key(tmp_path):
    (tmp_path / "t.jsonl").write_bytes(b'\xef\xbb\xbf{"a": 1}\n')
    assert list(read_table(tmp_path / "t.jsonl")) == [(1, {"a": 1})]


def test_one_question_with_two_answers_is_said(tmp_path):
    pairs = [("1 + 1", "2"), ("2 + 2", "4"), ("1 + 1", "3"), ("3 + 3", "6"), ("3 + 3", "6")]
    (tmp_path / "t.jsonl").write_text(
        "".join(json.dumps({"question": q, "answer": a}) + "\n" for q, a in pairs)
    )
    rows = FileProblems.load("train", path=str(tmp_path / "t.jsonl"), test_fraction=0.0)
    clash, copies = repeated_questions(zip(rows.places, rows, strict=True))
    assert "1 questions" in clash and "line 1 " in clash and "line 3 " in clash
    assert "1 questions" in copies and "line 4" in copies and "line 5" in copies
    assert repeated_questions(zip(rows.places[1:4], rows[1:4], strict=True)) == []
