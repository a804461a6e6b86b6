"""Any set from the hub, or a folder or file in its form, with its columns mapped.

`question`, `answer` and `id` name its columns; all others become metadata.
"""

from __future__ import annotations

from r1lab.published import read_rows
from r1lab.types import Problem


def load(
    split: str,
    *,
    path: str,
    question: str = "question",
    answer: str = "answer",
    id: str = "id",
    verifier: str = "math",
    config: str | None = None,
) -> list[Problem]:
    """All problems of the split, in the set's order; `config` is the hub's name for a part."""
    name = path.rstrip("/").rpartition("/")[2]
    problems = []
    for number, row in read_rows(path, split, config=config):
        for column in (question, answer):
            if row.get(column) is None:
                raise ValueError(
                    f"{path}, row {number}: no column {column!r}; it has {', '.join(row)}; map "
                    "them: question=COLUMN,answer=COLUMN"
                )
        given = row.get(id)
        problems.append(
            Problem(
                f"{name}-{number}" if given is None else str(given),
                str(row[question]),
                str(row[answer]),
                verifier,
                name,
                {key: value for key, value in row.items() if key not in (question, answer, id)},
            )
        )
    return problems
