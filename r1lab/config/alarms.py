"""The section `watch` of a recipe: what is watched while a run goes. No torch.

Each alarm looks at means over the last `steps` steps. The thresholds come from runs that went well
and runs that were made to fail (docs/experiments.md, "What a sick run looks like").
"""

from __future__ import annotations

from typing import Any

from pydantic import Field

from r1lab.config.section import Fraction, Name, Positive, Section

_STOP = "stop the run (exit code 4, with a checkpoint); false: only say it"


class Alarm(Section):
    """What all alarms have."""

    steps: Positive = Field(5, description="the window; nothing is said before it is full")
    stop: bool = Field(False, description=_STOP)


class RewardDead(Alarm):
    """The reward stays at a bottom without moving, or falls far below its best."""

    steps: Positive = Field(10, description="the window; nothing is said before it is full")
    below: float = Field(0.01, description="mean score of the part that tells right from wrong")
    fallen: Fraction = Field(0.5, description="of its highest mean so far")


class TruncationTakesOver(Alarm):
    """Most responses reach `sampling.max_tokens`."""

    above: Fraction = Field(0.5, description="share of responses that are cut off")


class LengthCollapses(Alarm):
    """Responses shrink, and accuracy does not gain from it."""

    below: Fraction = Field(0.5, description="of the longest mean length so far")


class EntropyCollapses(Alarm):
    """The policy stops exploring while it is still wrong."""

    below: Fraction = Field(0.05, description="of the first steps' mean entropy of a token")


class NoVariance(Alarm):
    """Groups in which all rewards are equal teach nothing."""

    steps: Positive = Field(10, description="the window; nothing is said before it is full")
    above: Fraction = Field(0.95, description="share of groups without variance")


class SecondGrader(Alarm):
    """A second, independent grader: the training reward must not leave it behind."""

    reward: Name = Field(description="named as in `rewards`; it is never trained on")
    options: dict[str, Any] = Field(default_factory=dict, description="keyword arguments")
    isolate: bool = Field(True, description="as in `rewards`")
    seconds: float = Field(5.0, gt=0, description="for one response")
    memory_mib: Positive = Field(1024, description="for one response")
    responses: Positive = Field(64, description="of each step that it grades")
    rise: float = Field(
        0.15,
        gt=0,
        description="of the gap (training score less the grader's) over its lowest so far",
    )


class WatchSettings(Section):
    """What is watched while a run goes; null switches an alarm off."""

    reward_dead: RewardDead | None = RewardDead()
    truncation: TruncationTakesOver | None = TruncationTakesOver()
    length: LengthCollapses | None = LengthCollapses()
    entropy: EntropyCollapses | None = EntropyCollapses()
    no_variance: NoVariance | None = NoVariance()
    grader: SecondGrader | None = Field(None, description="none")

    @property
    def may_stop(self) -> bool:
        """Whether any alarm stops the run."""
        alarms = (self.reward_dead, self.truncation, self.length, self.entropy, self.no_variance)
        return any(alarm is not None and alarm.stop for alarm in (*alarms, self.grader))
