"""Links of README, docs and recipes lead somewhere: files, anchors, sections named in words.

External addresses are looked at for their form alone. `make docs` checks the site's links again.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from urllib.parse import urlsplit

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted(
    path
    for path in (*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *ROOT.glob("data/**/*.md"))
    if "node_modules" not in path.parts
)
NOTEBOOKS = sorted((ROOT / "docs").rglob("*.ipynb"))
SOURCES = sorted(
    path
    for folder in ("r1lab", "rewards", "data", "recipes", "scripts", "tests", "requirements")
    for path in (ROOT / folder).rglob("*")
    if path.suffix in (".py", ".yaml", ".sh", ".sbatch", ".in", ".js", ".html") and path.is_file()
)
# Written by `make docs` out of the notebook, so not among the files.
GENERATED = {ROOT / "docs/the_step.md": ROOT / "docs/the_step.ipynb"}

# Pages of other projects, named beside their addresses.
FOREIGN = {"docs/algo/baseline", "docs/about/performance-summary.md", "docs/perf/dpsk.md"}

LINK = re.compile(
    r"(?<!\\)\[(?:[^\[\]]|\[[^\]]*\])*\]\(([^()\s]+(?:\([^()]*\))?)(?:\s+\"[^\"]*\")?\)"
)
FENCE = re.compile(r"^(?:```.*?^```|~~~.*?^~~~)[ \t]*$", re.DOTALL | re.MULTILINE)
MENTION = re.compile(r"(?<![\w/.-])docs/[\w./-]*\w")
SECTION = re.compile(r'docs/([\w/-]+\.md),\s+"([^"]+)"')
PATH = re.compile(r"`((?:r1lab|scripts|tests|recipes|data|rewards|docs)/[\w./-]+\w)(?::\w+)?`")


def text_of(path: Path) -> str:
    """A page's text; of a notebook, that of its text cells."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".ipynb":
        cells = [c for c in json.loads(text)["cells"] if c["cell_type"] == "markdown"]
        return "\n\n".join("".join(cell["source"]) for cell in cells)
    return text


def prose(path: Path) -> str:
    """The text without its fenced code."""
    return FENCE.sub("", text_of(path))


def headings(path: Path) -> list[str]:
    """The headings of a page, without their marks."""
    return [
        re.sub(r"[`*]", "", line.lstrip("# ")).strip()
        for line in prose(GENERATED.get(path, path)).splitlines()
        if re.match(r"#{1,6} ", line)
    ]


def anchors(path: Path) -> set[str]:
    """The anchors of its headings, as both GitHub and the site make them."""
    plain = (re.sub(r"[^\w\s-]", "", heading).strip().lower() for heading in headings(path))
    return {re.sub(r"[-\s]+", "-", heading) for heading in plain}


@pytest.mark.parametrize("page", [*PAGES, *NOTEBOOKS], ids=lambda p: str(p.relative_to(ROOT)))
def test_links_of_a_page_lead_somewhere(page):
    given = dict(re.findall(r"^\[(\w+)\]: (\S+)$", prose(page), re.MULTILINE))
    assert set(re.findall(r"\]\[(\w+)\]", prose(page))) == set(given)
    for target in (*LINK.findall(prose(page)), *given.values()):
        if re.match(r"[a-z]+:", target):
            parts = urlsplit(target)
            assert parts.scheme == "https" and "." in parts.netloc, f"{target} is no https address"
            continue
        place, _, anchor = target.partition("#")
        file = (page.parent / place).resolve() if place else page
        assert file.exists() or file in GENERATED, f"{target}: there is no {file}"
        if anchor:
            assert anchor in anchors(file), f"{target}: {file.name} has {sorted(anchors(file))}"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_what_a_page_names_is_there(page):
    text = text_of(page)
    named = {*MENTION.findall(text), *PATH.findall(text)}
    missing = {name for name in named if "NAME" not in name and not (ROOT / name).exists()}
    assert missing <= {str(path.relative_to(ROOT)) for path in GENERATED}, missing


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_sections_named_in_words_are_there(page):
    for name, title in SECTION.findall(text_of(page)):
        titles = headings(ROOT / "docs" / name)
        title = " ".join(title.split())
        assert any(found.startswith(title) for found in titles), f"{name} has no {title!r}"


def test_pages_that_code_and_recipes_name_are_there():
    missing = {
        f"{path.relative_to(ROOT)}: {name}"
        for path in SOURCES
        for name in MENTION.findall(path.read_text(encoding="utf-8", errors="replace"))
        if not (ROOT / name).exists() and name not in FOREIGN and path.name != Path(__file__).name
    }
    assert missing == set()


def test_every_page_stands_in_the_navigation():
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    pages = [
        path.relative_to(ROOT / "docs") for path in PAGES if path.is_relative_to(ROOT / "docs")
    ]
    assert [str(page) for page in pages if f": {page}\n" not in navigation] == []


def test_a_broken_link_would_be_seen(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# One two\n[a](page.md#one-two) [b](none.md)\n```\n[c](code.md)\n```\n")
    assert LINK.findall(prose(page)) == ["page.md#one-two", "none.md"]
    assert anchors(page) == {"one-two"}
