"""`make docs`: the site is built without a warning; its generated pages are what the code says."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest


@pytest.fixture(scope="module")
def site(repository, tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        cwd=repository, capture_output=True, text=True,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "WARNING" not in done.stderr, done.stderr
    return folder


def test_every_page_of_the_navigation_is_built(site, repository):
    pages = re.findall(r": ([\w/-]+)\.md$", (repository / "mkdocs.yml").read_text(), re.MULTILINE)
    assert len(pages) > 25
    for page in pages:
        assert (site / f"{page}.html").stat().st_size > 5_000, page


def test_mentions_of_pages_are_links_and_docstrings_are_there(site):
    scaling = (site / "scaling.html").read_text()
    assert '<a href="experiments.html">docs/experiments.md</a>' in scaling
    howto = (site / "howto/multi-task.html").read_text()
    assert '<a href="../evaluation.html">docs/evaluation.md</a>' in howto
    reference = (site / "reference/api.html").read_text()
    for name in (
        "r1lab.types.Verdict",
        "r1lab.grpo.loss.policy_loss",
        "r1lab.config.reading.load_recipe",
    ):
        assert f'id="{name}"' in reference, name
    assert "denominator" in (site / "the_step.html").read_text()


def test_nothing_is_fetched_from_a_network(site):
    for page in site.rglob("*.html"):
        loaded = re.findall(r'<(?:script|img)[^>]+src="(https?:[^"]+)"', page.read_text())
        styles = re.findall(
            r'<link[^>]+rel="stylesheet"[^>]+href="(https?:[^"]+)"', page.read_text()
        )
        assert loaded + styles == [], page


def test_reference_pages_are_what_the_code_says(repository):
    done = subprocess.run(
        [sys.executable, "scripts/write_reference.py", "--check"],
        cwd=repository, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(repository)},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
