"""Rows that supervised stages train on: read, checked, drawn and encoded.

A row is a mapping of text: `prompt` and `completion` (SFT), or `prompt`, `chosen` and `rejected` (a
reward model). A prompt is the text that the template makes of a question, a completion what follows
it, without the end token. Nothing here imports torch.
"""

from __future__ import annotations

import inspect
import random
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from r1lab.config.stages import RowsSettings
from r1lab.hints import nearest, raised
from r1lab.problems.registry import resolve
from r1lab.problems.tables import TABLES, read_table
from r1lab.types import R1labError, RecipeError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TrainingRow = dict[str, Any]


def read_rows(
    settings: Sequence[RowsSettings], needed: Sequence[str], seed: int = 0
) -> list[TrainingRow]:
    """The rows of all sets, each with `needed` columns of text, in the order of the sets.

    `num` rows of a set are drawn without order by the seed. Raises RecipeError, one line, for a
    file that is missing or corrupted, a missing column, and sets with too few rows.
    """
    if not settings:
        raise RecipeError("rows: give a file or a function to train on")
    rows: list[TrainingRow] = []
    for index, one in enumerate(settings):
        key = f"rows.{index}"
        found = _file_rows(one, key) if one.path.endswith(TABLES) else _made_rows(one, key, seed)
        for number, row in enumerate(found):
            _check(row, needed, f"{key}: {one.path}, row {number + 1}")
        if not found:
            raise RecipeError(f"{key}: {one.path} has no rows")
        if one.num is not None:
            if one.num > len(found):
                raise RecipeError(
                    f"{key}.num: {one.num} rows requested, but {one.path} has {len(found)}"
                )
            found = random.Random(f"rows/{seed}/{index}").sample(found, one.num)
        rows += found
    return rows


def encoded_rows(
    rows: Iterable[Mapping[str, Any]],
    tokenizer: PreTrainedTokenizerBase,
    column: str,
    max_length: int,
) -> tuple[list[TrainingRow], int]:
    """(token ids and completion mask of each row that fits, how many did not).

    Prompt and completion are encoded apart, so that the model meets in training the very tokens
    that it will be asked with; the end token closes the completion.
    """
    from r1lab.rollout.source import encode_prompt

    kept, left_out = [], 0
    for row in rows:
        prompt = list(encode_prompt(tokenizer, row["prompt"]))
        completion = tokenizer(row[column], add_special_tokens=False)["input_ids"]
        completion = [*completion, tokenizer.eos_token_id]
        if len(prompt) + len(completion) > max_length:
            left_out += 1
            continue
        mask = [0] * len(prompt) + [1] * len(completion)
        kept.append({"input_ids": [*prompt, *completion], "completion_mask": mask})
    return kept, left_out


def _file_rows(settings: RowsSettings, key: str) -> list[TrainingRow]:
    try:
        return [row for _, row in read_table(Path(settings.path).expanduser())]
    except ValueError as error:
        raise RecipeError(f"{key}.path: {error}") from None


def _made_rows(settings: RowsSettings, key: str, seed: int) -> list[TrainingRow]:
    make = resolve(settings.path, "source", key=f"{key}.path")
    given = {"num": settings.num, "seed": seed}
    takes = inspect.signature(make).parameters
    arguments = {
        name: value for name, value in given.items() if name in takes and value is not None
    }
    try:
        found = [dict(row) for row in make(**arguments)]
    except R1labError:
        raise
    except Exception as error:  # the function may be the user's
        raise RecipeError(f"{key}.path: {settings.path!r}: {raised(error)}") from error
    return found


def _check(row: Mapping[str, Any], needed: Sequence[str], place: str) -> None:
    for column in needed:
        if column not in row:
            raise RecipeError(
                f"{place}: no column {column!r}{nearest(column, row)}; it has {', '.join(row)}"
            )
        if not isinstance(row[column], str) or not row[column].strip():
            raise RecipeError(f"{place}: {column} must be non-empty text")
