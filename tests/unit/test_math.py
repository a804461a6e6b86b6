"""The maths checker: the policy of docs/verifiers.md, line by line, and text meant to harm it."""

import json
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from r1lab.prompts import TEMPLATES
from r1lab.rewards.math import judge, reward
from r1lab.rewards.math.grammar import Unreadable
from r1lab.rewards.math.parser import parse
from r1lab.types import Completion, Problem, Verdict
from r1lab.verify.check import as_written
from r1lab.verify.hostile import hostile_items

ROOT = Path(__file__).resolve().parents[2]
SHARED = ROOT.parent / "shared"
CASES = json.loads((ROOT / "docs/verifier_cases.json").read_text())


def verdict(gold, answer=None, *, text="", prefix="<think>"):
    problem = Problem("p", "", gold, "math")
    found = reward(problem, Completion((), text, "stop", 0, prefix=prefix, answer=answer))
    assert isinstance(found, Verdict) and found.reason
    return found


def score(*args, **options):
    return verdict(*args, **options).score


@pytest.mark.parametrize("case", CASES["wrong"], ids=lambda case: f"{case['case']}: {case}"[:60])
def test_known_wrong_answers_are_rejected(case):
    assert score(case["gold"], case.get("given"), text=case.get("response", "")) == 0.0


@pytest.mark.parametrize("case", CASES["right"], ids=lambda case: f"{case}"[:60])
def test_known_right_answers_are_accepted(case):
    assert score(case["gold"], case["given"]) == 1.0


# The lines of the policy, as docs/verifiers.md says them.


def policy():
    """(whether of whole responses, rule, gold, equal, other) of each row of its tables."""
    of_responses = False
    for line in (ROOT / "docs/verifiers.md").read_text(encoding="utf-8").splitlines():
        if line.startswith("| rule"):
            of_responses = "read as" in line
        elif line.startswith("| "):
            rule, *cells = (cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip("| ")))
            codes = [re.findall("`([^`]+)`", cell.replace("\\|", "|")) for cell in (*cells, "")]
            yield of_responses, rule, codes[0][0], codes[1], codes[2]


@pytest.mark.parametrize("row", list(policy()), ids=lambda row: row[1][:50])
def test_a_line_of_the_policy(row):
    of_responses, _, gold, equal, other = row
    assert equal or other
    if of_responses:
        for text, expected in (*((t, 1.0) for t in equal), *((t, 0.0) for t in other)):
            written = as_written(TEMPLATES["r1-zero"], text)
            assert reward(Problem("p", "", gold, "math"), written).score == expected, text
        return
    for answer in (gold, f"\\boxed{{{gold}}}", f"So it is $\\boxed{{{gold}}}$.", *equal):
        assert score(gold, answer) == 1.0, answer
    for answer in ("", " ", "nonsense", *other):
        assert score(gold, answer) == 0.0, answer


def test_every_line_of_the_policy_is_read():
    text = (ROOT / "docs/verifiers.md").read_text(encoding="utf-8")
    assert len(list(policy())) == text.count("\n| ") - text.count("\n| rule") > 70


def test_the_answer_stands_behind_the_thinking():
    assert score("5", text="so \\boxed{5} </think> that is it") == 0.0
    assert score("5", text="so \\boxed{5}") == 0.0
    assert score("5", text="\\boxed{4} </think> \\boxed{5}") == 1.0
    assert score("5", text="it is \\boxed{5}", prefix="") == 1.0
    assert score("5", text="it is 5", prefix="") == 0.0
    # The last terminated box; one that does not end holds no answer.
    assert score("5", "\\boxed{4}, no, it has to be another: \\boxed{5}") == 1.0
    assert score("5", "\\boxed{4}, no, it has to be another. \\boxed{5") == 0.0
    assert score("5", "\\boxed{5") == 0.0


def test_boxes_side_by_side_are_a_list():
    assert score("2,3", "\\boxed{2} and \\boxed{3}") == 1.0
    assert score("3", "\\boxed{2} and \\boxed{3}") == 0.0
    assert score("3", "\\boxed{3} and \\boxed{3}") == 1.0
    assert score("3", "First we find \\boxed{2}. With that, \\boxed{3}") == 1.0


def test_hostile_answers_score_nothing(tmp_path):
    canary = tmp_path / "canary"
    for item in hostile_items(canary):
        for answer in (item.answer, f"\\boxed{{{item.answer}}}", f"x = {item.answer}"):
            assert score(item.gold, answer) == 0.0, item.name
    assert not canary.exists()


@pytest.mark.parametrize(
    "found",
    ["9^g9^g((278T9^'9!)((278T9^9!)!)\x10!", "2^' 9", "0.333" * 300 + "!", "1e00000872244769"],
)
def test_what_a_fuzzer_found_is_a_verdict(found):
    equal, reason = judge("5", found)
    assert not equal and reason


def test_what_is_too_large_is_refused_unread():
    for text in ("(" * 60 + "1" + ")" * 60, "9" * 401, "x" * 20_000, "\\frac12" * 300, "x" * 1501):
        with pytest.raises(Unreadable):
            parse(text)
    for bomb in ("2^{10001}", "2^{-10001}", "501!", "(2^{9000})^3", "1e401", "1e00000872244769"):
        assert "limit" in verdict("7", bomb).reason
    for bomb in ("9^{9^{9}}", "100000000!", "\\binom{10^9}{5}", "10^{10^{10}}", "e^{e^{e^{9}}}"):
        assert "limit" in verdict("7", bomb).reason


# Right, and rejected: docs/verifiers.md says why.
KNOWN_REJECTED = {
    ("xy = 6", "y = 6/x"),
    ("(-\\infty, 2) \\cup (2, \\infty)", "all real numbers except 2"),
    ("(2, -3)", "P(2, -3)"),
    ("C(10,3)", "\\binom{10}{3}"),
    ("C(10,3)", "120"),
    ("42", "The result is 42!"),
}


@pytest.mark.parametrize(
    ("name", "known"),
    # The pairs were judged by hand before the checker saw them, the cases written beside it.
    [("math_pairs", KNOWN_REJECTED), ("math_cases", set())],
)
def test_judged_answers(name, known):
    with (Path(__file__).parent / f"data/{name}.tsv").open(encoding="utf-8") as lines:
        pairs = [line.rstrip("\n").split("\t") for line in lines][1:]
    assert {(gold, given) for gold, given, label in pairs if score(gold, given) != int(label)} == (
        known
    )


@settings(max_examples=150, deadline=None)
@given(st.text(alphabet="0123456789+-*/^(){}[]|,.;=<>!%_ xe\\fracsqtdoin$", max_size=40))
def test_any_text_gets_a_verdict_and_equals_itself(text):
    assert score("7", text) in (0.0, 1.0)
    if text.strip() and "\\boxed" not in text:
        assert score(text, text) == 1.0


@settings(max_examples=100, deadline=None)
@given(st.fractions(), st.fractions())
def test_rationals_are_exact(one, two):
    spelled = f"\\frac{{{one.numerator}}}{{{one.denominator}}}"
    assert judge(str(one), spelled)[0]
    assert judge(str(two), spelled)[0] == (one == two)
    assert judge(f"{two} + \\sqrt{{2}}", f"\\sqrt{{2}} + {spelled}")[0] == (one == two)


@pytest.mark.parametrize(
    "name", ["math_verify_tests", "lighteval_tests", "nemo_skills_tests", "hendrycks_tests"]
)
def test_labelled_sets(name):
    path = SHARED / "verifier" / f"{name}.jsonl"
    if not path.is_file():
        pytest.skip(f"no {path}")
    classes = json.loads((ROOT / "docs/verifier_classes.json").read_text())[name]
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert len(classes) <= len(rows) / 10
    misses = [
        place
        for place, row in enumerate(rows, start=1)
        if str(place) not in classes and judge(row["gold"], row["pred"])[0] != bool(row["label"])
    ]
    # 127: fifteen decimals for a fraction; 9: the order of a list, a class of its own in MATH.
    assert misses == {"math_verify_tests": [127], "hendrycks_tests": [9]}.get(name, [])


def test_gold_answers_equal_themselves():
    path = SHARED / "datasets/math500/test.jsonl"
    if not path.is_file():
        pytest.skip(f"no {path}")
    for line in path.read_text().splitlines():
        gold = json.loads(line)["answer"]
        assert score(gold, f"\\boxed{{{gold}}}") == score(gold, gold) == 1.0
