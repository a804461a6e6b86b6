"""Countdown: the game's rules, the source's splits, and TinyZero's rows."""

import json
import random
from itertools import islice

import pytest

from r1lab.config.recipe import SourceSettings
from r1lab.data import countdown
from r1lab.data.streams import is_held_out
from r1lab.model.tokenizer import build_tokenizer
from r1lab.problems.registry import load_problems
from r1lab.rewards.countdown import BadExpression, evaluate, reward
from r1lab.types import Completion, Problem
from r1lab.verify.hostile import hostile_items

GAME = Problem("g", "", "", "countdown", metadata={"numbers": [44, 19, 35, 4], "target": 98})


def score(answer, problem=GAME, **options):
    return reward(problem, Completion((), "", "stop", 0, answer=answer), **options).score


@pytest.mark.parametrize(
    "answer",
    [
        "44 + 19 + 35", "(44+19)+35", "19 + 35 + 44 = 98", "\\boxed{44 + 19 + 35}",
        "$44 + 19 + 35$", "[44 + 19] + 35", " 44+19+35. ", "\\left(44 + 19\\right) + 35",
    ],
)  # fmt: skip
def test_right_expressions(answer):
    assert score(answer) == 1.0


@pytest.mark.parametrize(
    "answer",
    [
        None, "", "98", "44 + 19", "44 + 44 + 10", "44 + 19 + 35 = 99", "44 + 19 + 35 + 1",
        "44 + 19 + 35 = 98 = 98", "44 19 35", "44 + 19 + 35)", "((44 + 19 + 35)", "-44 + 142",
        "44 ** 1 + 19 + 35", "44 // 1", "44 + 19 + 35 or 98", "44 + 19 + 35; 98", "44.0 + 19 + 35",
        "44 / (4 - 4)", "4!", "max(44, 98)", "0x62", "٤٤ + 19 + 35", "1e2 - 2",
    ],
)  # fmt: skip
def test_wrong_expressions(answer):
    assert score(answer) == 0.0


def test_arithmetic_is_exact():
    thirds = Problem("g", "", "", "countdown", metadata={"nums": [1, 3, 3, 8], "target": 3})
    assert score("1 / 3 * 3 * 8", thirds) == 0.0
    assert evaluate("1/3*3")[0] == 1
    assert evaluate("8/(3-8/3)")[0] == 24
    with pytest.raises(BadExpression, match="zero"):
        evaluate("1/(2-2)")


def test_use_all_asks_for_every_number():
    assert score("44 + 19 + 35", use_all=True) == 0.0
    assert score("(44 + 19 + 35) * 4", use_all=True) == 0.0
    full = Problem("g", "", "", "countdown", metadata={"numbers": [44, 19, 35], "target": 98})
    assert score("44 + 19 + 35", full, use_all=True) == 1.0


def test_hostile_answers_score_nothing(tmp_path):
    for item in hostile_items(tmp_path / "canary"):
        assert score(item.answer) == 0.0
    assert not (tmp_path / "canary").exists()


def test_the_source_is_deterministic_and_its_splits_are_disjoint():
    train, test = countdown.load("train", seed=3), countdown.load("test", seed=3)
    assert list(islice(train, 5)) == [countdown.load("train", seed=3)[i] for i in range(5)]
    assert not any(is_held_out(train[i].question) for i in range(300))
    assert all(is_held_out(test[i].question) for i in range(100))
    for i in range(200):
        assert score(train[i].answer, train[i], use_all=True) == 1.0
        assert score(countdown.guess(train[i], random.Random(i)), train[i]) == 0.0
        assert train[i].metadata["numbers"] == sorted(train[i].metadata["numbers"])


def test_the_small_tokenizer_reads_questions_and_answers():
    tokenizer, stream = build_tokenizer(), countdown.load("train")
    for i in range(100):
        for text in (stream[i].question, stream[i].answer):
            ids = tokenizer.encode(text)
            assert tokenizer.unk_token_id not in ids
            assert tokenizer.decode(ids) == text
    words = countdown.load("train", form="words")
    assert words[0].metadata == stream[0].metadata and words[0].question != stream[0].question


def test_rows_of_a_local_file(tmp_path):
    rows = [{"target": 98, "nums": [44, 19, 35]}, {"target": 7, "nums": [1, 2, 3]}]
    (tmp_path / "test.jsonl").write_text(json.dumps(rows[0]) + "\n")
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    train = countdown.load("train", path=str(tmp_path))
    test = countdown.load("test", path=str(tmp_path))
    # The game of the test file, in whatever order of its numbers, is not trained on.
    assert [p.metadata for p in train] == [{"numbers": [1, 2, 3], "target": 7}]
    assert test[0].question == "use 19 , 35 , 44 to make 98"
    assert all(score(p.answer, p) == 1.0 for p in (*train, *test))
    one = str(tmp_path / "train.jsonl")
    sides = [{p.question for p in countdown.load(s, path=one)} for s in ("train", "test")]
    assert len(sides[0] | sides[1]) == 2 and not sides[0] & sides[1]
    settings = SourceSettings(source="countdown", options={"path": str(tmp_path)})
    assert load_problems(settings, "train")[5].metadata["target"] == 7


@pytest.mark.parametrize(
    ("options", "said"),
    [({"path": "no/such"}, "no such file"), ({"min_numbers": 1}, "numbers"),
     ({"form": "x"}, "form"), ({"largest": 1}, "largest")],
)  # fmt: skip
def test_bad_options_are_named(options, said):
    with pytest.raises(ValueError, match=said):
        countdown.load("train", **options)


def test_a_problem_without_a_game_is_a_mistake():
    with pytest.raises(ValueError, match="numbers"):
        score("1", Problem("p", "", "", "countdown"))
