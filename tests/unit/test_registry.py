"""Names in recipes, and the streams of problems behind them."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from collections import Counter
from itertools import islice
from pathlib import Path

import pytest

from r1lab.config.recipe import ProblemSettings, SourceSettings
from r1lab.problems.mixture import ProblemMixture
from r1lab.problems.registry import (
    find,
    load_mixture,
    load_problems,
    resolve,
    shipped,
)
from r1lab.types import Problem, RecipeError

REWARD = "def reward(problem, completion):\n    return 1.0\n"
SOURCE = """\
from r1lab.types import Problem

def load(split, seed=0, size=3):
    return [Problem(f"{split}{i}", f"{i}?", str(i), "math") for i in range(size)]
"""


@pytest.fixture
def write(tmp_path: Path):
    def write(text: str, name: str = "mine.py") -> Path:
        path = tmp_path / name
        path.write_text(text)
        return path

    return write


def refusal(call, *arguments, **keywords) -> str:
    with pytest.raises(RecipeError) as caught:
        call(*arguments, **keywords)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- references ---


def test_shipped_names():
    assert {"boxes", "math", "division", "format"} <= set(shipped("reward"))
    assert {"boxes", "arithmetic", "division", "derivations"} <= set(shipped("source"))
    assert resolve("boxes", "reward").__module__ == "r1lab.rewards.boxes"
    assert resolve("boxes", "source").__module__ == "r1lab.data.boxes"


def test_files_and_modules(write):
    path = write(REWARD + "\ndef other(problem, completion):\n    return 0.0\n")
    assert resolve(f"{path}:other", "reward").__name__ == "other"
    assert resolve(str(path), "reward").__name__ == "reward"
    assert resolve("r1lab.rewards.boxes:reward", "reward") is resolve("boxes", "reward")


def test_a_file_is_imported_once_and_apart_from_others_of_its_name(write, tmp_path):
    (tmp_path / "other").mkdir()
    first, second = write(REWARD), write(REWARD, "other/mine.py")
    assert resolve(str(first), "reward") is resolve(str(first), "reward")
    assert resolve(str(first), "reward") is not resolve(str(second), "reward")


def test_a_file_can_import_its_neighbours(write):
    write("SCORE = 0.5\n", "neighbour_of_mine.py")
    path = write("from neighbour_of_mine import SCORE\ndef reward(p, c):\n    return SCORE\n")
    assert resolve(str(path), "reward")(None, None) == 0.5


def test_a_reference_loads_in_another_process_and_folder(write):
    path = write(REWARD)
    blob = pickle.dumps(find(f"{path}:reward", "reward"))
    code = f"import pickle; print(pickle.loads({blob!r}).load()(None, None))"
    done = subprocess.run([sys.executable, "-c", code], cwd="/", capture_output=True, text=True)
    assert done.stdout == "1.0\n", done.stderr


def test_names_are_relative_to_the_current_folder(write, monkeypatch, tmp_path):
    write(REWARD)
    monkeypatch.chdir(tmp_path)
    assert find("mine.py:reward", "reward").path == str(tmp_path / "mine.py")
    assert find("./mine.py", "reward").path == str(tmp_path / "mine.py")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("boxs", ["rewards.0.reward", "'boxs'", "'boxes'?", "path/to/file.py:reward"]),
        ("boxes:rewrd", ["'rewrd'", "'reward'?"]),
        ("nowhere.at_all:reward", ["no module 'nowhere'"]),
        ("r1lab.nothing:reward", ["no module 'r1lab.nothing'"]),
        ("no/such/folder/mine.py:reward", ["there is no folder no/such/folder"]),
    ],
)
def test_names_that_lead_nowhere(text, expected):
    message = refusal(resolve, text, "reward", key="rewards.0.reward")
    assert message.startswith("rewards.0.reward: ")
    for part in expected:
        assert part in message, message


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("def rewrad(p, c):\n    return 1.0\n", ["no function 'reward'", "'rewrad'?"]),
        ("reward = 3\n", ["'reward' is not a function"]),
        ("x = 1\n", ["it has no functions"]),
        ("def reward(:\n", ["line 1", "SyntaxError"]),
        ("x = 1\n\n1 / 0\n", ["mine.py, line 3", "ZeroDivisionError"]),
        ("import not_a_module_at_all\n", ["mine.py, line 1", "not_a_module_at_all"]),
        ("import sys\nsys.exit(3)\n", ["mine.py, line 2", "SystemExit"]),
    ],
)
def test_files_that_do_not_give_the_function(write, text, expected):
    path = write(text)
    message = refusal(resolve, f"{path}:reward", "reward", key="rewards.0.reward")
    for part in ["rewards.0.reward", *expected]:
        assert part in message, message


def test_a_file_that_failed_can_be_mended_and_tried_again(write):
    path = write("1 / 0\n")
    refusal(resolve, str(path), "reward")
    write(REWARD)
    assert resolve(str(path), "reward")(None, None) == 1.0


def test_a_misspelt_file_names_its_neighbour(write, tmp_path):
    write(REWARD)
    assert "mine.py'?" in refusal(resolve, f"{tmp_path}/mne.py:reward", "reward")


# --- sources ---


def load(source: str, split="train", seed=0, **options):
    return load_problems(SourceSettings(source=source, options=options), split, seed)


def test_shipped_sources_give_the_same_problem_at_the_same_index():
    first, second = load("boxes", seed=3), load("boxes", seed=3)
    assert second[17] == first[17] == next(islice(iter(first), 17, None))
    assert load("boxes", seed=4)[17] != first[17]


def test_a_list_comes_again_in_another_order_and_whole(write):
    stream = load(str(write(SOURCE)), size=20)
    rounds = [[stream[i].id for i in range(20 * turn, 20 * turn + 20)] for turn in range(3)]
    assert all(Counter(ids) == Counter(rounds[0]) for ids in rounds)
    assert rounds[0] != rounds[1] != rounds[2]
    assert [problem.id for problem in islice(iter(stream), 40)] == rounds[0] + rounds[1]


def test_a_generator_is_read_as_far_as_asked_and_comes_again(write):
    path = write(SOURCE.replace("return [", "yield from (").replace("range(size)]", "range(size))"))
    stream = load(str(path))
    assert [stream[i].question for i in (0, 4, 2, 3)] == ["0?", "1?", "2?", "0?"]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"sise": 3}, ["problems.sources.options.sise", "'size'?", "allowed: size"]),
        ({"size": 0}, ["no problems"]),
        ({"size": "many"}, ["problems.sources.options"]),
    ],
)
def test_options_that_a_source_does_not_take(write, options, expected):
    message = refusal(load, str(write(SOURCE)), **options)
    for part in expected:
        assert part in message, message


def test_the_seed_of_a_source_is_not_an_option(write):
    settings = SourceSettings(source=str(write(SOURCE)), options={"seed": 3})
    assert "options.seed" in refusal(load_problems, settings, "train")


def test_a_source_that_returns_something_else(write):
    assert "returned int" in refusal(load, str(write("def load(split):\n    return 3\n")))
    path = write("def load(split):\n    return ['a question']\n", "other.py")
    settings = ProblemSettings(sources=(SourceSettings(source=str(path)),))
    assert "gave str" in refusal(lambda: load_mixture(settings, "train")[0])


# --- tables ---


ROWS = [{"question": f"{i} + 1", "answer": i + 1, "level": i % 3} for i in range(200)]


def write_table(path: Path, rows=ROWS) -> str:
    if path.suffix == ".jsonl":
        path.write_text("\n".join(json.dumps(row) for row in rows) + "\n\n")
    else:
        pyarrow = pytest.importorskip("pyarrow")
        from pyarrow import parquet

        parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return str(path)


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_tables_are_split_by_a_hash_of_the_question(tmp_path, suffix):
    path = write_table(tmp_path / f"rows{suffix}")
    train, test = (load(path, split).problems for split in ("train", "test"))
    assert len(train) + len(test) == 200 and 8 <= len(test) <= 35
    assert not {p.question for p in train} & {p.question for p in test}
    assert train[0].verifier == "math" and train[0].metadata["level"] in (0, 1, 2)
    assert isinstance(train[0].answer, str)


def test_a_test_file_is_kept_out_of_training(tmp_path):
    path = write_table(tmp_path / "rows.jsonl")
    held_out = write_table(tmp_path / "held_out.jsonl", ROWS[:5])
    assert len(load(path, "train", test_file=held_out).problems) == 195
    assert len(load(path, "test", test_file=held_out).problems) == 5


def test_columns_are_mapped(tmp_path):
    rows = [
        {"problem": "2?", "solution": "2", "key": "a"},
        {"problem": "3?", "solution": "3", "key": "b"},
    ]
    path = write_table(tmp_path / "rows.jsonl", rows)
    columns = {"question": "problem", "answer": "solution", "id": "key"}
    problems = load(path, columns=columns, test_fraction=0, verifier="boxes").problems
    assert [(p.id, p.question, p.answer, p.verifier) for p in problems] == [
        ("a", "2?", "2", "boxes"),
        ("b", "3?", "3", "boxes"),
    ]
    # A reward written for the data set finds its columns under their own names too.
    assert problems[1].metadata == {"problem": "3?", "solution": "3", "key": "b"}


def test_a_row_may_name_its_verifier(tmp_path):
    rows = [
        {"question": "2?", "answer": "2", "judge": "boxes"},
        {"question": "3?", "answer": "3", "judge": None},
        {"question": "4?", "answer": "4", "judge": "mine.py:four"},
        {"question": "5?", "answer": "5", "judge": "elsewhere.py"},
    ]
    path = write_table(tmp_path / "rows.jsonl", rows)
    (tmp_path / "mine.py").touch()
    options = {"columns": {"verifier": "judge"}, "test_fraction": 0, "verifier": "division"}
    assert [p.verifier for p in load(path, **options).problems] == [
        "boxes", "division", f"{tmp_path / 'mine.py'}:four", "elsewhere.py"
    ]  # fmt: skip
    named = write_table(tmp_path / "named.jsonl", [{**rows[0], "verifier": "countdown"}])
    (problem,) = load(named, test_fraction=0).problems
    assert problem.verifier == "countdown" and "verifier" not in problem.metadata


@pytest.mark.parametrize(
    ("text", "options", "expected"),
    [
        ('{"question": "a"}\n', {}, "no column 'answer'"),
        ('{"question": "a", "answer": "b"}\n[1]\n', {}, "line 2"),
        ('{"question": "a", "answer": "b"}\n{\n', {}, "line 2"),
        ('{"problem": "a", "answer": "b"}\n', {}, "options.columns"),
        ("", {}, "no problems"),
        ('{"question": "a", "answer": "b"}\n', {"columns": {"quest": "a"}}, "'quest'"),
        ('{"question": "a", "answer": "b"}\n', {"test_fraction": 1.0}, "test_fraction"),
        ('{"question": "a", "answer": "b"}\n', {"test_file": "none.jsonl"}, "no file none.jsonl"),
        ('{"question": "a", "answer": "b"}\n', {"test_fractio": 0.5}, "'test_fraction'?"),
    ],
)
def test_tables_that_cannot_be_read(tmp_path, text, options, expected):
    path = tmp_path / "rows.jsonl"
    path.write_text(text)
    assert expected in refusal(load, str(path), **options)


def test_a_missing_table(tmp_path):
    write_table(tmp_path / "rows.jsonl")
    assert "rows.jsonl'?" in refusal(load, str(tmp_path / "row.jsonl"))
    (tmp_path / "bad.parquet").write_text("no parquet")
    assert "not Parquet" in refusal(load, str(tmp_path / "bad.parquet"))


# --- mixtures ---


class Counted:
    """A stream whose problems say where they come from."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __getitem__(self, index: int) -> Problem:
        return Problem(f"{self.name}{index}", f"{self.name}{index}?", "", "math", self.name)

    def __iter__(self):
        return (self[i] for i in range(10**9))


def mixture(weights=(1.0, 2.0, 0.5), seed=0) -> ProblemMixture:
    return ProblemMixture([Counted("abc"[i]) for i in range(len(weights))], weights, seed)


def test_a_mixture_depends_on_seed_and_index_alone():
    whole = [problem.id for problem in islice(mixture(), 1000)]
    assert [mixture()[i].id for i in range(999, -1, -1)] == whole[::-1]
    assert [p.id for p in islice(mixture().starting_at(700), 50)] == whole[700:750]
    assert [problem.id for problem in islice(mixture(seed=1), 1000)] != whole


@pytest.mark.parametrize("weights", [(1.0,), (1.0, 1.0), (1.0, 2.0, 0.5), (1e-3, 1.0), (3, 3, 3)])
def test_a_mixture_reads_each_stream_without_gaps_and_keeps_the_shares(weights):
    num = 64 * 50
    places = [mixture(weights).place(i) for i in range(num)]
    for stream, weight in enumerate(weights):
        indices = [index for which, index in places if which == stream]
        assert sorted(indices) == list(range(len(indices)))
        assert abs(len(indices) - num * weight / sum(weights)) <= 1.5


def test_a_stride_over_a_mixture_meets_every_stream():
    for start in (0, 1):
        met = Counter(mixture((1.0, 1.0))[i].source for i in range(start, 4000, 2))
        assert min(met.values()) > 800


def test_distinct_problems(write):
    settings = ProblemSettings(sources=(SourceSettings(source=str(write(SOURCE))),))
    problems = load_mixture(settings, "test").distinct(3)
    assert len({problem.question for problem in problems}) == 3
    assert "num_problems" in refusal(load_mixture(settings, "test").distinct, 4)


def test_a_mixture_names_the_source_of_a_problem_that_does_not(write):
    path = str(write(SOURCE))
    settings = ProblemSettings(
        sources=(SourceSettings(source=path), SourceSettings(source="boxes"))
    )
    assert {p.source for p in islice(load_mixture(settings, "train"), 50)} == {path, "boxes"}


def test_one_source_given_twice_has_ids_of_its_own_each_time():
    """Its levels are options, and each counts its problems from 0."""
    recipe = ProblemSettings.model_validate(
        {"sources": [{"source": "boxes_words", "options": {"levels": [level]}} for level in (1, 2)]}
    )
    mixture = load_mixture(recipe, "test")
    problems = [mixture[index] for index in range(32)]
    assert len({problem.id for problem in problems}) == 32
    assert {problem.id.partition("/")[2] for problem in problems} == {"", "1"}
    assert {problem.source for problem in problems} == {"boxes_words"}
