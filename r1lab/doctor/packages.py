"""Check installed package versions against those that r1lab requires."""

from __future__ import annotations

import importlib.util
import platform
import re
from importlib import metadata

from r1lab import __version__
from r1lab.doctor.records import MachineCheck, MachineFacts
from r1lab.rollout.vllm.build_info import DISTRIBUTIONS

SHOWN = (
    "torch", *DISTRIBUTIONS, "transformers", "accelerate", "peft", "trl", "datasets",
    "math-verify", "sympy", "numpy",
)  # fmt: skip
SETUP = "run `make setup` (DEVICE=gpu for GPUs), or install r1lab's extra [cpu] or [gpu]"


def package_facts() -> MachineFacts:
    """Versions by name, None where a package is missing."""
    return {
        "python": platform.python_version(),
        "r1lab": __version__,
        **{name: _version(name) for name in SHOWN},
    }


def package_findings() -> list[MachineCheck]:
    """Whether what training needs is there, in the versions that r1lab asks for.

    The extra [train] is needed; of the packages named `vllm` see `vllm_findings`.
    """
    needed = _requirements("train")
    missing = sorted(name for name in needed if _version(name) is None)
    if missing:
        return [MachineCheck("packages", "missing", f"not installed: {', '.join(missing)}", SETUP)]
    if importlib.util.find_spec("packaging") is None:
        return [MachineCheck("packages", "missing", "not installed: packaging", SETUP)]
    from packaging.requirements import Requirement

    wrong = [
        f"{name} {version} (made for {requirement.specifier})"
        for name, text in needed.items()
        if (requirement := Requirement(text)).specifier
        and not requirement.specifier.contains(version := _version(name) or "", prereleases=True)
    ]
    if wrong:
        return [MachineCheck("packages", "warning", f"other versions: {', '.join(wrong)}", SETUP)]
    shown = ("torch", "transformers", "accelerate", "peft", "trl")
    findings = ", ".join(f"{name} {_version(name)}" for name in shown)
    return [MachineCheck("packages", "ok", f"Python {platform.python_version()}, {findings}")]


def _requirements(extra: str) -> dict[str, str]:
    """What r1lab asks for, always and with an extra: the requirement by the package's name."""
    findings = {}
    for line in metadata.requires("r1lab") or []:
        requirement, _, marker = line.partition(";")
        name = re.split(r"[\s<>=!~\[(]", requirement.strip(), maxsplit=1)[0]
        if (not marker or f'extra == "{extra}"' in marker) and name != "r1lab":
            findings[name] = requirement.strip()
    return findings


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
