"""docs/the-step.md: its blocks run, one after the other, in one namespace."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "the-step.md"


def test_the_blocks_of_the_page_run() -> None:
    text = PAGE.read_text(encoding="utf-8")
    blocks = list(re.finditer(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE))
    assert len(blocks) == text.count("```") // 2 > 5
    names: dict[str, Any] = {}
    for block in blocks:
        # Line numbers are those of the page, in a traceback too.
        lines_before = text[: block.start(1)].count("\n")
        exec(compile("\n" * lines_before + block[1], str(PAGE), "exec"), names)
    assert names["policy"].version == 1
