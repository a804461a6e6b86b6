"""Rewards under TRL's signature, without TRL; tests/e2e/test_howto_pages.py runs its trainer."""

from __future__ import annotations

import pytest

from r1lab.types import R1labError
from r1lab.verify.for_trl import trl_reward

PROMPT = "User: 1 + 1 = ? Assistant: <think>"


def test_prompts_that_hold_the_opening_tag():
    reward = trl_reward("math", isolate=False)
    texts = ["so</think><answer>2</answer>", "so</think><answer>3</answer>", "2"]
    assert reward([PROMPT] * 3, texts, answer=["2"] * 3) == [1.0, 0.0, 0.0]
    assert reward.__name__ == "math"


def test_the_form_needs_no_answer_and_sees_the_tag_where_it_stands():
    form = trl_reward("format", answer=None, isolate=False)
    without = "so</think><answer>2</answer>"
    assert form([PROMPT, "1 + 1"], [without] * 2) == [1.0, 0.0]
    assert form(["1 + 1"], [f"<think>{without}"], completion_ids=[[1, 2]]) == [1.0]


def test_messages_and_boxes():
    reward = trl_reward("math", answer="solution", template="qwen-math", isolate=False)
    said = [{"role": "assistant", "content": r"so \boxed{1/2}"}]
    asked = [{"role": "user", "content": "half of one?"}]
    assert reward([asked], [said], solution=["0.5"]) == [1.0]


def test_columns_are_metadata_and_a_fault_is_none_and_logged(tmp_path):
    file = tmp_path / "near.py"
    file.write_text(
        "def reward(problem, completion, *, within):\n"
        "    return float(abs(int(completion.text) - problem.metadata['target']) <= within)\n"
    )
    reward = trl_reward(str(file), {"within": 2}, answer=None)
    logged = {}
    scores = reward(
        ["?"] * 3, ["9", "5", "no number"], target=[10, 10, 10],
        trainer_state=object(), log_metric=logged.__setitem__,
    )  # fmt: skip
    assert scores == [1.0, 0.0, None]
    assert logged == {"near/faults": pytest.approx(1 / 3)}


def test_what_is_missing_is_named():
    with pytest.raises(R1labError, match=r"no column 'answer'.*did you mean 'answers'"):
        trl_reward("math", isolate=False)(["?"], ["2"], answers=["2"])
    with pytest.raises(R1labError, match=r"template: 'r1zero' is not one of .*'r1-zero'"):
        trl_reward("math", template="r1zero")
    with pytest.raises(R1labError, match=r"no reward is called 'maths'"):
        trl_reward("maths")
