"""Results of the doctor: facts, and findings with their fixes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

MachineLevel = Literal["ok", "warning", "missing"]

MachineFacts = dict[str, Any]


@dataclass(frozen=True, slots=True)
class MachineCheck:
    """One checked property of the machine.

    level   ok; warning: training works without it, or slower; missing: no training without it
    found   what there is, in words
    fix     what to do about it; empty where it is ok
    """

    name: str
    level: MachineLevel
    found: str
    fix: str = ""


@dataclass(frozen=True, slots=True)
class Report:
    """All that was found: `facts` by topic, for programs; `findings`, for people."""

    facts: Mapping[str, MachineFacts]
    findings: tuple[MachineCheck, ...]

    @property
    def can_train(self) -> bool:
        """Whether nothing is missing that training needs."""
        return all(finding.level != "missing" for finding in self.findings)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "can_train": self.can_train,
            "findings": [asdict(finding) for finding in self.findings],
            **self.facts,
        }
