"""Problem sources: deterministic, disjoint, right, and readable by the small tokenizer."""

import random
from itertools import islice

import pytest
import sympy

from r1lab.data import arithmetic, boxes, derivations, division
from r1lab.data.corpus import TASKS, Corpus, Dials
from r1lab.data.streams import SolutionWriter, is_held_out
from r1lab.model.tokenizer import VOCAB_SIZE, build_tokenizer
from r1lab.problems.registry import resolve
from r1lab.types import Completion, Verdict

NAMES = sorted(TASKS)


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer()


def answer_of(problem, answer):
    reward = resolve(problem.verifier, "reward")
    completion = Completion((), "", "stop", 0, thinking="", answer=answer)
    verdict = reward(problem, completion)
    assert isinstance(verdict, Verdict)
    return verdict.score


@pytest.mark.parametrize("name", NAMES)
def test_a_problem_depends_on_seed_and_index_alone(name):
    stream, again = TASKS[name].load("train", seed=3), TASKS[name].load("train", seed=3)
    assert [again[i] for i in (5, 0, 9)] == [stream[i] for i in (5, 0, 9)]
    assert list(islice(stream, 3)) == [stream[0], stream[1], stream[2]]
    other = TASKS[name].load("train", seed=4)
    assert [other[i].question for i in range(5)] != [stream[i].question for i in range(5)]


@pytest.mark.parametrize("name", NAMES)
def test_train_and_test_are_disjoint(name):
    train = {
        TASKS[name].load("train", seed=seed)[i].question for seed in (0, 1) for i in range(800)
    }
    test = {TASKS[name].load("test", seed=seed)[i].question for seed in (0, 1) for i in range(400)}
    assert not train & test
    assert all(is_held_out(question) for question in test)
    assert len(test) > 100


@pytest.mark.parametrize("name", NAMES)
def test_both_forms_ask_the_same_problem(name):
    compact, words = (
        TASKS[name].load("test", seed=1),
        TASKS[name].load("test", seed=1, form="words"),
    )
    for i in range(50):
        assert compact[i].answer == words[i].answer
        assert compact[i].metadata == words[i].metadata
        assert compact[i].question != words[i].question


@pytest.mark.parametrize("name", NAMES)
def test_flawless_work_arrives_at_the_gold_answer(name):
    stream = TASKS[name].load("train", seed=5)
    for i in range(300):
        work = SolutionWriter(random.Random(i))
        assert TASKS[name].solve(stream[i], work) == stream[i].answer
        assert work.lines


@pytest.mark.parametrize("name", NAMES)
def test_gold_scores_full_and_wrong_answers_nothing(name):
    stream = TASKS[name].load("test", seed=2)
    rng = random.Random(0)
    for i in range(200):
        problem = stream[i]
        assert answer_of(problem, problem.answer) == 1.0
        assert answer_of(problem, TASKS[name].guess(problem, rng)) == 0.0
        for hopeless in (None, "", "9" * 10_000, "__import__('os')", "1/0", "(" * 5_000, "\x00"):
            assert answer_of(problem, hopeless) == 0.0


def test_gold_answers_agree_with_an_independent_calculation():
    for i in range(200):
        p = arithmetic.load("train")[i]
        expected = sympy.Integer(p.metadata["left"])
        other = sympy.Integer(p.metadata["right"])
        assert sympy.Integer(p.answer) == (
            expected + other if p.metadata["sign"] == "+" else expected * other
        )
        d = division.load("train")[i]
        quotient, remainder = map(int, d.answer.split(" r "))
        assert quotient * d.metadata["divisor"] + remainder == d.metadata["dividend"]
        assert 0 <= remainder < d.metadata["divisor"]
        s = derivations.load("train", kinds=("simplify",))[i]
        assert sympy.sympify(s.metadata["expression"]) == int(s.answer)
        e = derivations.load("train", kinds=("solve",))[i].metadata
        (x,) = sympy.solve(e["factor"] * sympy.Symbol("x") + e["added"] - e["right"])
        assert int(derivations.load("train", kinds=("solve",))[i].answer) == x


def test_each_line_of_a_derivation_has_the_value_of_the_first():
    stream = derivations.load("train", kinds=("simplify",), min_operators=3)
    for i in range(100):
        work = SolutionWriter(random.Random(0))
        derivations.solve(stream[i], work)
        values = {sympy.sympify(line.removeprefix("= ")) for line in work.lines}
        assert values == {int(stream[i].answer)}
        assert len(work.lines) == 4  # the expression, then one line an operator


def test_moves_do_what_they_say():
    stack = ("red", "blue", "green")
    assert boxes.apply_move(stack, ("put_top", "red")) == ("blue", "green", "red")
    assert boxes.apply_move(stack, ("put_bottom", "green")) == ("green", "red", "blue")
    assert boxes.apply_move(stack, ("take_out", "blue")) == ("red", "green")
    assert boxes.apply_move(stack, ("add", "pink")) == ("red", "blue", "green", "pink")
    assert boxes.apply_move(stack, ("swap", "red", "green")) == ("green", "blue", "red")
    assert boxes.apply_move(stack, ("turn_over",)) == ("green", "blue", "red")


def test_slips_happen_at_their_rate_and_noticed_ones_leave_the_answer_right():
    stream = boxes.load("train")
    right = sum(
        boxes.solve(stream[i], SolutionWriter(random.Random(i), slip_rate=0.3)) == stream[i].answer
        for i in range(400)
    )
    assert 0.2 < right / 400 < 0.6  # about 0.7 ** 3
    for i in range(200):
        work = SolutionWriter(random.Random(i), slip_rate=0.3, notice_rate=1.0)
        assert boxes.solve(stream[i], work) == stream[i].answer


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("boxes", {"min_boxes": 6, "max_boxes": 4}, "boxes"),
        ("arithmetic", {"operations": ("root",)}, "operations"),
        ("division", {"max_digits": 99}, "digits"),
        ("derivations", {"kinds": ()}, "kinds"),
        ("boxes", {"form": "song"}, "form"),
    ],
)
def test_bad_options_are_named(name, options, said):
    with pytest.raises(ValueError, match=said):
        TASKS[name].load("train", **options)


def test_the_corpus_keeps_its_shares_its_split_and_its_words(tokenizer):
    dials = Dials(drills=0.2, guess=0.5, partial=0.2, full=0.2, selfcheck=0.1, broken=0.25)
    corpus = Corpus(dials, seed=7)
    documents = [corpus[i] for i in range(3000)]
    assert documents[:5] == [Corpus(dials, seed=7)[i] for i in range(5)]
    kinds = [d.kind for d in documents]
    assert abs(kinds.count("drill") / 3000 - 0.2) < 0.03
    assert abs(kinds.count("guess") / 3000 - 0.5 * 0.8) < 0.04
    for document in documents:
        ids = tokenizer.encode(f"{document.prompt} {document.response}")
        assert tokenizer.unk_token_id not in ids, document
        question = document.prompt.removeprefix("User: ").removesuffix(" Assistant: <think>")
        assert not is_held_out(question)
    assert len(tokenizer) == VOCAB_SIZE


@pytest.mark.parametrize("name", NAMES)
def test_the_tokenizer_reads_back_what_it_wrote(name, tokenizer):
    for i in range(50):
        question = TASKS[name].load("train")[i].question
        assert tokenizer.decode(tokenizer.encode(question)) == question
