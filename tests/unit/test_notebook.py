"""docs/the_step.ipynb is run from its top, in a kernel of its own, and prints what it holds."""

from __future__ import annotations

import re
from pathlib import Path

import nbformat
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parents[2]
PATH = ROOT / "docs/the_step.ipynb"


def printed(notebook: nbformat.NotebookNode) -> list[str]:
    """What each code cell printed, numbers to two places: the last digit may differ by machine."""
    found = []
    for cell in notebook.cells:
        outputs = cell.get("outputs", [])
        text = "".join(o.get("text") or o["data"].get("text/plain", "") for o in outputs)
        rounded = re.sub(r"-?\d+\.\d+", lambda number: f"{float(number[0]) + 0.0:.2f}", text)
        found.append(rounded.replace("-0.00", "0.00"))
    return found


def test_it_runs_and_prints_what_it_holds(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    stored = nbformat.read(PATH, as_version=4)
    nbformat.validate(stored)
    run = nbformat.from_dict(stored)
    before = printed(stored)
    NotebookClient(run, timeout=300).execute()  # asserts inside fail it
    assert printed(run) == before
    assert sum(cell.cell_type == "code" for cell in run.cells) >= 8
    assert sum("assert" in cell.source for cell in run.cells) >= 5
