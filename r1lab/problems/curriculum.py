"""A curriculum: problems of the levels that the policy sometimes solves are asked more often.

Problems fall into levels: the recipe's source entries, or the values of a key of their metadata.
Of each level the pass rate p is measured over the groups of the last `window` steps; a level's
share of the questions is then

    share = min_share + (1 - num_levels * min_share) * q,    q proportional to m * p^a (1 - p)^b

with m its share by the recipe's weights, a = 2 * target and b = 2 * (1 - target). The factor is
highest at p = target; for the target 1/2 it is p (1 - p), the variance of a reward of 0 or 1: where
every answer is right, or every one wrong, a group's advantages are all zero and nothing is learnt.
`min_share` keeps every level in sight: one that was too hard comes back when the policy has grown,
and one that is forgotten is seen to be. p is counted with one right and one wrong answer to begin
with, so that a level nobody has tried counts as 1/2.

Kimi k1.5 (arXiv 2501.12599, section 2.3.4, prioritised sampling) tracks the success rate s of each
problem and asks in proportion to 1 - s, beside a curriculum from easy to hard. Deviations: rates of
levels, as a generated problem comes but once; and the variance in the place of 1 - s, which goes on
asking most for what is never solved. (DAPO's dynamic sampling, 2503.14476, throws such groups away
after they were sampled: the two go together.)

The problem at an index is a function of (seed, index, shares) alone: the level by the place of the
index in a sequence that is spread evenly (a Weyl sequence: every stretch of questions has each
level by its share, to within a few questions), and within the level the problem at that index. So
processes share a stream as they do without a curriculum. A level's stream is thus read with gaps:
not every row of a table comes before one comes again. Nothing here imports torch.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from r1lab.config.recipe import CurriculumSettings
from r1lab.problems.mixture import ProblemMixture, ProblemStream, ShuffledProblems
from r1lab.problems.tables import TABLES
from r1lab.types import Problem, RecipeError

BY_SOURCE = "source"
LEVEL = "curriculum_level"  # key of a problem's metadata
_LOOKED_THROUGH = 1024  # problems of an endless stream, for the levels that it has
_MOST_PASSED_OVER = 100_000  # problems of other levels in a row
_GOLDEN = 11400714819323198485  # 2^64 / golden ratio, odd: multiples spread evenly modulo 2^64

Counts = Sequence[tuple[float, float]]  # (right answers, answers) of each level


class Curriculum:
    """A mixture of problems by level; `observe` what became of them moves the shares."""

    def __init__(self, mixture: ProblemMixture, settings: CurriculumSettings) -> None:
        """Raises RecipeError where there are no levels to choose from."""
        self.settings = settings
        if settings.by == BY_SOURCE:
            self.names, streams, natural = _levels_by_source(mixture)
        else:
            self.names, streams, natural = _levels_by_key(mixture, settings.by)
        if len(self.names) < 2:
            raise RecipeError(
                f"problems.curriculum.by: {settings.by!r} makes one level only "
                f"({self.names[0]}); a curriculum needs two, name another key or add sources"
            )
        if len(self.names) * settings.min_share > 1:
            raise RecipeError(
                f"problems.curriculum.min_share: {settings.min_share:g} for each of "
                f"{len(self.names)} levels is more than there is; take 1 / {len(self.names)} at "
                "most"
            )
        self._streams = streams
        self._natural = [share / sum(natural) for share in natural]
        digest = hashlib.sha256(f"curriculum {mixture.seed}".encode()).digest()
        self._offset = int.from_bytes(digest[:8], "big")
        self._seen: deque[Counts] = deque(maxlen=settings.window)
        self.shares = self._shares()

    def __getitem__(self, index: int) -> Problem:
        level = self.level_at(index)
        problem = self._streams[level][index]
        return replace(problem, metadata={**problem.metadata, LEVEL: self.names[level]})

    def level_at(self, index: int) -> int:
        """The level that is asked at an index, by the present shares."""
        place = (index * _GOLDEN + self._offset) % 2**64 / 2**64
        for level, share in enumerate(self.shares):
            place -= share
            if place < 0:
                return level
        return len(self.shares) - 1  # what rounding leaves

    def count(self, results: Iterable[tuple[Problem, Sequence[bool]]]) -> list[tuple[float, float]]:
        """(right answers, answers) of each level among problems and whether answers were right."""
        number = {name: level for level, name in enumerate(self.names)}
        counts = [[0.0, 0.0] for _ in self.names]
        for problem, are_right in results:
            level = counts[number[problem.metadata[LEVEL]]]
            level[0] += sum(are_right)
            level[1] += len(are_right)
        return [(right, total) for right, total in counts]

    def observe(self, counts: Counts) -> dict[str, float | None]:
        """Take in what a step counted, over all processes; the shares are the next step's.

        Returns figures of the step, by level: `level_pass/NAME`, the pass rate in it (None where
        it was not asked), and `level_share/NAME`, the share that it had of the step's questions.
        """
        figures: dict[str, float | None] = {}
        for name, share, (right, total) in zip(self.names, self.shares, counts, strict=True):
            figures[f"level_pass/{name}"] = right / total if total else None
            figures[f"level_share/{name}"] = share
        self._seen.append([(right, total) for right, total in counts])
        self.shares = self._shares()
        return figures

    def pass_rates(self) -> list[float]:
        """The running pass rate of each level, one right and one wrong answer added."""
        rates = []
        for level in range(len(self.names)):
            right = sum(counts[level][0] for counts in self._seen)
            total = sum(counts[level][1] for counts in self._seen)
            rates.append((right + 1.0) / (total + 2.0))
        return rates

    def state_dict(self) -> dict[str, Any]:
        """What was counted in the last steps: plain containers, and a copy."""
        return {
            "levels": list(self.names),
            "seen": [[list(pair) for pair in counts] for counts in self._seen],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on with what was counted before; raises RecipeError where the levels are others."""
        if state["levels"] != list(self.names):
            raise RecipeError(
                f"problems.curriculum: the run began with the levels {', '.join(state['levels'])} "
                f"and now there are {', '.join(self.names)}; take another folder with --output"
            )
        self._seen = deque(
            [[(right, total) for right, total in counts] for counts in state["seen"]],
            maxlen=self.settings.window,
        )
        self.shares = self._shares()

    def _shares(self) -> list[float]:
        target, least = self.settings.target, self.settings.min_share
        wanted = [
            natural * rate ** (2 * target) * (1 - rate) ** (2 * (1 - target))
            for natural, rate in zip(self._natural, self.pass_rates(), strict=True)
        ]
        free = 1 - least * len(self.names)
        return [least + free * one / sum(wanted) for one in wanted]


def _levels_by_source(
    mixture: ProblemMixture,
) -> tuple[list[str], list[ProblemStream], list[float]]:
    """A level for each source entry, with the recipe's weights."""
    names = [_short(name) for name in mixture.names]
    names = [
        name if names.count(name) == 1 else f"{name}.{number}" for number, name in enumerate(names)
    ]
    streams: list[ProblemStream] = [_Source(mixture, number) for number in range(len(names))]
    return names, streams, list(mixture.weights)


def _short(source: str) -> str:
    """The file's name without its ending, where a source is a file."""
    place = source.partition(":")[0]
    return Path(place).stem if place.endswith((".py", *TABLES)) else source


def _levels_by_key(
    mixture: ProblemMixture, key: str
) -> tuple[list[str], list[ProblemStream], list[float]]:
    """A level for each value of a key of the metadata, with the share that it has by itself.

    The values are those of all rows of a table or list that is the only source, and those of the
    first problems of any others.
    """
    only = mixture.streams[0] if len(mixture.streams) == 1 else None
    table = only.problems if isinstance(only, ShuffledProblems) else None
    found: dict[str, list[Problem]] = {}
    for problem in table or [mixture[index] for index in range(_LOOKED_THROUGH)]:
        if key not in problem.metadata:
            known = ", ".join(sorted(problem.metadata)) or "none"
            raise RecipeError(
                f"problems.curriculum.by: the problem {problem.id!r} has no {key!r} in its "
                f"metadata (it has: {known}); name one of these, or 'source'"
            )
        found.setdefault(str(problem.metadata[key]), []).append(problem)
    names = sorted(found, key=_in_order)
    streams: list[ProblemStream] = [
        _Filtered(mixture, key, name)
        if table is None
        else _Source(
            ProblemMixture([ShuffledProblems(found[name], mixture.seed)], [1], names=mixture.names)
        )
        for name in names
    ]
    return names, streams, [float(len(found[name])) for name in names]


def _in_order(value: str) -> tuple[bool, float, str]:
    """Numbers by their size, before words."""
    try:
        return False, float(value), value
    except ValueError:
        return True, 0.0, value


class _Source:
    """One of a mixture's streams, with the mixture's checks of what it gives."""

    def __init__(self, mixture: ProblemMixture, number: int = 0) -> None:
        self._mixture, self._number = mixture, number

    def __getitem__(self, index: int) -> Problem:
        return self._mixture.row(self._number, index)

    def __iter__(self) -> Iterator[Problem]:
        raise TypeError("a level is read by index")


class _Filtered:
    """The problems of one level among an endless mixture; where they are is kept."""

    def __init__(self, mixture: ProblemMixture, key: str, value: str) -> None:
        self._mixture, self._key, self._value = mixture, key, value
        self._places: list[int] = []
        self._next = 0

    def __getitem__(self, index: int) -> Problem:
        last = self._next
        while len(self._places) <= index:
            problem = self._mixture[self._next]
            if str(problem.metadata.get(self._key)) == self._value:
                self._places.append(self._next)
                last = self._next
            elif self._next - last > _MOST_PASSED_OVER:
                raise RecipeError(
                    f"problems.curriculum.by: no {self._key} {self._value} among "
                    f"{_MOST_PASSED_OVER:,} problems in a row, after {len(self._places):,} of "
                    "them; give such problems a source of their own and say by: source"
                )
            self._next += 1
        return self._mixture[self._places[index]]

    def __iter__(self) -> Iterator[Problem]:
        raise TypeError("a level is read by index")
