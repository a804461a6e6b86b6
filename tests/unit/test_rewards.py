"""The smaller verifiers: stacks, divisions, derivations, language, length."""

import ast
import random
from pathlib import Path

import pytest

from r1lab.data import boxes as boxes_source
from r1lab.data import derivations
from r1lab.data.streams import SolutionWriter
from r1lab.rewards import boxes, derivation, division, language, length
from r1lab.types import Completion, Problem
from r1lab.verify.hostile import hostile_items

STACK = Problem("b", "", "red, blue, green", "boxes")
DIVIDE = Problem("d", "", "141 r 1", "division", metadata={"dividend": 847, "divisor": 6})
SIMPLIFY = Problem(
    "s", "", "9", "math", metadata={"kind": "simplify", "expression": "( 3 + 4 ) * 2 - 5"}
)
SOLVE = Problem("e", "", "5", "math", metadata={"factor": 3, "added": 4, "right": 19})


def completion(answer=None, thinking="", tokens=3, finish_reason="stop"):
    return Completion((1,) * tokens, "", finish_reason, 0, thinking=thinking, answer=answer)


@pytest.mark.parametrize(
    "answer",
    [
        "red, blue, green", "red blue green", "Red -> Blue -> Green", "[red; blue; green]",
        "1. red 2. blue 3. green", "1) red\n2) blue\n3) green", "red > blue > green",
        "bottom: red, blue, top: green", "from bottom to top: red, blue and green",
        "the red box, then the blue one and the green one", "\\boxed{red, blue, green}",
        "from top to bottom: green, blue, red", "top: green, blue, bottom: red",
        "red → blue → green",
    ],
)  # fmt: skip
def test_ways_to_list_a_stack(answer):
    assert boxes.reward(STACK, completion(answer)).score == 1.0


@pytest.mark.parametrize(
    "answer",
    [None, "", "red, blue", "green, blue, red", "red, blue, green, red", "red blue green or black",
     "not red, blue, green", "from top to bottom: red, blue, green", "1. red 3. blue 2. green",
     "red, blue, green; green, blue, red", "infrared, blue, green"],
)  # fmt: skip
def test_other_stacks(answer):
    assert boxes.reward(STACK, completion(answer)).score == 0.0


def test_gold_stacks_score_full():
    stream = boxes_source.load("test")
    for i in range(50):
        assert boxes.reward(stream[i], completion(stream[i].answer)).score == 1.0


@pytest.mark.parametrize(
    "answer",
    [
        "141 r 1", "141R1", "141 remainder 1", "141 rem. 1", "141 with a remainder of 1",
        "quotient 141, remainder 1", "Quotient: 141, Remainder: 1", "q = 141, r = 1", "(141, 1)",
        "the remainder is 1 and the quotient is 141", "847 / 6 = 141 r 1", "847 = 6 * 141 + 1",
        "141 1/6", "$141 \\text{ R } 1$", "\\boxed{141 r 1}", "141 r 1.", "847 ÷ 6 = 141 r 1",
    ],
)  # fmt: skip
def test_ways_to_write_a_division(answer):
    assert division.reward(DIVIDE, completion(answer)).score == 1.0


@pytest.mark.parametrize(
    "answer",
    [None, "", "141", "141 r 2", "140 r 7", "1 r 141", "141.1", "141 r 1 or 2", "847 / 6",
     "847 / 7 = 141 r 1", "847 = 6 * 140 + 7", "848 = 6 * 141 + 2", "141 2/6", "(1, 141)",
     "141 r 1 r 1", "14 1 r 1", "141 1/0"],
)  # fmt: skip
def test_other_divisions(answer):
    assert division.reward(DIVIDE, completion(answer)).score == 0.0


@pytest.mark.parametrize(
    ("problem", "work", "answer"),
    [
        (SIMPLIFY, "( 3 + 4 ) * 2 - 5 = 7 * 2 - 5 = 14 - 5 = 9", "9"),
        (SIMPLIFY, "(3+4)*2-5\n= 7*2-5\n= 14-5\n= 9", "9"),
        (SIMPLIFY, "", "( 3 + 4 ) * 2 - 5 = 14 - 5 = 9"),
        (SIMPLIFY, "( 3 + 4 ) * 2 - 5 = 8 * 2 - 5 wait = 7 * 2 - 5 = 14 - 5 = 9", "9"),
        (SOLVE, "3 x = 19 - 4 = 15 , x = 15 / 3 = 5", "5"),
        (SOLVE, "3x + 4 = 19\n3x = 15\nx = 5", "x = 5"),
        (SOLVE, "3 x = 19 - 4 = 14 , wait 3 x = 19 - 4 = 15 , x = 15 / 3 = 5", "5"),
    ],
)
def test_derivations_that_hold(problem, work, answer):
    verdict = derivation.reward(problem, completion(answer, thinking=work))
    assert verdict.score == 1.0, verdict.reason
    assert verdict.parts["steps"] == 1.0


@pytest.mark.parametrize(
    ("problem", "work", "answer"),
    [
        (SIMPLIFY, "( 3 + 4 ) * 2 - 5 = 7 * 2 - 5 = 13 - 5 = 9", "9"),  # two slips that cancel
        (SIMPLIFY, "( 3 + 4 ) * 2 - 5 = 7 * 2 - 5 = 14 - 5 = 9", "8"),
        (SIMPLIFY, "( 3 + 4 ) * 2 - 5 = 7 * 2 - 5 = 14 - 5", "8"),
        (SIMPLIFY, "9 = 9", "9"),
        (SIMPLIFY, "", "9"),
        (SIMPLIFY, "( 3 + 4 ) * 2 - 5 = 9", None),
        (SOLVE, "3 x = 19 + 4 = 23 , x = 5", "5"),
        (SOLVE, "3 x = 16 , x = 5", "5"),
        (SOLVE, "x = 6", "5"),
        (SOLVE, "5 = 5", "5"),
    ],
)
def test_derivations_that_do_not(problem, work, answer):
    assert derivation.reward(problem, completion(answer, thinking=work)).score == 0.0


def test_the_work_of_the_source_is_judged_by_its_slips():
    stream = derivations.load("train")
    for i in range(100):
        work = SolutionWriter(random.Random(i))
        answer = derivations.solve(stream[i], work)
        assert derivation.reward(stream[i], completion(answer, " ".join(work.lines))).score == 1.0
        slipped = SolutionWriter(random.Random(i), slip_rate=1.0)
        answer = derivations.solve(stream[i], slipped)
        given = completion(answer, " ".join(slipped.lines))
        assert derivation.reward(stream[i], given).score == 0.0


@pytest.mark.parametrize("path", sorted(Path(boxes.__file__).parent.rglob("*.py")), ids=str)
def test_no_reward_can_evaluate_what_it_reads(path):
    refused = {"eval", "exec", "compile", "__import__", "pickle", "marshal", "sympy", "subprocess",
               "os", "ctypes", "sympify", "parse_expr", "ast", "builtins"}  # fmt: skip
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names |= {alias.name.split(".")[0] for alias in node.names}
            names.add((getattr(node, "module", "") or "").split(".")[0])
    assert not names & refused


def test_hostile_answers_score_nothing(tmp_path):
    for item in hostile_items(tmp_path / "canary"):
        for problem, judge in ((STACK, boxes), (DIVIDE, division), (SIMPLIFY, derivation)):
            given = completion(item.answer, thinking=item.answer)
            assert judge.reward(problem, given).score == 0.0, item.name
        share = language.reward(STACK, completion("", thinking=item.answer)).score
        assert share is None or 0.0 <= share <= 1.0
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize(
    ("thinking", "options", "expected"),
    [
        ("First we add 3 and 4.", {}, 1.0),
        ("First 我们 add", {}, 0.5),
        ("我们先算 the sum", {"language": "zh"}, 4 / 6),
        ("сначала add", {"language": "ru"}, 0.5),
        ("3 + 4 = 7 \\frac{1}{2} x", {}, None),
        ("", {}, None),
    ],
)
def test_language(thinking, options, expected):
    assert language.reward(STACK, completion("", thinking), **options).score == expected


def test_language_by_a_word_list(tmp_path):
    (tmp_path / "words").write_text("add\nThe\n")
    given = completion("", "Add the xyzzy numbers")
    assert language.reward(STACK, given, word_list=str(tmp_path / "words")).score == 0.5
    assert language.reward(STACK, completion("1", None)).score == 0.0
    with pytest.raises(ValueError, match="no such file"):
        language.reward(STACK, given, word_list=str(tmp_path / "none"))
    with pytest.raises(ValueError, match="tlh"):
        language.reward(STACK, given, language="tlh")


@pytest.mark.parametrize(
    ("tokens", "finish", "expected"),
    [(80, "stop", 0.0), (81, "stop", -0.05), (90, "stop", -0.5), (100, "stop", -1.0),
     (101, "stop", -1.0), (10, "length", -1.0), (0, "stop", 0.0)],
)  # fmt: skip
def test_soft_overlong_penalty(tokens, finish, expected):
    given = completion("", tokens=tokens, finish_reason=finish)
    verdict = length.soft_overlong(STACK, given, max_tokens=100, buffer=20)
    assert verdict.score == pytest.approx(expected)


def test_cosine_reward():
    def score(answer, tokens, **options):
        given = completion(answer, tokens=tokens)
        return length.cosine(STACK, given, max_tokens=100, **options).score

    right, wrong = "red, blue, green", "green"
    assert score(right, 0) == pytest.approx(2.0)
    assert score(right, 50) == pytest.approx(1.5)
    assert score(wrong, 0) == pytest.approx(-10.0)
    assert score(wrong, 50) == pytest.approx(-5.0)
    assert score(right, 100) == score(wrong, 100) == -10.0
    assert score("41", 0, verifier="math") == pytest.approx(-10.0)
    with pytest.raises(ValueError, match="ships"):
        score(right, 1, verifier="../evil")
    with pytest.raises(ValueError, match="buffer"):
        length.soft_overlong(STACK, completion(""), max_tokens=10, buffer=20)
