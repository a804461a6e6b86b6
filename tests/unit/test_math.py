"""The maths checker: the policy of docs/verifiers.md, line by line, and text meant to harm it."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from r1lab.rewards.math import judge, reward
from r1lab.rewards.math_grammar import Unreadable
from r1lab.rewards.math_parser import parse
from r1lab.types import Completion, Problem, Verdict
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


# One row for each line of the policy: gold, what equals it, what does not.
POLICY = [
    ("1/2", ["\\frac12", "0.5", ".5", "2^{-1}", "\\frac{2}{4}"], ["0.5001", "0.5 + 10^{-60}"]),
    ("1000", ["1{,}000", "1,000", "1 000", "1\\,000", "1,\\!000"], ["1, 000", "1,00"]),
    ("2.74", ["2,74"], ["2, 74", "274"]),
    ("5/2", ["2 1/2", "2\\frac{1}{2}", "2\\frac12"], ["1", "2*1/2"]),
    ("-\\frac52", ["-2 1/2", "-2.5"], ["-1.5"]),
    ("1/3", ["0.\\overline{3}", "0.(3)", "0.333..."], ["0.333", "0.33333333333333333333"]),
    ("300000000", ["3 \\times 10^8", "3e8", "3*10^8"], ["3 \\times 10^7"]),
    ("1e-7", ["0.0000001"], ["4e-7", "0"]),
    ("3.14", ["157/50"], ["\\pi", "22/7"]),
    ("\\pi", [], ["3.14", "3.14159265358979"]),
    ("50%", ["50", "50\\%", "50 percent", "1/2", "0.5"], ["5", "0.005", "5000"]),
    ("50", ["50%"], ["0.5", "5000", "5\\%"]),
    ("12_5", ["12_{5}"], ["12_3", "12", "7"]),
    ("90^\\circ", ["90", "90°", "\\frac{\\pi}{2}"], ["91^\\circ"]),
    ("\\sqrt{12}", ["2\\sqrt3", "\\sqrt[4]{144}", "12^{1/2}"], ["3.4641016", "\\sqrt{13}"]),
    ("-2", ["\\sqrt[3]{-8}", "-\\sqrt4"], ["\\sqrt{-8}", "2"]),
    ("20", ["2\\cdot10", "20."], ["2 0", "2, 0"]),
    ("2^{2005}", ["2 \\cdot 2^{2004}"], ["2^{2006}"]),
    ("6", ["3!", "\\binom{4}{2}", "2+4", "2 + 4 = 6", "|-6|"], ["2+5=6", "3=6"]),
    ("\\frac13", ["\\frac13 \\approx 0.333"], ["0.333 \\approx \\frac13"]),
    ("\\sum_{k=1}^{n} k", ["\\sum_{k=1}^n k"], ["\\sum_{k=1}^{n} k^2", "\\sum_{k=0}^{n} k"]),
    ("x^2-1", ["(x-1)(x+1)", "-1+x^2"], ["x^2", "y^2-1", "x^2-1.0000001"]),
    ("|x|", ["\\sqrt{x^2}"], ["x"]),
    ("\\tan^2 y + 1", ["\\sec^2 y", "\\frac{1}{\\cos^2 y}"], ["\\sec y"]),
    ("f(x) = x", ["f(y) = y", "x"], ["f(x) = y", "g(x) = x"]),
    ("abc", ["abc"], ["cba", "bca"]),
    ("2abc+1", ["1+2cba"], ["2ab+1"]),
    ("x_1", ["x_{1}"], ["x_2", "x"]),
    ("2x+4y-3=0", ["y=-\\frac12x+\\frac34", "4x+8y=6"], ["2x+4y=0", "0"]),
    ("x = 5", ["5", "5 = x"], ["y = 5", "x = 6"]),
    ("|AB| = 5", ["5"], ["|CB| = 5"]),
    ("7:32", ["14:64"], ["32:7", "7:33"]),
    ("12:00", ["12:00"], ["1:00"]),
    ("\\pm 2", ["-2, 2", "\\{2, -2\\}"], ["2", "-2"]),
    ("1, 2", ["2, 1", "\\{1, 2\\}", "1 and 2", "2; 1", "x=1 or x=2"], ["1", "1, 2, 3"]),
    ("(1, 2)", ["(1,2)", "\\begin{pmatrix}1\\\\2\\end{pmatrix}", "1, 2", "x=1, y=2"],
     ["(2, 1)", "\\{1, 2\\}", "2, 1"]),
    ("x=1, y=2", ["y=2, x=1", "(1,2)"], ["x=2, y=1", "2, 1"]),
    ("\\begin{pmatrix}1\\\\2\\end{pmatrix}", ["(1,2)", "\\begin{bmatrix}1\\\\2\\end{bmatrix}"],
     ["\\begin{pmatrix}1&2\\end{pmatrix}", "(2,1)"]),
    ("\\begin{pmatrix}6&8\\end{pmatrix}",
     ["\\begin{pmatrix}1&2\\end{pmatrix}+\\begin{pmatrix}5&6\\end{pmatrix}"],
     ["\\begin{pmatrix}6&9\\end{pmatrix}"]),
    ("(2, 5]", ["2 < x \\le 5", "x \\in (2,5]", "5 \\ge x > 2"],
     ["(2,5)", "[2,5]", "2 \\le x < 5"]),
    ("x < 1", ["-x > -1", "(-\\infty, 1)", "2x < 2"], ["x > 1", "x \\le 1"]),
    ("x \\ne 1", ["(-\\infty,1)\\cup(1,\\infty)", "\\mathbb{R}\\setminus\\{1\\}"], ["x = 1"]),
    ("x + y < 1", ["-x - y > -1"], ["x - y < 1", "x + y > 1"]),
    ("5\\text{ m}", ["5", "500 cm", "5 meters"], ["5 cm", "5\\text{ km}"]),
    ("10", ["10 apples", "10\\text{ units}"], ["11 apples"]),
    ("10\\text{ apples}", ["10 apples"], ["10\\text{ pears}"]),
    ("\\$18.90", ["18.9", "\\$18.90"], ["18.91"]),
    ("\\text{Even}", ["even", "\\textbf{even}", "The answer is even."],
     ["odd", "evenly", "not even"]),
    ("(C) Cecile", ["C", "(C)", "The answer is C."], ["A", "A or C", "A, B, C"]),
]  # fmt: skip


@pytest.mark.parametrize(("gold", "equal", "other"), POLICY, ids=[row[0] for row in POLICY])
def test_the_policy(gold, equal, other):
    for answer in (gold, f"\\boxed{{{gold}}}", f"So it is $\\boxed{{{gold}}}$.", *equal):
        assert score(gold, answer) == 1.0, answer
    for answer in ("", " ", "nonsense", *other):
        assert score(gold, answer) == 0.0, answer


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
    for text in ("(" * 60 + "1" + ")" * 60, "9" * 500, "x" * 20_000, "\\frac12" * 300):
        with pytest.raises(Unreadable):
            parse(text)
    for bomb in ("9^{9^{9}}", "100000000!", "\\binom{10^9}{5}", "10^{10^{10}}", "e^{e^{e^{9}}}"):
        assert "limit" in verdict("7", bomb).reason


# Right, and rejected: equations are compared up to a fixed factor, not solved.
KNOWN_REJECTED = {("xy = 6", "y = 6/x")}


def test_pairs_judged_by_hand():
    """Judged by the policy before the checker saw them: gold, given, whether equal."""
    with (Path(__file__).parent / "data" / "math_pairs.tsv").open(encoding="utf-8") as lines:
        pairs = [line.rstrip("\n").split("\t") for line in lines][1:]
    misses = {(gold, given) for gold, given, label in pairs if score(gold, given) != int(label)}
    assert misses == KNOWN_REJECTED
    assert len(pairs) == len({(gold, given) for gold, given, _ in pairs}) > 1000


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
