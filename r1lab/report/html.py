"""`r1lab report RUN...`: one HTML file that shows a run, or several overlaid.

The file is self-contained: scripts, style and data are inline, and its content security
policy forbids everything else, the network first. Only the scripts whose hashes the policy names
may run, so that nothing a model wrote ever does; on top of that all of it is set as text, never as
markup. Curves are drawn by uPlot (assets/uplot, vendored whole with its licence).
"""

from __future__ import annotations

import base64
import hashlib
import html
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, TextIO

from r1lab import __version__
from r1lab.report.facts import facts_of
from r1lab.report.panels import Panel, panels_of
from r1lab.report.seeds import seed_groups
from r1lab.report.transcripts import MAX_SAMPLES, Index, pack, pack_samples
from r1lab.run_folder import RunFolder
from r1lab.types import R1labError

_SCRIPTS = (
    "uplot/uPlot.iife.min.js", "data.js", "charts.js", "tables.js", "samples.js", "transcripts.js",
    "page.js",
)  # fmt: skip
_STYLES = ("uplot/uPlot.min.css", "report.css")


def write_report(
    runs: Sequence[str | Path | RunFolder],
    output: str | Path | None = None,
    *,
    price: float | None = None,
    watts: float | None = None,
    max_samples: int = MAX_SAMPLES,
) -> Path:
    """Write the report of one run or several, and return its path.

    output       None: report.html in the run folder, for several runs in the current one
    price        dollars an hour of the machine;  watts  its mean power draw: the cost
    max_samples  transcripts in the report over all runs; 0: none
    Works on running runs. Raises R1labError for a folder that is not a run or is still empty.
    """
    folders = [run if isinstance(run, RunFolder) else RunFolder.open(run) for run in runs]
    for folder in folders:
        if not folder.metrics() and not folder.evals():
            raise R1labError(f"{folder.path} has neither metrics nor evaluations yet")
    if output is None:
        output = folders[0].path / "report.html" if len(folders) == 1 else "report.html"
    path = Path(output)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    try:
        with temporary.open("w", encoding="utf-8", errors="replace", newline="\n") as file:
            _write(file, folders, price, watts, max_samples // len(folders))
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def _write(
    file: TextIO,
    folders: Sequence[RunFolder],
    price: float | None,
    watts: float | None,
    max_samples: int,
) -> None:
    facts = [facts_of(folder, price=price, watts=watts) for folder in folders]
    for one, label in zip(facts, labels_of(folders, facts), strict=True):
        one["label"] = label
    head, tail = _asset("report.html").split("<!-- data -->")
    names = ", ".join(one["label"] for one in facts)
    style = "\n".join(_asset(name) for name in _STYLES)
    file.write(
        # The title last: a run may be called after any of these.
        head.replace("{policy}", html.escape(_policy(style)))
        .replace("{style}", style)
        .replace("{title}", html.escape(names))
    )
    about = {"version": __version__, "vendored": _asset("uplot/LICENSE")}
    panels = [_panels(folder, one["accuracy"]) for folder, one in zip(folders, facts, strict=True)]
    runs = [
        {"facts": one, "panels": [asdict(panel) for panel in own]}
        for one, own in zip(facts, panels, strict=True)
    ]
    groups = [group.as_dict() for group in seed_groups(facts, panels)]
    _write_block(file, "main", pack({"about": about, "runs": runs, "groups": groups}))
    for number, (folder, one) in enumerate(zip(folders, facts, strict=True)):
        _write_samples(file, number, folder, one["accuracy"], max_samples)
    scripts = "\n".join(f"<script>{script}</script>" for script in _scripts())
    file.write(tail.replace("{scripts}", scripts))


def _write_samples(
    file: TextIO, number: int, folder: RunFolder, accuracy: str, max_samples: int
) -> None:
    chunk = 0
    for packed in pack_samples(folder, accuracy=accuracy, max_samples=max_samples):
        if isinstance(packed, Index):
            _write_block(file, f"index-{number}", pack(vars(packed)))
        else:
            _write_block(file, f"chunk-{number}-{chunk}", packed)
            chunk += 1


def _write_block(file: TextIO, name: str, packed: str) -> None:
    """A block of data. Its type is no script's, so a browser neither runs nor reads it."""
    file.write(f'<script type="application/octet-stream;base64" id="{name}">{packed}</script>\n')


def _panels(folder: RunFolder, accuracy: str) -> list[Panel]:
    return panels_of(folder.metrics(), folder.timings(), folder.evals(), accuracy=accuracy)


def labels_of(folders: Sequence[RunFolder], facts: Sequence[dict[str, Any]]) -> list[str]:
    """Label each run: its name, else its folder if names are equal, else a number."""
    labels = [one["name"] for one in facts]
    if len(set(labels)) < len(labels):
        labels = [folder.path.resolve().name for folder in folders]
    if len(set(labels)) < len(labels):
        labels = [f"{label} {number}" for number, label in enumerate(labels, 1)]
    return labels


# ------------------------------------------------------------------------------------- assets


@cache
def _asset(name: str) -> str:
    place = files("r1lab.report") / "assets" / name
    return place.read_text(encoding="utf-8")


def _scripts() -> Iterator[str]:
    for name in _SCRIPTS:
        yield _asset(name)


def _policy(style: str) -> str:
    """The content security policy: our own scripts and style by their hashes, and nothing else."""
    scripts = " ".join(_hash(script) for script in _scripts())
    return (
        f"default-src 'none'; script-src {scripts}; style-src {_hash(style)}; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
