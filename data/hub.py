"""Any set from the hub, or a folder or file in its form, with its columns mapped.

`question`, `answer` and `id` name its columns; all others become metadata.
"""

from __future__ import annotations

from r1lab.problems.hub import read_rows
from r1lab.problems.tables import text_of
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
        place = f"{path}, row {number}"
        given = row.get(id)
        problems.append(
            Problem(
                f"{name}-{number}" if given is None else str(given),
                text_of(row, question, place),
                text_of(row, answer, place),
                verifier,
                name,
                {key: value for key, value in row.items() if key not in (question, answer, id)},
            )
        )
    return problems
