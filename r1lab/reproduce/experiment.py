"""An experiment: a file of recipes/reproduce/ that says what is run, measured and expected.

Its arms are ordinary training recipes, run once a seed; experiments that name the same arm share
its runs. Its criteria are thresholds on figures (`r1lab.reproduce.measure`) and stand in the file
before any seed is run. Nothing here imports torch.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError, model_validator

from r1lab.config.plain_yaml import YamlFault, parse
from r1lab.config.section import Fraction, Name, NonNegative, Positive, RunName, Section
from r1lab.hints import nearest
from r1lab.problems.registry import shipped_folder
from r1lab.types import RecipeError

FigureName = Literal[
    "apart", "at", "best", "change", "early", "gap", "growth", "kept", "lead", "mean", "suite"
]


class Arm(Section):
    """One condition of an experiment: a training recipe, and the base it starts from."""

    recipe: Name = Field(description="a file of recipes/reproduce/arms/, without .yaml")
    base: Name | None = Field(
        None, description="a file of recipes/reproduce/bases/ that is pre-trained first"
    )


class Criterion(Section):
    """A threshold on one figure of an arm, or on its difference to the same figure of another.

    Without a threshold the figure is reported, and decides nothing.

    `figure` names a function of `r1lab.reproduce.measure.FIGURES`, `of` what it is taken of.
    """

    says: str = Field(min_length=1, max_length=200)
    arm: Name
    figure: FigureName
    of: Name = Field(description="a held-out figure (pass_at_1), or train.NAME of metrics.jsonl")
    beside: Name | None = Field(None, description="a second one, where the figure compares two")
    less: Name | None = Field(None, description="an arm whose figure is taken off, seed by seed")
    at: Fraction = Field(1.0, description="share of the run at which (from which) it is taken")
    to: Fraction = Field(1.0, description="share of the run up to which it is taken")
    at_least: float | None = None
    at_most: float | None = None

    @model_validator(mode="after")
    def _one_threshold(self) -> Criterion:
        if self.at_least is not None and self.at_most is not None:
            raise ValueError(f"{self.says!r}: give at_least or at_most, or neither to report it")
        if (self.figure in ("apart", "gap", "lead")) != (self.beside is not None):
            raise ValueError(f"{self.says!r}: {self.figure} and `beside` do not go together")
        return self


class FigurePanel(Section):
    """One plot of the experiment's picture."""

    title: str
    of: tuple[Name, ...] = Field(min_length=1, description="as in a criterion")
    arms: tuple[Name, ...] = ()
    paper: tuple[Name, ...] = Field((), description="curves of data/paper, on axes of their own")
    suite: Name | None = Field(None, description="pass@k over k on this suite, not over steps")


class ExperimentSuite(Section):
    """An evaluation of the trained models of an arm, and of their base, by `r1lab eval`."""

    arm: Name
    name: Name = Field(description="a suite of data/suites.yaml")
    num: Positive
    k: Positive


class Experiment(Section):
    """A claim of the papers, how it is put to the test, and when it counts as reproduced."""

    name: RunName
    claim: str
    source: str = Field(description="where the claim stands: paper and figure")
    expected: str = Field(description="what was expected before the seeds were run")
    minutes: float = Field(gt=0, description="of two cores, for each seed")
    seeds: Positive = 3
    arms: dict[str, Arm] = Field(min_length=1)
    suites: tuple[ExperimentSuite, ...] = ()
    criteria: tuple[Criterion, ...] = Field(min_length=1)
    panels: tuple[FigurePanel, ...] = Field(min_length=1)
    order: NonNegative = 0

    @model_validator(mode="after")
    def _arms_are_there(self) -> Experiment:
        named = [c.arm for c in self.criteria] + [c.less for c in self.criteria if c.less]
        named += [arm for panel in self.panels for arm in panel.arms]
        named += [suite.arm for suite in self.suites]
        for name in named:
            if name not in self.arms:
                raise ValueError(f"arms: {name!r} is not one of {', '.join(self.arms)}")
        return self


def experiments_folder() -> Path:
    """recipes/reproduce/, in the checkout or in an installed r1lab."""
    return shipped_folder("recipes") / "reproduce"


def experiment_names() -> list[str]:
    """The experiments that ship, in their order."""
    found = {path.stem: load_experiment(path.stem) for path in experiments_folder().glob("*.yaml")}
    return sorted(found, key=lambda name: (found[name].order, name))


def load_experiment(name: str) -> Experiment:
    """Load an experiment by its name. Raises RecipeError."""
    path = experiments_folder() / f"{name}.yaml"
    if not path.is_file():
        names = sorted(found.stem for found in experiments_folder().glob("*.yaml"))
        raise RecipeError(f"no experiment {name!r}{nearest(name, names)}; there are {names}")
    try:
        return Experiment.model_validate(parse(path.read_text(encoding="utf-8")))
    except (YamlFault, ValidationError) as error:
        message = " ".join(str(error).split())
        raise RecipeError(f"{path.name}: {message[:300]}") from None
