"""Bad input through the real command: exit code 2 and one line that names key, value and fix.

Each case runs `main` in this process with an empty folder as the current one; what a launcher or a
shell sees is tried in processes of their own at the end. Bases are in test_bad_models.py.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from r1lab.cli.app import main
from r1lab.config.keys import describe
from r1lab.config.recipe import PretrainRecipe, TrainRecipe

RECIPE = """\
name: bad
steps: 1
problems: {sources: [{source: boxes}]}
sampling: {engine: transformers, questions_per_step: 2, group_size: 2, max_tokens: 4}
evaluation: {num_problems: 2, num_samples: 2}
"""


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch) -> Path:
    """The current folder, with a good recipe in it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    (tmp_path / "pretrain.yaml").write_text("name: bad\ntokens: 1000\n")
    return tmp_path


@pytest.fixture
def refused(capsys, here):
    """Run a command that must be refused; its one line has to hold every expected part."""

    def run(*arguments: object, expect: tuple[str, ...] = ()) -> str:
        before = sorted(here.rglob("*"))
        try:
            code = main([str(word) for word in arguments])
        except SystemExit as left:  # argparse's own refusals
            code = left.code
        captured = capsys.readouterr()
        assert code == 2, (captured.out[-500:], captured.err)
        assert "Traceback" not in captured.out + captured.err
        lines = captured.err.splitlines()
        assert len(lines) == 1 and lines[0].startswith("r1lab: error: "), captured.err
        for part in expect:
            assert part in lines[0], lines[0]
        assert sorted(here.rglob("*")) == before, "a refused command leaves nothing behind"
        return lines[0]

    return run


def test_the_recipe_itself_is_good(capsys):
    assert main(["train", "recipe.yaml", "--dry-run"]) == 0, capsys.readouterr().err


# --- keys and values ---


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("steps", "0", ["0", "greater than 0"]),
        ("steps", "-3", ["-3", "greater than 0"]),
        ("steps", "2.5", ["2.5", "whole number"]),
        ("steps", "true", ["true", "whole number"]),
        ("steps", "'60'", ["'60'", "remove the quotes"]),
        ("steps", "[60]", ["[60]", "whole number"]),
        ("steps", "null", ["null", "whole number"]),
        ("steps", "1e30", ["1e+30", "reasonable size"]),
        ("steps", ".inf", ["inf", "finite"]),
        ("steps", "9" * 5000, ["9999", "no number"]),
        ("seed", "-1", ["-1", "at least 0"]),
        ("seed", "4294967296", ["4294967296", "less than 4294967296"]),
        ("name", "a/b", ["'a/b'", "letters"]),
        ("name", "..", ["'..'", "letters"]),
        ("name", "7", ["7", "quotes"]),
        ("name", "''", ["''", "letters"]),
        ("output", "''", ["''", "remove the key"]),
        ("output", '"a\\0b"', ["a\\x00b"]),
        ("template", "compct", ["'compct'", "'compact'"]),
        ("model.path", "[nano]", ["['nano']", "text"]),
        ("model.dtype", "float16", ["'float16'", "bfloat16, float32"]),
        ("model.dtype", "fp32", ["'fp32'", "float32"]),
        ("model.lora.rank", "0", ["0", "greater than 0"]),
        ("model.lora.alpha", "0", ["0", "greater than 0"]),
        ("model", "nano", ["'nano'", "section"]),
        ("sampling.engine", "vlm", ["'vlm'", "'vllm'"]),
        ("sampling.group_size", "1", ["1", "at least 2"]),
        ("sampling.temperature", "0", ["0", "at least 0.01"]),
        ("sampling.temperature", "nan", ["'nan'", "number"]),
        ("sampling.top_p", "0.9", ["0.9", "evaluation.top_p"]),
        ("sampling.max_model_len", "4", ["4", "lower max_tokens"]),
        ("sampling.gpu_memory_utilization", "1.5", ["1.5", "less than 1"]),
        ("sampling.kv_cache_gib", "-1", ["-1", "greater than 0"]),
        ("algorithm.loss", "dr_gpro", ["'dr_gpro'", "'dr_grpo'", "token_mean"]),
        ("algorithm.clip_low", "yes", ["'yes'", "number"]),
        ("algorithm.num_minibatches", "3", ["3", "sampling.questions_per_step (2)"]),
        ("optimizer.learning_rate", "3", ["3", "at most 1"]),
        ("optimizer.learning_rate", "fast", ["'fast'", "number"]),
        ("optimizer.learning_rate", "'1e-3'", ["'1e-3'", "remove the quotes"]),
        ("optimizer.learning_rate", "-1e-3", ["-0.001", "greater than 0"]),
        ("optimizer.beta1", "1", ["1", "less than 1"]),
        ("optimizer.schedule", "cosin", ["'cosin'", "'cosine'"]),
        ("evaluation.greedy", "1", ["1", "true or false"]),
        ("evaluation.greedy", "perhaps", ["'perhaps'", "true or false"]),
        ("checkpoints.keep", "0", ["0", "greater than 0"]),
        ("tracking.trackers", "tensorboard", ["'tensorboard'", "list"]),
        ("rewards", "[]", ["at least one"]),
        ("rewards", "[format]", ["rewards.0", "'format'", "section"]),
        ("rewards.0.weight", ".inf", ["inf", "finite"]),
        ("rewards.0.seconds", "0", ["0", "greater than 0"]),
        ("rewards.9.weight", "1", ["2 entries", "'9'"]),
        ("problems.sources", "{}", ["{}", "list"]),
        ("problems.sources.0.weight", "0", ["0", "at least 0.000001"]),
        ("problems.sources.0.options", "[1]", ["[1]", "mapping"]),
    ],
)  # fmt: skip
def test_a_value(refused, key, value, expected):
    refused("train", "recipe.yaml", f"--{key}", value, expect=(key, *expected))


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("optimizer.learning_rat", "1e-3", ["0.001", "'learning_rate'"]),
        ("optimiser", "{beta1: 0.5}", ["'optimizer'"]),
        ("model.lora.alfa", "1", ["'alpha'"]),
        ("stepps", "1", ["'steps'"]),
        ("problems.sources.0.optoins", "{}", ["'options'"]),
        ("rewards.0.weigth", "1", ["'weight'"]),
        ("name.x", "1", ["a value", "not a section"]),
    ],
)
def test_a_misspelt_key(refused, key, value, expected):
    refused("train", "recipe.yaml", f"--{key}", value, expect=(key, *expected))


UNBOUNDED = {"rewards.0.weight", "watch.reward_dead.below"}  # any finite number may be meant


@pytest.mark.parametrize("value", ["true", "[1]", "{a: 1}", ".nan", '"\\0"', "-1e9", "1e400"])
@pytest.mark.parametrize(
    ("command", "schema"), [("train", TrainRecipe), ("pretrain", PretrainRecipe)]
)
def test_every_number_refuses(capsys, command, schema, value):
    numbers = [
        key
        for key, default, *_ in describe(schema)
        if default.replace(".", "").replace("e-", "").isdigit()
    ]
    assert len(numbers) > 10
    recipe = {"train": "recipe.yaml", "pretrain": "pretrain.yaml"}[command]
    for key in numbers:
        if value == "-1e9" and key in UNBOUNDED:
            continue
        assert main([command, recipe, f"--{key}", value]) == 2, key
        (line,) = capsys.readouterr().err.splitlines()
        # An optional section that the value alone makes may lack what it requires.
        section, _, _ = key.rpartition(".")
        assert f"{key}: " in line or (f"{section}." in line and "missing" in line), line


# --- files ---


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", ["empty"]),
        (b"  \n# nothing\n", ["mapping"]),
        (b"name: [1", ["line 1", "not YAML"]),
        (b"name: x\nsteps:\n\t- 1\n", ["line 3", "not with tabs"]),
        (b"name: x\nname: y\n", ["line 2", "name: given twice", "line 1"]),
        (b"- name: x\n", ["mapping"]),
        (b"just words\n", ["mapping", "'just words'"]),
        (b"1: x\n", ["line 1", "quotes"]),
        (b"name: \xff\xfe\n", ["UTF-8"]),
        ("name: x\n".encode("utf-16"), ["UTF-8"]),
        (b"name: x\x00\n", ["not YAML"]),
        (b"name: !!python/object/apply:os.system ['true']\n", ["line 1", "not YAML"]),
        (b"name: !!int x\n", ["line 1", "'x' is no number"]),
        (b"a: &a [*a]\n", ["aliases"]),
        (b"name: x\n---\nname: y\n", ["not YAML", "single document"]),
        (b"name: x\n", ["problems: missing"]),
        (b"name: x\nproblems: {}\n", ["problems.sources: missing"]),
        (b"name: x\nproblems: {sources: [{}]}\n", ["problems.sources.0.source: missing"]),
        (b"problems: {sources: [{source: boxes}]}\n", ["name: missing"]),
        (b"#" * (2**20 + 1), ["1,048,577 bytes"]),
        (b"extends: nothing.yaml\n", ["extends:", "nothing.yaml"]),
        (b"extends: [quickstart]\n", ["extends:", "not the path"]),
        (b"extends: bad.yaml\n", ["extends:", "circle"]),
        (b"extends: other\n", ["extends:", "'other' is a folder"]),
        (b"extends: quickstart\nstep: 3\n", ["line 2", "step:", "'steps'"]),
        (b"[" * 5000, ["nested too deeply"]),
    ],
)
def test_a_file_that_is_no_recipe(refused, here, content, expected):
    (here / "other").mkdir()
    (here / "bad.yaml").write_bytes(content)
    refused("train", "bad.yaml", expect=("bad.yaml", *expected))


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("recpe.yaml", ["recpe.yaml", "'recipe.yaml'"]),
        ("quikstart", ["'quikstart'", "'quickstart'"]),
        ("no/such/recipe.yaml", ["no/such/recipe.yaml"]),
        (".", ["'.' is a folder"]),
        ("x" * 300, ["too long"]),
        ("", ["recipe"]),
    ],
)
@pytest.mark.parametrize("command", ["train", "pretrain"])
def test_a_recipe_that_is_not_there(refused, here, command, path, expected):
    for name in ("recipe.yaml", "pretrain.yaml") if path == "." else ():
        (here / name).unlink()
    refused(command, path, expect=tuple(expected))


# --- rewards ---


@pytest.mark.parametrize(
    ("code", "reward", "expected"),
    [
        (None, "nothing.py", ["'nothing.py'", "no file"]),
        (None, "boxs", ["'boxs'", "'boxes'", "shipped"]),
        (None, "no.such.module:reward", ["no module 'no'"]),
        (None, "builtins:dict", ["class 'dict'", "no signature"]),
        (None, "recipe.yaml", ["recipe.yaml"]),
        ("def rewrad(problem, completion): return 1.0", "own.py", ["'reward'", "'rewrad'"]),
        ("reward = 3", "own.py", ["not a function"]),
        ("def reward(a, b): return 1.0", "own.py", ["no signature", "line 1"]),
        ("def reward(problem, completion, prompts): return 1.0", "own.py", ["two signatures"]),
        ("def reward(problem, completion, *, x): return x", "own.py", ["options.x", "missing"]),
        ("import nothing_like_it", "own.py", ["own.py, line 1", "ModuleNotFoundError"]),
        ("def reward(:", "own.py", ["own.py, line 1", "SyntaxError"]),
        ("x = 1\nx / 0", "own.py", ["own.py, line 2", "ZeroDivisionError"]),
        ("raise SystemExit(3)", "own.py", ["own.py, line 1", "SystemExit"]),
        ("", "own.py:", ["'reward'"]),
    ],
)
def test_a_reward(refused, here, code, reward, expected):
    if code is not None:
        (here / "own.py").write_text(code)
    rewards = json.dumps([{"reward": "problem"}, {"reward": reward}])
    refused("train", "recipe.yaml", "--rewards", rewards, expect=("rewards.1", *expected))


def test_an_option_that_a_reward_does_not_take(refused):
    rewards = "[{reward: format, options: {forbid_emty: true}}]"
    refused(
        "train", "recipe.yaml", "--rewards", rewards,
        expect=("rewards.0.options.forbid_emty", "'forbid_empty'"),
    )  # fmt: skip


def test_weights_that_are_all_zero(refused):
    refused("train", "recipe.yaml", "--rewards", "[{reward: problem, weight: 0}]",
            expect=("rewards", "0", "at least one reward a weight"))  # fmt: skip


# --- problems ---

GOOD_ROWS = "".join(f'{{"question": "{i} + 1 =", "answer": "{i + 1}"}}\n' for i in range(80))


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        (b"", ["no problems", "'train'"]),
        (b"\n\n", ["no problems"]),
        (b'{"question": "1 + 1 =", "answer": "2"}\n{"question": "2', ["line 2", "not JSON"]),
        (b'[\n{"question": "1", "answer": "2"}\n]', ["line 1", "one object a line"]),
        (b'["1 + 1 =", "2"]\n', ["line 1", "not an object"]),
        (b'{"qestion": "1 + 1 =", "answer": "2"}\n', ["line 1", "'question'", "'qestion'",
                                                      "options.columns"]),
        (b'{"question": "1 + 1 ="}\n', ["line 1", "no column 'answer'"]),
        (b'{"question": "1 + 1 =", "answer": null}\n', ["line 1", "answer is null"]),
        (b'{"question": "1 + 1 =", "answer": true}\n', ["line 1", "answer is true"]),
        (b'{"question": "1 + 1 =", "answer": ["2"]}\n', ["line 1", 'answer is ["2"]']),
        (b'{"question": {"a": 1}, "answer": "2"}\n', ["line 1", "question is"]),
        (b'{"question": "1 + 1 =", "answer": NaN}\n', ["line 1", "answer is NaN"]),
        (b'{"question": " ", "answer": "2"}\n', ["line 1", "question is empty"]),
        (b'{"question": "1 + 1 =", "answer": ""}\n', ["line 1", "answer is empty"]),
        (b'{"question": "\\ud800", "answer": "2"}\n', ["line 1", "half a character"]),
        (b'{"question": "\xff", "answer": "2"}\n', ["UTF-8"]),
        (b'{"id": 7, "question": "1", "answer": "2"}\n' * 2, ["line 2", "id '7'", "1 already"]),
        (b'{"question": "1", "answer": ' + b"9" * 5000 + b"}\n", ["line 1", "not JSON"]),
        (b'{"question": ' + b"[" * 100_000, ["line 1"]),
        (GOOD_ROWS[:200].encode(), ["line 6", "not JSON"]),
    ],
)  # fmt: skip
def test_a_table(refused, here, rows, expected):
    (here / "rows.jsonl").write_bytes(rows)
    refused("train", "recipe.yaml", "--problems.sources", "[{source: rows.jsonl}]",
            expect=("problems.sources.0", "rows.jsonl", *expected))  # fmt: skip


def test_an_empty_table_says_so(refused, here):
    (here / "rows.jsonl").write_text("")
    refused("train", "recipe.yaml", "--problems.sources", "[{source: rows.jsonl}]", "--dry-run",
            expect=("rows.jsonl", "the file is empty"))  # fmt: skip


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("shards", ["folder of 2 tables", "part-0.parquet", "Shards"]),
        ("./shards/", ["folder of 2 tables"]),
        ("hub", ["folder of 2 tables", "train.jsonl"]),
        ("one", ["is a folder", "one/rows.jsonl"]),
        ("bare", ["folder without a .jsonl or .parquet file"]),
        ("shards/*.parquet", ["pattern"]),
    ],
)
def test_a_folder_where_a_table_is_expected(refused, here, source, expected):
    for name in ("shards/part-0.parquet", "shards/part-1.parquet", "one/rows.jsonl", "bare/x"):
        (here / name).parent.mkdir(exist_ok=True)
        (here / name).write_text("")
    options = {"path": "shards"} if source == "hub" else {}
    sources = json.dumps([{"source": source, "options": options}])
    refused("train", "recipe.yaml", "--problems.sources", sources, "--dry-run",
            expect=("problems.sources.0", *expected))  # fmt: skip


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("boxs", ["'boxs'", "'boxes'"]),
        ("missing.jsonl", ["missing.jsonl", "no file"]),
        ("missing.parquet", ["missing.parquet", "no file"]),
        ("rows.json", ["rows.json", ".jsonl or .parquet"]),
        ("./rows.csv", ["rows.csv", ".jsonl or .parquet"]),
        ("torn.parquet", ["torn.parquet", "not Parquet"]),
        ("folder.jsonl", ["folder.jsonl", "is a folder"]),
        ("no_such_module:load", ["no module 'no_such_module'"]),
        ("own.py:lod", ["'lod'", "'load'"]),
        ("own.py:raises", ["own.py, line 4", "KeyError"]),
        ("own.py:raises_later", ["own.py, line 7", "KeyError"]),
        ("own.py:nothing", ["no problems"]),
        ("own.py:words", ["gave str", "Problem"]),
        ("own.py:numbers", ["answer is 2", "text"]),
        ("own.py:returns", ["returned int", "not problems"]),
        ("own.py:takes_none", ["takes 0 positional"]),
    ],
)
def test_a_source(refused, here, source, expected):
    (here / "rows.json").write_text("[]")
    (here / "rows.csv").write_text("question,answer\n1,2\n")
    (here / "torn.parquet").write_bytes(b"PAR1" + b"\0" * 40)
    (here / "folder.jsonl").mkdir()
    (here / "own.py").write_text(
        "from r1lab.types import Problem\n"
        "def load(split): return []\n"
        "def raises(split):\n    return {}['gold']\n"
        "def raises_later(split):\n    yield Problem('1', '1', '1', 'math')\n    {}['gold']\n"
        "def nothing(split): return iter(())\n"
        "def words(split): return ['1 + 1 =']\n"
        "def numbers(split): return [Problem('1', '1 + 1 =', 2, 'math')]\n"
        "def returns(split): return 3\n"
        "def takes_none(): return []\n"
    )
    refused("train", "recipe.yaml", "--problems.sources", json.dumps([{"source": source}]),
            expect=("problems.sources.0", *expected))  # fmt: skip


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ("{boxs: 3}", ["options.boxs", "unknown option"]),
        ("{min_boxes: many}", ["options"]),
        ("{min_boxes: 9, max_boxes: 2}", ["options"]),
        ("{split: test}", ["options.split", "unknown option"]),
        ("{seed: 3}", ["options.seed", "unknown option"]),
    ],
)
def test_options_of_a_source(refused, options, expected):
    refused("train", "recipe.yaml", "--problems.sources.0.options", options,
            expect=("problems.sources.0", *expected))  # fmt: skip


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ("{test_fraction: 1}", ["test_fraction", "below 1"]),
        ("{test_fraction: 0}", ["'test'", "test_fraction"]),
        ("{test_fraction: lots}", ["problems.sources.0"]),
        ("{columns: {qestion: q}}", ["columns", "'qestion'", "question"]),
        ("{columns: {question: q}}", ["line 1", "no column 'q'"]),
        ("{columns: question}", ["problems.sources.0"]),
        ("{test_file: nothing.jsonl}", ["nothing.jsonl", "no file"]),
        ("{path: other.jsonl}", ["options.path", "unknown option"]),
    ],
)
def test_options_of_a_table(refused, here, options, expected):
    (here / "rows.jsonl").write_text(GOOD_ROWS)
    sources = f"[{{source: rows.jsonl, options: {options}}}]"
    refused("train", "recipe.yaml", "--problems.sources", sources, expect=tuple(expected))


def test_too_few_problems_to_hold_out(refused, here):
    (here / "rows.jsonl").write_text(GOOD_ROWS)
    refused("train", "recipe.yaml", "--problems.sources", "[{source: rows.jsonl}]",
            "--evaluation.num_problems", "79",
            expect=("evaluation.num_problems", "79", "lower it, or add problems"))  # fmt: skip


# --- gold answers, trackers, and where things are written ---


def test_a_gold_answer_that_its_own_verifier_rejects(refused, here):
    rows = GOOD_ROWS.replace('"answer": "21"', '"answer": "21", "verifier": "never.py"')
    (here / "never.py").write_text("def reward(problem, completion):\n    return 0.0\n")
    (here / "rows.jsonl").write_text(rows)
    refused("train", "recipe.yaml", "--problems.sources", "[{source: rows.jsonl}]",
            "--problems.check_gold", 80,
            expect=("problems", "never.py' rejects the gold answer '21' of problem rows/21",
                    "1 of", "problems.check_gold"))  # fmt: skip


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("return 0.0", ["score 0.0", "rejects the gold answer"]),
        ("return problem.answer != '7'", ["'7'", "1 of"]),
        ("raise KeyError('gold')", ["KeyError"]),
        ("import time; time.sleep(60)", ["timeout", "longer than 0.2 seconds"]),
        ("import os; os._exit(3)", ["crash"]),
    ],
)
def test_a_verifier_that_fails_on_gold_answers(refused, here, body, expected):
    (here / "mine.py").write_text(f"def reward(problem, completion):\n    {body}\n")
    (here / "rows.jsonl").write_text(GOOD_ROWS)
    sources = "[{source: rows.jsonl, options: {verifier: mine.py}}]"
    refused("train", "recipe.yaml", "--problems.sources", sources,
            "--rewards", "[{reward: problem, seconds: 0.2}]", "--problems.check_gold", 80,
            expect=("problem", "mine.py", *expected))  # fmt: skip


@pytest.mark.parametrize(
    ("trackers", "expected"),
    [
        ("[tensorbord]", ["trackers.0", "'tensorbord'", "'tensorboard'"]),
        ("[tensorboard, wandbb]", ["trackers.1", "'wandbb'", "'wandb'"]),
        ("[all]", ["trackers.0", "'all'", "tensorboard"]),
        ("[aim]", ["trackers.0", "'aim'", "pip install aim"]),
    ],
)
def test_a_tracker(refused, trackers, expected):
    refused("train", "recipe.yaml", "--tracking.trackers", trackers, expect=tuple(expected))


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        ("recipe.yaml", ["'recipe.yaml' is a file"]),
        ("recipe.yaml/run", ["is inside", "recipe.yaml', which is a file"]),
        ("/proc/run", ["'/proc/run'", "MiB free"]),
        ("x" * 300, ["too long"]),
    ],
)
@pytest.mark.parametrize("command", ["train", "pretrain"])
def test_an_output(refused, command, output, expected):
    recipe = {"train": "recipe.yaml", "pretrain": "pretrain.yaml"}[command]
    refused(command, recipe, "--output", output, expect=("x" if "x" * 9 in output else "output",
                                                         *expected))  # fmt: skip


# --- what fits the context and the vocabulary ---


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["--sampling.max_tokens", "512"], ["sampling.max_tokens: 512", "512 tokens of context"]),
        (["--sampling.max_tokens", "500"], ["sampling.max_model_len: 512", "prompt has",
                                            "lower max_tokens"]),
        (["--sampling.max_model_len", "8"], ["sampling.max_model_len: 8", "prompt has"]),
        (["--sampling.max_model_len", "513"], ["sampling.max_model_len: 513", "512 positions"]),
        (["--template", "r1-zero", "--sampling.max_model_len", "64"], ["max_model_len: 64"]),
    ],
)  # fmt: skip
def test_what_does_not_fit(refused, overrides, expected):
    refused("train", "recipe.yaml", *overrides, expect=tuple(expected))


def test_one_long_row_among_many_is_found(refused, here):
    long = '{"id": "long one", "question": "' + "1 + " * 300 + '1 =", "answer": "301"}\n'
    (here / "rows.jsonl").write_text(GOOD_ROWS * 0 + GOOD_ROWS + long)
    refused("train", "recipe.yaml", "--problems.sources",
            "[{source: rows.jsonl, options: {test_fraction: 0.2}}]",
            expect=("sampling.max_model_len", "problem long one",
                    "leave the problem out"))  # fmt: skip


def test_advice_stays_within_the_models_positions(refused):
    """nano has 512 positions: no length beyond them is advised, one within them is."""
    said = refused("train", "recipe.yaml", "--sampling.max_tokens", "500", expect=("max_tokens",))
    assert "raise it" not in said
    refused("train", "recipe.yaml", "--sampling.max_tokens", "300", "--sampling.max_model_len",
            "305", expect=("raise it to 3", "lower max_tokens to 2"))  # fmt: skip


def test_a_loss_that_its_file_does_not_have(refused, here):
    (here / "own.py").write_text("def other():\n    return None\n")
    refused("train", "recipe.yaml", "--algorithm.loss", "own.py:mine", "--dry-run",
            expect=("algorithm.loss", "'mine'"))  # fmt: skip


def test_words_that_the_tokenizer_does_not_know_are_warned_of(capsys, here):
    rows = "".join(f'{{"question": "Janet has {i} ducks .", "answer": "{i}"}}\n' for i in range(40))
    (here / "rows.jsonl").write_text(rows)
    sources = "[{source: rows.jsonl, options: {test_fraction: 0.2}}]"
    assert main(["train", "recipe.yaml", "--problems.sources", sources, "--dry-run"]) == 0
    (line,) = capsys.readouterr().err.splitlines()
    for part in ("r1lab: warning: model.path", "'nano'", "%", "'Janet'", "'ducks'", "another base"):
        assert part in line, line


# --- other commands ---


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["pretrain", "pretrain.yaml", "--size", "nanno"], ["size", "'nanno'", "'nano'"]),
        (["pretrain", "pretrain.yaml", "--tokens", "0"], ["tokens", "greater than 0"]),
        (["pretrain", "pretrain.yaml", "--row_length", "4"], ["row_length", "4", "at least 16"]),
        (["pretrain", "pretrain.yaml", "--corpus.source", "corpsu"], ["corpus.source", "'corpsu'"]),
        (["pretrain", "pretrain.yaml", "--corpus.options", "{gess: 1}"], ["corpus.options: gess",
                                                                         "'guess'"]),
        (["pretrain", "pretrain.yaml", "--corpus.options", "{tasks: {box: 1}}"],
         ["corpus.options", "'box'"]),
        (["pretrain", "pretrain.yaml", "--corpus.options", "{guess: lots}"],
         ["corpus.options", "guess"]),
        (["pretrain", "pretrain.yaml", "--card_sources", "[boxs]"], ["card_sources.0", "'boxes'"]),
        (["show", "runs/nothing"], ["runs/nothing"]),
        (["show", "recipe.yaml"], ["recipe.yaml"]),
        (["show", "."], ["no run folder", "recipe.yaml"]),
        (["show", "run", "--num", "0"], ["--num", "0"]),
        (["show", "run", "--samples", "-1"], ["--samples", "-1"]),
        (["show", "run", "--step", "x"], ["--step", "'x'"]),
        (["new", "reward", "my-reward"], ["'my-reward'", "letters"]),
        (["new", "reward", "class"], ["'class'"]),
        (["new", "reward", "json"], ["'json'", "another name"]),
        (["new", "reward", "recipe.yaml/mine"], ["recipe.yaml"]),
        (["new", "reward", ""], ["''"]),
        (["new", "rewrad", "mine"], ["'rewrad'", "reward"]),
        (["verify", "boxes"], ["--problems"]),
        (["verify", "boxs", "--problems", "boxes"], ["'boxs'", "'boxes'"]),
        (["verify", "boxes", "--problems", "boxs"], ["'boxs'", "'boxes'"]),
        (["verify", "boxes", "--problems", "no.jsonl"], ["no.jsonl", "no file"]),
        (["verify", "boxes", "--problems", "boxes", "--num", "0"], ["--num", "0"]),
        (["verify", "boxes", "--problems", "boxes", "--num", "x"], ["--num", "'x'"]),
        (["verify", "boxes", "--problems", "boxes", "--seconds", "nan"], ["--seconds", "nan"]),
        (["verify", "boxes", "--problems", "boxes", "--full", "inf"], ["--full", "inf"]),
        (["verify", "boxes", "--problems", "boxes", "--template", "r1"], ["--template", "'r1'"]),
        (["verify", "boxes", "--problems", "boxes", "--options", "[1"], ["--options", "'[1'"]),
        (["verify", "boxes", "--problems", "boxes", "--options", "x"], ["--options", "'x'"]),
        (["verify", "boxes", "--problems", "boxes", "--options", "{x: 1}"], ["options.x"]),
        (["verify", "boxes", "--problems", "boxes", "--columns", "a=b"], ["--columns"]),
        (["verify", "boxes", "--problems", "boxes", "--json", "no/such/x.json"], ["--json",
                                                                                "no folder"]),
        (["verify", "boxes", "--problems", "boxes", "--json", "."], ["--json", "is a folder"]),
        (["eval"], ["MODEL"]),
        (["eval", "nanno"], ["'nanno'", "'nano'"]),
        (["eval", "no/such"], ["'no/such'"]),
        (["eval", "nano", "--suite", "boxs"], ["'boxs'", "boxes"]),
        (["eval", "nano", "--suite", "boxes", "--num", "0"], ["--num", "0"]),
        (["eval", "nano", "--suite", "boxes", "--k", "-1"], ["--k", "-1"]),
        (["eval", "nano", "--suite", "boxes", "--top-p", "nan"], ["--top-p", "nan"]),
        (["eval", "nano", "--suite", "boxes", "--top-p", "1.5"], ["--top-p", "1.5"]),
        (["eval", "nano", "--suite", "boxes", "--temperature", "-1"], ["--temperature", "-1"]),
        (["eval", "nano", "--suite", "boxes", "--max-tokens", "x"], ["--max-tokens", "'x'"]),
        (["eval", "nano", "--suite", "boxes", "--template", "cht"], ["--template", "'cht'"]),
        (["eval", "nano", "--suite", "boxes", "--json", "no/such/x.json"], ["--json", "no folder"]),
        (["eval", "nano", "--suite", "boxes", "--against", "no.json"], ["no.json"]),
        (["eval", "nano", "--suite", "boxes", "--max-tokens", "600"], ["600"]),
        (["compare", "a.json", "--with", "b.json"], ["a.json"]),
        (["compare", "run/metrics.jsonl", "--with", "recipe.yaml"], ["metrics.jsonl"]),
        (["report", "no/such"], ["no/such"]),
        (["watch", "no/such", "--once"], ["no/such"]),
        (["watch", "run", "--every", "0"], ["--every", "0"]),
        (["train"], ["RECIPE"]),
        (["train", "recipe.yaml", "again"], ["again"]),
        (["train", "recipe.yaml", "--resum"], ["--resum", "'--resume'"]),
        (["train", "recipe.yaml", "--steps"], ["--steps needs a value"]),
        (["tarin", "recipe.yaml"], ["'tarin'", "train"]),
    ],
)  # fmt: skip
def test_a_command(refused, here, arguments, expected):
    (here / "run").mkdir()
    (here / "run" / "metrics.jsonl").write_text("")
    if arguments == ["show", "."]:
        (here / "recipe.yaml").unlink()
    refused(*arguments, expect=tuple(expected))
