"""What `make docs` does to the pages beside rendering them. Called by mkdocs (mkdocs.yml).

- `docs/rewards.md` in a page's prose, which reads the same in a terminal, becomes a link.
- docs/the_step.ipynb becomes a page, its code and its outputs as they are stored.
"""

from __future__ import annotations

import json
import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

NOTEBOOK = "the_step.ipynb"
_MENTION = re.compile(r"(?<![\w`/\[.])(?<!\]\()(?:\.\./)*docs/([\w/-]+\.md)(#[\w-]+)?")
_FENCE = re.compile(r"^(```.*?^```[ \t]*$|~~~.*?^~~~[ \t]*$)", re.DOTALL | re.MULTILINE)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the notebook as a page beside itself; what is no page or picture stays out."""
    text = (Path(config.docs_dir) / NOTEBOOK).read_text(encoding="utf-8")
    page = markdown_of(json.loads(text))
    files.append(File.generated(config, NOTEBOOK.replace(".ipynb", ".md"), content=page))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Mentions of other pages become links, outside of code."""
    here = posixpath.dirname(page.file.src_uri)

    def link(match: re.Match[str]) -> str:
        target, anchor = match[1], match[2] or ""
        if files.get_file_from_path(target) is None:
            return match[0]
        return f"[{match[0]}]({posixpath.relpath(target, here or '.')}{anchor})"

    parts = _FENCE.split(markdown)
    return "".join(
        part if number % 2 else _MENTION.sub(link, part) for number, part in enumerate(parts)
    )


def markdown_of(notebook: dict[str, Any]) -> str:
    """A notebook's cells as Markdown: text, code, and what the code printed."""
    lines = []
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            lines.append(source)
            continue
        lines.append(f"```python\n{source}\n```")
        printed = "".join(_text(output) for output in cell["outputs"]).rstrip()
        if printed:
            lines.append(f"```text\n{printed}\n```")
    return "\n\n".join(lines) + "\n"


def _text(output: dict[str, Any]) -> str:
    text = output.get("text") or output.get("data", {}).get("text/plain", "")
    return "".join(text) + ("" if "text" in output else "\n")
