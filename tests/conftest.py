"""What all tests share: a quiet environment without a network, and the command line."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

# Before any test imports torch or vLLM. What is set outside stays as it is.
for _name, _value in {
    "DO_NOT_TRACK": "1",  # vLLM's usage statistics
    "HF_HUB_OFFLINE": "1",  # a test that wants a hub fails at once instead of waiting
    "MPLBACKEND": "agg",
    "OMP_NUM_THREADS": "1",  # small models: threads cost more than they bring
    "TOKENIZERS_PARALLELISM": "false",
    "VLLM_LOGGING_LEVEL": "ERROR",
}.items():
    os.environ.setdefault(_name, _value)

Command = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the checkout."""
    return Path(__file__).resolve().parents[1]


@pytest.fixture
def r1lab(tmp_path: Path) -> Command:
    """Run `r1lab ARGUMENTS` in a process of its own, with an empty folder as the current one."""

    def run(*arguments: object, timeout: float = 300, **environment: str):
        return subprocess.run(
            [sys.executable, "-m", "r1lab", *map(str, arguments)],
            cwd=tmp_path,
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            timeout=timeout,
        )

    return run
