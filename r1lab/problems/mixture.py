"""Streams of problems: endless, by index, each problem a function of (seed, index) alone.

So a run that goes on at step n reads problem n without drawing those before it, and several
processes read one stream without talking to each other. Nothing here imports torch.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

from r1lab.hints import raised
from r1lab.problems.tables import (
    TABLES,
    is_finite,
    is_number,
    number_text,
    place_of,
    read_table,
    text_of,
)
from r1lab.types import Problem, R1labError, RecipeError

Split = Literal["train", "test"]
COLUMNS = ("question", "answer", "id", "verifier")  # of a table; the rest is metadata


@runtime_checkable
class ProblemStream(Protocol):
    """Endless problems: the one at `index` depends on the index (and the stream's seed) alone."""

    def __getitem__(self, index: int) -> Problem: ...

    def __iter__(self) -> Iterator[Problem]: ...


class ProblemMixture:
    """Several streams in one, each with its share: the problem at an index needs no other index.

    Shares hold exactly in every stretch, not on average only: the first n places of the schedule
    hold round(n * w_1) problems of the first stream, the rest is divided likewise among the others.
    Blocks of 64 places are shuffled by (seed, block), so that no stride over the indices, such
    as that of several processes, meets one stream only. Each stream is read from its start without
    gaps, so that a table is used up before it starts again.
    """

    _BLOCK = 64

    def __init__(
        self,
        streams: Sequence[ProblemStream],
        weights: Sequence[float],
        seed: int = 0,
        names: Sequence[str] = (),
    ) -> None:
        if not streams or len(streams) != len(weights):
            raise ValueError(f"{len(streams)} streams for {len(weights)} weights")
        self.streams, self.weights = tuple(streams), tuple(weights)
        self.names = tuple(names) or ("",) * len(streams)
        # One source given twice, with other options, counts its problems twice from 0.
        self._again = {i for i, name in enumerate(self.names) if name and name in self.names[:i]}
        self.seed = seed
        exact = [Fraction(weight).limit_denominator(10**6) for weight in weights]
        if min(exact) <= 0:
            raise ValueError(f"the weight of every stream must be above 0, not {min(weights)}")
        # Of the places that earlier streams left over, the share of each stream.
        self._shares = [share / sum(exact[i:]) for i, share in enumerate(exact)]

    def place(self, index: int) -> tuple[int, int]:
        """Which stream the problem at `index` comes from, and its index there."""
        if index < 0:
            raise IndexError(f"problems are counted from 0, not {index}")
        if len(self.streams) > 1:
            block, offset = divmod(index, self._BLOCK)
            index = block * self._BLOCK + self._order(block)[offset]
        for stream, (before, after) in enumerate(
            zip(self._counts(index), self._counts(index + 1), strict=True)
        ):
            if after > before:
                return stream, before
        raise AssertionError("each place belongs to a stream")

    def __getitem__(self, index: int) -> Problem:
        return self.row(*self.place(index))

    def row(self, stream: int, position: int) -> Problem:
        """The problem at a position of one of the streams."""
        name = self.names[stream]
        key = f"problems.sources.{stream}.source: {name!r}"
        try:
            problem = self.streams[stream][position]
        except R1labError:
            raise
        except Exception as error:  # a source is the user's code, and may raise anything
            raise RecipeError(f"{key} failed at problem {position}: {raised(error)}") from error
        if not isinstance(problem, Problem):
            raise RecipeError(f"{key} gave {type(problem).__name__}, not r1lab.types.Problem")
        for field in ("id", "question", "answer", "verifier"):
            if not isinstance(getattr(problem, field), str):
                raise RecipeError(
                    f"{key}: problem {position} ({problem.id!r}): {field} is "
                    f"{getattr(problem, field)!r}, and must be text"
                )
        if stream in self._again:
            problem = replace(problem, id=f"{problem.id}/{stream}")
        return problem if problem.source or not name else replace(problem, source=name)

    def __iter__(self) -> Iterator[Problem]:
        return self.starting_at(0)

    def starting_at(self, index: int) -> Iterator[Problem]:
        """The problems from `index` on; nothing before it is drawn."""
        return (self[i] for i in itertools.count(index))

    def distinct(self, num: int) -> list[Problem]:
        """The first `num` problems with different questions, for an evaluation.

        Raises RecipeError where the sources have fewer.
        """
        found: dict[str, Problem] = {}
        most = num
        lists = [stream for stream in self.streams if isinstance(stream, ShuffledProblems)]
        if len(lists) == len(self.streams):
            rows = [row for stream in lists for row in stream.problems]
            most = len({getattr(row, "question", None) for row in rows})
        for index in range(100 * num):
            problem = self[index]
            found.setdefault(problem.question, problem)
            if len(found) == num:
                return list(found.values())
            if len(found) == most:  # of lists that end: nothing new comes any more
                break
        raise RecipeError(
            f"evaluation.num_problems: {num} is more than the sources have to hold out "
            f"({len(found)}); lower it, or add problems"
        )

    def _counts(self, num_places: int) -> list[int]:
        """Places of each stream among the first `num_places`; none ever falls as these grow."""
        counts, left = [], num_places
        for share in self._shares:
            count = int(left * share + Fraction(1, 2))  # the last share is 1
            counts.append(count)
            left -= count
        return counts

    def _order(self, block: int) -> tuple[int, ...]:
        return _permutation(self._BLOCK, f"mixture {self.seed} {block}")


class FileProblems:
    """Rows of a .jsonl or .parquet file as problems.

    Options of the recipe:
        columns        {question: its column, answer: ..., id: ..., verifier: ...}; those of the
                       same name need no entry
        verifier       the reward that judges the answers (`math`), where the row names none
        test_fraction  share of the questions held out (0.1), chosen by a hash of the question, so
                       that the split depends neither on order nor on what is added later
        test_file      a file of held-out problems in place of that; questions that it has are left
                       out of training
    All other columns become the problem's metadata, and so do mapped ones under their own names: a
    reward written for the data set finds both. The paths of `verifier` and `test_file` start from
    the file's folder, or else from the current one.
    """

    @staticmethod
    def load(
        split: Split,
        *,
        path: str,
        seed: int = 0,
        columns: Mapping[str, str] | None = None,
        verifier: str = "math",
        test_fraction: float = 0.1,
        test_file: str | None = None,
    ) -> TableRows:
        """All problems of the split, in the file's order; ValueError says what is wrong."""
        del seed  # the caller shuffles
        names = {**{name: name for name in COLUMNS}, **(columns or {})}
        unknown = sorted(set(names) - set(COLUMNS))
        if unknown:
            raise ValueError(f"columns: {unknown[0]!r} is not one of {', '.join(COLUMNS)}")
        if not 0 <= test_fraction < 1:
            raise ValueError(f"test_fraction: {test_fraction} must be at least 0 and below 1")
        table = Path(os.path.expanduser(path))
        if test_file is not None:
            other = os.path.expanduser(beside(test_file, table.parent))
            held_out = _read_rows(Path(other), names, verifier)
            if split == "test":
                return held_out
            questions = {problem.question for problem in held_out}
            rows = _read_rows(table, names, verifier)
            return rows.where(lambda row: row.question not in questions)
        rows = _read_rows(table, names, verifier)
        return rows.where(
            lambda row: (_unit_hash(row.question) < test_fraction) == (split == "test")
        )


class TableRows(list[Problem]):
    """Problems that were read from a table, with the place of each in it, for messages."""

    def __init__(self, problems: Iterable[Problem], places: Iterable[str], num_read: int) -> None:
        super().__init__(problems)
        self.places, self.num_read = tuple(places), num_read

    def where(self, keep: Callable[[Problem], bool]) -> TableRows:
        """Those that `keep` takes; `num_read` stays that of the whole file."""
        kept = [pair for pair in zip(self, self.places, strict=True) if keep(pair[0])]
        return TableRows((row for row, _ in kept), (place for _, place in kept), self.num_read)


def placed_problems(mixture: ProblemMixture, split: Split) -> list[tuple[str, Problem]]:
    """(where it stands, problem) of all rows of a mixture's tables and lists."""
    found: list[tuple[str, Problem]] = []
    for name, stream in zip(mixture.names, mixture.streams, strict=True):
        rows = stream.problems if isinstance(stream, ShuffledProblems) else ()
        counted = (f"{name}, row {number} of {split}" for number in itertools.count(1))
        places = rows.places if isinstance(rows, TableRows) else counted
        # What is no problem is told of where it is asked for.
        found += [pair for pair in zip(places, rows, strict=False) if isinstance(pair[1], Problem)]
    return found


def repeated_questions(rows: Iterable[tuple[str, Problem]]) -> list[str]:
    """What to say of questions that stand in several of the (place, problem), a line each.

    Two gold answers to one question punish a right response; a question that comes twice is asked
    twice as often.
    """
    found: dict[str, list[tuple[str, str]]] = {}
    for place, problem in rows:
        found.setdefault(problem.question, []).append((place, problem.answer.strip()))
    several = [rows for rows in found.values() if len(rows) > 1]
    clashes = [rows for rows in several if len({answer for _, answer in rows}) > 1]
    copies = [rows for rows in several if len({answer for _, answer in rows}) == 1]
    said = []
    if clashes:
        shown = "; ".join(
            ", ".join(f"{place} says {answer[:40]!r}" for place, answer in rows[:3])
            for rows in clashes[:3]
        )
        said.append(
            f"problems.sources: {len(clashes)} questions have more than one gold answer ({shown}"
            f"{'; ...' if len(clashes) > 3 else ''}): keep the right one of each"
        )
    if copies:
        shown = "; ".join(" and ".join(place for place, _ in rows[:3]) for rows in copies[:3])
        said.append(
            f"problems.sources: {len(copies)} questions stand in more than one row ({shown}"
            f"{'; ...' if len(copies) > 3 else ''}), {sum(map(len, copies)) - len(copies)} rows "
            "too many"
        )
    return said


class ShuffledProblems:
    """A finite list, endlessly: each time round in another order, by (seed, round)."""

    def __init__(self, problems: Sequence[Problem], seed: int) -> None:
        self.problems, self.seed = problems, seed

    def __getitem__(self, index: int) -> Problem:
        turn, offset = divmod(index, len(self.problems))
        order = _permutation(len(self.problems), f"table {self.seed} {turn}")
        return self.problems[order[offset]]

    def __iter__(self) -> Iterator[Problem]:
        return (self[i] for i in itertools.count())


class ReplayedProblems:
    """Any iterable by index: what it gave is kept, and comes again when it has ended."""

    def __init__(self, problems: Iterable[Problem], name: str) -> None:
        self._rest = iter(problems)
        self._kept: list[Problem] = []
        self._name = name

    def __getitem__(self, index: int) -> Problem:
        missing = index + 1 - len(self._kept)
        if missing > 0:
            self._kept.extend(itertools.islice(self._rest, missing))
        if not self._kept:
            raise RecipeError(f"{self._name} has no problems")
        return self._kept[index % len(self._kept)]

    def __iter__(self) -> Iterator[Problem]:
        return (self[i] for i in itertools.count())


def _read_rows(path: Path, columns: Mapping[str, str], verifier: str) -> TableRows:
    problems, places = [], []
    row_of: dict[str, int] = {}
    for number, row in read_table(path):
        place = place_of(path, number)
        metadata = {name: value for name, value in row.items() if name not in COLUMNS}
        question = text_of(row, columns["question"], place)
        answer = text_of(row, columns["answer"], place)
        identity = row.get(columns["id"])
        if is_number(identity) and is_finite(identity):
            identity = number_text(identity)
        identity = f"{path.stem}/{number}" if identity is None else str(identity)
        if identity in row_of:
            raise ValueError(
                f"{place}: the id {identity!r} stands in {row_of[identity]} already; each problem "
                "needs an id of its own (without a column `id`, the row's number is taken)"
            )
        row_of[identity] = number
        own = row.get(columns["verifier"])
        judged_by = beside(verifier if own is None else str(own), path.parent)
        problems.append(Problem(identity, question, answer, judged_by, path.stem, metadata))
        places.append(place)
    return TableRows(problems, places, len(problems))


def beside(reference: str, folder: Path) -> str:
    """`file.py:function`, or a table, found from the folder of the file that names it.

    Unchanged where it is no relative path or there is no such file in that folder.
    """
    place, colon, function = reference.partition(":")
    is_path = place.endswith((".py", *TABLES)) or "/" in place
    found = folder / Path(os.path.expanduser(place))
    if not is_path or not found.is_file():
        return reference
    return f"{found.resolve()}{colon}{function}"


@lru_cache(maxsize=64)
def _permutation(length: int, label: str) -> tuple[int, ...]:
    """A permutation of range(length) that depends on the label alone."""
    order = list(range(length))
    random.Random(label).shuffle(order)
    return tuple(order)


def _unit_hash(text: str) -> float:
    """A number in [0, 1) that depends on the text alone."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big") / 2**56
