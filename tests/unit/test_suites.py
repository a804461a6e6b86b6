"""Suites and their problems, prompts, what a model is, what is written, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from records import COMPACT, completion, problem

from r1lab.config.recipe import ModelSettings
from r1lab.data import aime, gsm8k, hendrycks_math, math500
from r1lab.evaluate.completion_clients import LocalAsker
from r1lab.evaluate.contamination import overlap
from r1lab.evaluate.prompting import choose_template, few_shot_template
from r1lab.evaluate.result import ProblemResult, Sample
from r1lab.evaluate.result_store import Store, read_result
from r1lab.evaluate.suites import Suite, find_suites, suite_problems
from r1lab.evaluate.target import find_target
from r1lab.model.load import prepare_base
from r1lab.prompts import Template, last_box
from r1lab.types import Completion, R1labError

DATASETS = Path(__file__).parents[3] / "shared" / "datasets"
needs_datasets = pytest.mark.skipif(not DATASETS.is_dir(), reason=f"no {DATASETS}")


# --- suites ---


@pytest.mark.parametrize("form", ["compact", "words"])
@pytest.mark.parametrize("suite", find_suites("own"), ids=lambda suite: suite.name)
def test_own_suites_ask_held_out_problems_of_either_form(suite: Suite, form: str) -> None:
    problems = suite_problems(suite, num=20, seed=1, form=form)
    assert len({problem.question for problem in problems}) == 20
    assert problems == suite_problems(suite, num=20, seed=1, form=form)
    train = {p.question for p in suite_problems(suite, split="train", num=50, seed=1, form=form)}
    assert not train & {problem.question for problem in problems}


def test_every_suite_has_an_easy_and_a_harder_one() -> None:
    names = {suite.name for suite in find_suites("own")}
    assert {name for name in names if not name.endswith("-hard")} == {
        name.removesuffix("-hard") for name in names if name.endswith("-hard")
    }


@needs_datasets
@pytest.mark.parametrize(
    ("name", "number", "first"),
    [("gsm8k", 1319, "18"), ("math500", 500, None), ("aime24", 30, "204"), ("aime25", 30, "70")],
)
def test_published_suites(name: str, number: int, first: str | None, monkeypatch) -> None:
    monkeypatch.setenv("R1LAB_DATASETS", str(DATASETS))
    (suite,) = find_suites(name)
    problems = suite_problems(suite)
    assert len(problems) == number and len({p.id for p in problems}) == number
    assert {p.verifier for p in problems} == {"math"}
    answers = {p.id: p.answer for p in problems}
    loaded = {"gsm8k": gsm8k, "math500": math500}.get(name, aime)
    in_order = loaded.load("test", **suite.options)
    assert answers[in_order[0].id] == (first or in_order[0].answer)
    assert [p.id for p in suite_problems(suite, num=10, seed=1)] != [p.id for p in in_order[:10]]


@needs_datasets
def test_a_set_is_read_from_where_it_is_said_to_lie() -> None:
    (suite,) = find_suites("aime24", path=str(DATASETS / "aime"))
    assert len(suite_problems(suite)) == 30
    (suite,) = find_suites("aime24", path=str(DATASETS / "aime" / "2025.jsonl"))
    assert suite_problems(suite)[0].id.startswith("aime-2024")
    with pytest.raises(R1labError, match="generated, not read"):
        find_suites("boxes", path="somewhere")


@needs_datasets
def test_math_is_trained_on_outside_math500(monkeypatch) -> None:
    monkeypatch.setenv("R1LAB_DATASETS", str(DATASETS))
    hard = hendrycks_math.load("train", levels=[3, 4, 5])
    # Of 7,474 rows: 5,563 of these levels, four of them without an answer.
    assert len(hard) == 5559 and {p.metadata["level"] for p in hard} == {3, 4, 5}
    assert len({p.id for p in hard}) == len(hard) and {p.verifier for p in hard} == {"math"}
    held_out = hendrycks_math.load("test")
    assert held_out == math500.load("test")
    assert not {p.question for p in hendrycks_math.load("train")} & {p.question for p in held_out}


def test_every_edition_of_math_is_read(tmp_path: Path) -> None:
    """Levels and answers as the editions write them; no held-out question, however it is spaced."""
    rows = [
        {"problem": "a?", "answer": "1", "difficulty": 5.0, "type": "Algebra"},
        {"problem": "b?", "solution": r"So \boxed{\frac{1}{2}}.", "level": "Level 3"},
        {"problem": "c?", "answer": "3", "level": 1, "subject": "Geometry"},
        {"problem": "held  out?", "answer": "4", "level": 5},
        {"problem": "d?", "answer": None, "difficulty": 3.0},
        {"problem": "e?", "answer": "6", "level": "Level ?"},
    ]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    test = {"problem": "held out?", "answer": "4", "level": 5, "subject": "Algebra"}
    (tmp_path / "test.jsonl").write_text(json.dumps(test) + "\n")
    place = str(tmp_path)

    def found(**options: object) -> list[tuple[str, str, object]]:
        loaded = hendrycks_math.load("train", path=place, test_path=place, **options)
        return [(p.question, p.answer, p.metadata["level"]) for p in loaded]

    assert found() == [("a?", "1", 5), ("b?", r"\frac{1}{2}", 3), ("c?", "3", 1)]
    assert found(levels=(3,)) == [("b?", r"\frac{1}{2}", 3)]
    with pytest.raises(ValueError, match=r"levels: \[6\]"):
        found(levels=(6,))
    with pytest.raises(ValueError, match="could not be fetched from the hub"):
        hendrycks_math.load("train", path="owner/math", test_path=place)


@pytest.fixture
def table(tmp_path: Path) -> str:
    path = tmp_path / "mine.jsonl"
    rows = [{"q": f"{i} + 1", "gold": i + 1, "id": f"r{i}"} for i in range(5)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_a_table_is_a_suite(table: str) -> None:
    (suite,) = find_suites(table, columns={"question": "q", "answer": "gold"})
    problems = suite_problems(suite)
    assert suite.name == "mine"
    assert sorted((p.id, p.question, p.answer) for p in problems)[0] == ("r0", "0 + 1", "1")
    assert len(problems) == 5
    with pytest.raises(R1labError, match=r"7 problems requested, but it has 5"):
        suite_problems(suite, num=7)
    with pytest.raises(R1labError, match="no column 'question'"):
        suite_problems(find_suites(table)[0])


@pytest.mark.parametrize(
    ("name", "expected"),
    [("gsm8", "did you mean 'gsm8k'"), ("no.such:load", "no.such"), ("missing.jsonl", "missing")],
)
def test_what_is_no_suite(name: str, expected: str) -> None:
    with pytest.raises(R1labError, match=expected):
        suite_problems(find_suites(name)[0])


def test_a_generator_of_reasoning_gym_scores_its_own_answers() -> None:
    pytest.importorskip("reasoning_gym", reason="the extra [gym] is not installed")
    from r1lab.data.reasoning_gym import load
    from r1lab.rewards.reasoning_gym import reward

    (suite,) = find_suites("gym:leg_counting")
    problems = suite_problems(suite, num=5, seed=1)
    assert problems == suite_problems(suite, num=5, seed=1)
    train = suite_problems(suite, split="train", num=20, seed=1)
    assert not {p.question for p in train} & {p.question for p in problems}
    for asked in problems:
        right, wrong = (
            Completion((), "", "stop", 0, answer=text) for text in (asked.answer, "nonsense")
        )
        assert reward(asked, right).score == 1.0
        assert (reward(asked, wrong).score or 0.0) < 1.0
    with pytest.raises(ValueError, match="no generator"):
        load("test", dataset="no_such")
    with pytest.raises(R1labError, match="config"):
        suite_problems(Suite("x", "reasoning_gym", {"dataset": "gcd", "config": {"no": 1}}))


# --- prompts and answers ---


@pytest.mark.parametrize(
    ("text", "box"),
    [
        (r"so \boxed{1} or \boxed{\frac{1}{2}}.", r"\frac{1}{2}"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed{3} and \boxed{4", "3"),
        ("no box {5}", None),
    ],
)
def test_the_last_terminated_box_counts(text: str, box: str | None) -> None:
    assert last_box(text) == box


def test_boxes_without_end_cost_linear_time() -> None:
    assert last_box(r"\boxed{" * 50_000) is None


@pytest.mark.parametrize(
    ("place", "text", "answer"),
    [
        ("box", r"We find \boxed{7}.", "7"),
        ("box", "We find 7.", None),
        ("whole", "We find 7. ", "We find 7."),
        ("whole", "<think> 5? </think> It is 7.", "It is 7."),
        ("whole", "<think> 5? never closed", None),
        ("box", r"<think> \boxed{5} </think> It is 7.", None),
    ],
)
def test_where_an_answer_is_read_from(place: str, text: str, answer: str | None) -> None:
    template = Template("chat", "{question}", "", place)  # type: ignore[arg-type]
    assert template.read(text).answer == answer


def test_the_small_base_is_asked_as_it_was_taught() -> None:
    _, tokenizer, _ = prepare_base(ModelSettings(path="nano"))
    suite = find_suites("boxes")[0]
    assert choose_template("auto", tokenizer, suite, 0, 0) is COMPACT
    with pytest.raises(R1labError, match="no chat template"):
        choose_template("chat", tokenizer, suite, 0, 0)
    with pytest.raises(R1labError, match="did you mean 'compact'"):
        choose_template("compct", tokenizer, suite, 0, 0)


def test_a_chat_template_of_the_tokenizers_own() -> None:
    _, tokenizer, _ = prepare_base(ModelSettings(path="nano"))
    tokenizer.chat_template = (
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<assistant><think>"
    )
    suite = find_suites("gsm8k")[0]
    template = choose_template("auto", tokenizer, suite, 0, 0)
    assert (template.name, template.prefix, template.answer_in) == ("chat", "<think>", "whole")
    prompt = template.prompt("How {many}?")
    assert prompt.startswith("<user>How {many}?") and prompt.endswith("<assistant><think>")
    assert "\\boxed{}" in prompt


def test_examples_come_from_the_training_split() -> None:
    (suite,) = find_suites("arithmetic")
    template = few_shot_template(suite, 3, seed=1)
    assert template.text.count("The answer is ") == 3
    assert template.prompt("What is 2 and 2?").endswith("Question: What is 2 and 2?\nAnswer:")
    held_out = {p.question for p in suite_problems(suite, num=100, seed=1, form="words")}
    assert not any(question in template.text for question in held_out)
    with pytest.raises(R1labError, match="no training problems"):
        few_shot_template(find_suites("aime24")[0], 3, seed=1)


def test_a_response_ends_where_the_next_question_begins() -> None:
    _, tokenizer, _ = prepare_base(ModelSettings(path="nano"))
    template = Template("few-shot", "{question}", "", "whole", stop=(" put red", " swap"))
    asker = LocalAsker(None, tokenizer, template, tokenizer.encode)  # type: ignore[arg-type]
    tokens = tuple(tokenizer("red blue green put red on top swap red blue")["input_ids"])
    text = tokenizer.decode(tokens)
    cut = asker._cut(Completion(tokens, text, "length", 0))
    assert (cut.text, cut.answer, cut.finish_reason) == ("red blue green", "red blue green", "stop")
    assert cut.token_ids == tokens[:3]
    whole = Completion(tokens[:3], "red blue green", "stop", 0)
    assert asker._cut(whole) is whole


# --- what is evaluated ---


def test_targets(tmp_path: Path) -> None:
    run = tmp_path / "mine"
    for step in (5, 20):
        (run / f"checkpoints/step-{step}/model").mkdir(parents=True)
        (run / f"checkpoints/step-{step}/model/config.json").write_text("{}")
    (run / "recipe.yaml").write_text("name: mine\nproblems: {sources: [{source: boxes}]}\n")
    trained = find_target(str(run))
    assert trained.path == str(run / "checkpoints/step-20/model")
    assert trained.run == run and trained.recipe is not None
    assert find_target(str(run / "recipe.yaml")).path == "nano"
    assert find_target("quickstart").path == "nano"
    chosen = find_target(str(run), [("model.path", "nano")])
    assert (chosen.label, chosen.path, chosen.run) == ("nano", "nano", None)
    checkpoint = find_target(str(run / "checkpoints/step-5"))
    assert (checkpoint.label, checkpoint.path) == (
        "mine-step-5", str(run / "checkpoints/step-5/model"),
    )  # fmt: skip
    assert find_target("http://localhost:8000/v1").is_server
    with pytest.raises(R1labError, match="no recipe whose keys"):
        find_target("nano", [("steps", "3")])


def test_a_run_without_a_trained_model_is_not_scored_as_its_base(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("name: mine\nproblems: {sources: [{source: boxes}]}\n")
    with pytest.raises(R1labError, match="no trained model yet"):
        find_target(str(tmp_path))


# --- what is written ---


def judged(index: int, correct: bool = True) -> ProblemResult:
    done = completion()
    sample = Sample(
        done.text, "1", correct, float(correct), "", {"accuracy": float(correct)}, None, 3, "stop",
        True, 0 if correct else 1,
    )  # fmt: skip
    asked = problem(index)
    return ProblemResult(asked.id, "sums", asked.question, asked.answer, (sample,), majority=1.0)


def test_what_was_judged_is_found_again(tmp_path: Path) -> None:
    plan = {"suite": "sums", "seed": 1, "sizes": (1, 2)}
    store = Store(tmp_path / "out", "sums", plan)
    assert store.done() == [] and store.finished() is None
    store.add([judged(0), judged(1, correct=False)])
    again = Store(tmp_path / "out", "sums", plan)
    assert again.done() == [judged(0), judged(1, correct=False)]
    (lines,) = (tmp_path / "out").glob("*.jsonl")
    with lines.open("ab") as file:  # killed in the middle of a line
        file.write(b'{"id": "p2", "sou')
    assert Store(tmp_path / "out", "sums", plan).done() == [judged(0), judged(1, correct=False)]
    again.add([judged(2)])
    assert [p.id for p in Store(tmp_path / "out", "sums", plan).done()] == ["p0", "p1", "p2"]
    assert Store(tmp_path / "out", "sums", {**plan, "seed": 2}).done() == []
    result = again.finish({"problems": [], "overall": {}, "k": 1})
    assert not list((tmp_path / "out").glob("*.jsonl"))
    assert read_result(again.result_path) == again.finished() == result


def test_what_is_no_result(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("[1]")
    (tmp_path / "b.json").write_text("{")
    for name in ("a.json", "b.json", "c.json"):
        with pytest.raises(R1labError, match="result"):
            read_result(tmp_path / name)
    (tmp_path / "file").write_text("")
    with pytest.raises(R1labError, match="--out"):
        Store(tmp_path / "file" / "out", "sums", {})


# --- contamination ---


def test_overlap_counts_whole_questions_and_runs_of_words() -> None:
    long = "a farmer has seven cows and each of them gives nine pails of milk a day"
    asked = [
        ProblemResult("same", "s", "What is 2 + 2?", "4", judged(0).samples),
        ProblemResult("run", "s", f"Note: {long}, or so.", "4", judged(0, False).samples),
        ProblemResult("new", "s", "What is 2 + 3?", "5", judged(0).samples),
    ]
    found = overlap(["what is 2 + 2?", f"Suppose that {long}."], asked)
    assert found["exact"] == pytest.approx(1 / 3)
    assert found["overlapping"] == pytest.approx(2 / 3)
    assert found["ids"] == ["same", "run"]
    assert found["pass_at_1_clean"]["value"] == 1.0
    assert found["pass_at_1_overlapping"]["value"] == 0.5
    assert found["pass_at_1_clean"]["low"] < 1.0
    assert overlap(["nothing"], asked)["pass_at_1_overlapping"] is None
