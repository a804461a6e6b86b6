"""Rows of published problem sets, from where they lie: a local file or folder, or a hub name.

`$R1LAB_DATASETS` names a folder with the sets in it (`gsm8k/test.jsonl`, ...); it is looked into
before the hub is asked.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from r1lab.hints import missing
from r1lab.problems.tables import TABLES, no_table, read_table, rows_of

HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
FOLDER = "R1LAB_DATASETS"


def place_of(path: str | None, name: str, hub: str) -> str:
    """Where a set is: `path` where it was given, else $R1LAB_DATASETS/name, else the hub name."""
    if path is not None:
        return path
    folder = os.environ.get(FOLDER)
    if folder and (Path(folder).expanduser() / name).is_dir():
        return str(Path(folder).expanduser() / name)
    return hub


def read_rows(
    place: str, split: str, *, stem: str | None = None, config: str | None = None
) -> Iterator[tuple[int, dict[str, Any]]]:
    """(number from 1, row) of a split of the set at `place`.

    A folder holds `stem`.jsonl (or .parquet), by default named like the split; `config` is the
    hub's name for a part of a set. Raises ValueError where there is no such set.
    """
    path = Path(place).expanduser()
    if path.is_dir():
        names = [f"{stem or split}{suffix}" for suffix in TABLES]
        found = next((path / name for name in names if (path / name).is_file()), None)
        if found is None:
            raise ValueError(f"{path} holds neither {names[0]} nor {names[1]}: {no_table(path)}")
        return read_table(found)
    if path.suffix in TABLES:
        return read_table(path)
    if not HUB_NAME.fullmatch(place):
        raise ValueError(f"{missing(path, what='folder')}; give a folder, a file or a hub name")
    return _from_hub(place, split, config)


def _from_hub(name: str, split: str, config: str | None) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        from datasets import load_dataset
    except ImportError:
        raise ValueError(
            f"{name!r}: a set from the hub needs datasets: pip install datasets"
        ) from None
    try:
        with _quiet_retries():
            # As Arrow has them: datasets' own rows spell narrow floats out.
            table = load_dataset(name, config, split=split).with_format("arrow")[:]
    # Whatever the hub, the network or the set's own files raise: the user's fix is the same.
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(
            f"{name!r} is no folder here and could not be fetched from the hub ({reason}); give a "
            f"local folder, or set {FOLDER}"
        ) from error
    return rows_of(table)


@contextmanager
def _quiet_retries() -> Iterator[None]:
    """The hub's client warns of each of its retries; what comes of them is told in one line."""
    logger = logging.getLogger("huggingface_hub")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
