"""The section `watch` of a recipe: alarms during a run. Does not import torch.

Each alarm tests means over the last `steps` steps. The thresholds come from healthy runs and from
runs that were made to fail (docs/experiments.md, "What a sick run looks like").
"""

from __future__ import annotations

from typing import Any

from pydantic import Field

from r1lab.config.section import Fraction, Name, Positive, Section

_STOP = "stop the run (exit code 4, with a checkpoint); false: only warn"
_STEPS = "window size in steps; no alarm before it is full"


class Alarm(Section):
    """Keys that all alarms share."""

    steps: Positive = Field(5, description=_STEPS)
    stop: bool = Field(False, description=_STOP)


class RewardDead(Alarm):
    """The reward stays constant near zero, or falls far below its best."""

    steps: Positive = Field(10, description=_STEPS)
    below: float = Field(0.01, description="threshold on the mean score of the correctness reward")
    fallen: Fraction = Field(0.5, description="threshold as a fraction of its highest mean so far")


class TruncationTakesOver(Alarm):
    """Most responses reach `sampling.max_tokens`."""

    above: Fraction = Field(0.5, description="threshold on the share of truncated responses")


class LengthCollapses(Alarm):
    """Responses get shorter without a gain in accuracy."""

    below: Fraction = Field(
        0.5, description="threshold as a fraction of the longest mean length so far"
    )


class EntropyCollapses(Alarm):
    """The policy stops exploring while its answers are still wrong."""

    below: Fraction = Field(
        0.05, description="threshold as a fraction of the first steps' mean token entropy"
    )


class NoVariance(Alarm):
    """Most groups have equal rewards, so their advantages are 0 and nothing is learned."""

    steps: Positive = Field(10, description=_STEPS)
    above: Fraction = Field(0.95, description="threshold on the share of groups without variance")


class SecondGrader(Alarm):
    """The training reward rises away from a second, independent grader (reward hacking)."""

    reward: Name = Field(
        description="reward that grades, named as in `rewards`; it is never trained on"
    )
    options: dict[str, Any] = Field(
        default_factory=dict, description="keyword arguments of the grader"
    )
    isolate: bool = Field(True, description="run it in worker processes, as in `rewards`")
    seconds: float = Field(5.0, gt=0, description="time limit per response, in seconds")
    memory_mib: Positive = Field(1024, description="memory limit per response, in MiB")
    responses: Positive = Field(64, description="responses graded per step")
    rise: float = Field(
        0.15,
        gt=0,
        description="threshold on the rise of the gap (training score minus grader score) above "
        "its lowest value so far",
    )


class WatchSettings(Section):
    """Alarms during a run; null disables an alarm."""

    reward_dead: RewardDead | None = RewardDead()
    truncation: TruncationTakesOver | None = TruncationTakesOver()
    length: LengthCollapses | None = LengthCollapses()
    entropy: EntropyCollapses | None = EntropyCollapses()
    no_variance: NoVariance | None = NoVariance()
    grader: SecondGrader | None = Field(
        None, description="second grader to compare the training reward with; null: none"
    )

    @property
    def may_stop(self) -> bool:
        """Whether any alarm stops the run."""
        alarms = (self.reward_dead, self.truncation, self.length, self.entropy, self.no_variance)
        return any(alarm is not None and alarm.stop for alarm in (*alarms, self.grader))
