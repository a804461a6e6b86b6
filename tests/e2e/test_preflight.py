"""`r1lab train RECIPE --preflight` with the real base, sampler, rewards and weight sync."""

from __future__ import annotations

import json

import pytest

from r1lab.cli.app import main

REWARD = """
from r1lab.types import Verdict
def reward(problem, completion):
    return Verdict(0.0, "never")
"""


@pytest.fixture
def preflight(tmp_path, capfd):
    """Ask for the prospects of the quickstart with these changes: (code, what it said, figures)."""

    def ask(*changes):
        folder = tmp_path / "run"
        code = main(["train", "quickstart", "--preflight", "--output", str(folder), *changes])
        said = capfd.readouterr().out
        found = json.loads((folder / "preflight.json").read_text())
        assert found["can_learn"] == (code == 0) and found["verdict"] in said
        assert not (folder / "metrics.jsonl").exists(), "nothing is trained"
        return code, said, found

    return ask


def test_the_quickstart_can_learn(preflight):
    code, said, found = preflight()
    assert code == 0 and "FAILED" not in said and "WARN" not in said
    figures = found["figures"]
    assert figures["groups"] == 32 and figures["responses"] == 512
    assert figures["truncated"] < 0.05 and figures["answered"] > 0.6
    assert 0 < figures["pass_at_1"] < figures["pass_at_4"] < figures["pass_at_16"]
    assert figures["zero_variance"] < 0.2 and figures["sync_kl"] < 1e-2
    assert {point["name"] for point in found["points"]} == {
        "ends", "answers", "rewards", "variance", "accuracy", "prompts", "agreement"
    }  # fmt: skip


def test_no_room_to_answer(preflight):
    code, said, found = preflight("--sampling.max_tokens", "3")
    assert code == 4 and found["figures"]["truncated"] > 0.9
    assert "raise sampling.max_tokens (now 3)" in said


def test_a_reward_that_is_always_0(preflight, tmp_path):
    path = tmp_path / "never.py"
    path.write_text(REWARD)
    code, said, found = preflight("--rewards", f"[{{reward: {path}}}]", "--sampling.group_size=4")
    assert code == 4 and found["figures"]["zero_variance"] == 1.0
    assert "nothing can be learnt" in said and "r1lab verify" in said
    failed = {point["name"] for point in found["points"] if point["level"] == "failed"}
    assert failed == {"variance", "accuracy"}, "the base itself is sound"
