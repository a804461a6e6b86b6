"""Recipes as files: precedence, extending, overriding, and every fault as one line."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest

from r1lab.config.keys import describe
from r1lab.config.reading import (
    dump_resolved,
    find_recipe,
    load_recipe,
    parse_overrides,
    shipped_recipes,
)
from r1lab.config.recipe import PretrainRecipe, TrainRecipe
from r1lab.types import RecipeError

BASE = """\
name: base
problems: {sources: [{source: boxes}, {source: division, weight: 2}]}
optimizer:
  learning_rate: 3e-4
  beta1: 0.8
"""


@pytest.fixture
def write(tmp_path: Path):
    def write(text: str, name: str = "recipe.yaml") -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text))
        return path

    return write


def load(path: Path, *overrides: str) -> TrainRecipe:
    return load_recipe(path, parse_overrides(overrides))


def refusal(path: Path | str, *overrides: str) -> str:
    """The one line that a recipe is refused with."""
    with pytest.raises(RecipeError) as caught:
        load_recipe(path, parse_overrides(overrides))
    message = str(caught.value)
    assert "\n" not in message
    return message


# --- files beside a recipe ---


def test_rewards_and_problems_are_looked_for_beside_the_recipe_first(write, tmp_path, monkeypatch):
    folder = tmp_path / "task"
    for place in (folder, tmp_path / "here"):
        place.mkdir()
        for name in ("mine.py", "rows.jsonl"):
            (place / name).touch()
    (tmp_path / "here" / "only_here.py").touch()
    monkeypatch.chdir(tmp_path / "here")
    write(
        """
        name: base
        problems: {sources: [{source: rows.jsonl}, {source: boxes}]}
        rewards: [{reward: "mine.py:judge"}, {reward: only_here.py}, {reward: format}]
        """,
        "task/base.yaml",
    )
    recipe = load(write("extends: base.yaml\nname: top\n", "task/top.yaml"))
    assert [source.source for source in recipe.problems.sources] == [
        str(folder / "rows.jsonl"), "boxes"
    ]  # fmt: skip
    assert [reward.reward for reward in recipe.rewards] == [
        f"{folder / 'mine.py'}:judge", str(tmp_path / "here/only_here.py"), "format"
    ]  # fmt: skip
    # What is typed on the command line starts from the current folder.
    typed = load(tmp_path / "task/top.yaml", "--rewards.0.reward", "mine.py")
    assert typed.rewards[0].reward == str(tmp_path / "here/mine.py")


def test_paths_mean_the_same_from_everywhere(write, tmp_path, monkeypatch):
    for name in ("task/models/base", "task/shared", "task/nano", "here/models/base", "here/typed"):
        (tmp_path / name).mkdir(parents=True)
    for name in ("task/data/rows.jsonl", "task/data/held.jsonl", "task/held.jsonl",
                 "task/words.txt", "task/loss.py"):  # fmt: skip
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path / "here")
    path = write(
        """
        name: top
        model: {path: models/base}
        problems: {sources: [{source: data/rows.jsonl, options: {test_file: held.jsonl}}]}
        rewards: [{reward: language, options: {word_list: words.txt, language: en}}]
        algorithm: {loss: loss.py}
        sampling: {weights_folder: shared}
        """,
        "task/top.yaml",
    )
    recipe, task = load(path), tmp_path / "task"
    assert recipe.model.path == str(task / "models/base")
    (source,) = recipe.problems.sources
    assert source.source == str(task / "data/rows.jsonl")
    assert source.options["test_file"] == str(task / "data/held.jsonl")  # the table's folder first
    assert recipe.rewards[0].options == {"word_list": str(task / "words.txt"), "language": "en"}
    assert recipe.algorithm.loss == str(task / "loss.py")
    assert recipe.sampling.weights_folder == str(task / "shared")
    assert load(path, "--model.path=typed").model.path == str(tmp_path / "here/typed")
    assert load(path, "--model.path=nano").model.path == "nano"  # what ships, by its name
    assert load(path, "--model.path=owner/model").model.path == "owner/model"


def test_a_run_folder_is_where_the_run_writes_unless_told_otherwise(write, tmp_path):
    text = "name: top\noutput: runs/top\nproblems: {sources: [{source: boxes}]}\n"
    path = write(text, "moved/recipe.yaml")
    assert load(path).run_folder == "runs/top"  # a user's own recipe, and no run
    (tmp_path / "moved/events.jsonl").touch()
    assert load(tmp_path / "moved").run_folder == str(tmp_path / "moved")
    assert load(tmp_path / "moved", "--output=other").run_folder == "other"


# --- precedence ---


def test_defaults_stay_under_the_recipe_and_the_recipe_under_the_command_line(write):
    path = write(BASE)
    assert load(path).optimizer.beta2 == 0.99
    assert load(path).optimizer.beta1 == 0.8
    assert load(path, "--optimizer.beta1", "0.7").optimizer.beta1 == 0.7
    assert load(path, "--steps", "5", "--steps=6").steps == 6  # the last one counts


def test_extends_merges_mappings_and_replaces_lists(write):
    write(BASE, "base.yaml")
    path = write(
        """\
        extends: base.yaml
        name: top
        optimizer: {beta1: 0.5}
        problems: {sources: [{source: arithmetic}]}
        """
    )
    recipe = load(path)
    assert (recipe.name, recipe.optimizer.beta1, recipe.optimizer.learning_rate) == (
        "top",
        0.5,
        3e-4,
    )
    assert [source.source for source in recipe.problems.sources] == ["arithmetic"]


def test_extends_is_relative_to_the_file_that_says_it_and_can_go_on(write, monkeypatch):
    write(BASE, "one/base.yaml")
    write("extends: ../one/base.yaml\nsteps: 7", "two/middle.yaml")
    path = write("extends: two/middle.yaml\nname: top")
    monkeypatch.chdir("/")
    assert (load(path).steps, load(path).optimizer.beta1) == (7, 0.8)


def test_extends_takes_a_shipped_recipe_by_its_name(write):
    path = write("extends: quickstart\nname: mine")
    assert load(path).steps == load_recipe("quickstart").steps


def test_extends_in_a_circle_is_refused(write):
    write("extends: recipe.yaml", "other.yaml")
    assert "circle" in refusal(write("extends: other.yaml"))


def test_a_missing_extended_recipe_names_both_files(write):
    write(BASE, "base.yaml")
    message = refusal(write("extends: bse.yaml"))
    assert "recipe.yaml: extends:" in message and "base.yaml'?" in message


# --- YAML ---


@pytest.mark.parametrize("text", ["3e-4", "3E-4", "3.0e-4", "0.0003", "+3e-4", "30e-5"])
def test_numbers_in_every_spelling(write, text):
    path = write(BASE.replace("3e-4", text))
    assert load(path).optimizer.learning_rate == 3e-4
    assert load(write(BASE), "--optimizer.learning_rate", text).optimizer.learning_rate == 3e-4


def test_every_float_key_takes_an_exponent(write):
    path = write(BASE)
    keys = [
        key
        for key, default, *_ in describe(TrainRecipe)
        if default.replace(".", "").replace("e-", "").isdigit()
        and ("." in default or "e" in default)
    ]
    assert len(keys) > 15
    for key in keys:
        refused = None
        try:
            load(path, f"--{key}", "5e-1")
        except RecipeError as error:
            refused = str(error)
        assert refused is None or "must be a number" not in refused, refused


@pytest.mark.parametrize("word", ["no", "on", "off", "yes", "2026-01-31", "1:30"])
def test_words_that_yaml_1_1_would_change_stay_text(write, word):
    path = write(BASE.replace("name: base", "name: base\noutput: " + word))
    assert load(path).output == word


def test_a_key_given_twice_is_refused_with_both_lines(write):
    message = refusal(write(BASE + "  beta1: 0.9\n"))
    assert "line 6" in message and "beta1" in message and "line 5" in message


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("name: [1", "line 1: not YAML"),
        ("- 1", "mapping"),
        ("", "empty"),
        ("1: x", "quotes"),
        ("name: !!python/object/apply:os.system ['true']", "not YAML"),
    ],
)
def test_what_is_no_recipe(write, text, expected):
    assert expected in refusal(write(text))


def test_binary_files_are_refused(tmp_path):
    (tmp_path / "x.yaml").write_bytes(b"\xff\xfe\x00")
    assert "UTF-8" in refusal(tmp_path / "x.yaml")


# --- the command line ---


def test_overrides_reach_lists_and_sections_that_the_recipe_leaves_out(write):
    recipe = load(
        write(BASE),
        "--problems.sources.0.weight", "3",
        "--rewards.1.weight=0.3",
        "--model.lora.rank", "8",
        "--problems.sources.1.options", "{digits: 4}",
    )  # fmt: skip
    assert recipe.problems.sources[0].weight == 3
    assert [reward.weight for reward in recipe.rewards] == [1.0, 0.3]
    assert recipe.model.lora is not None and recipe.model.lora.rank == 8
    assert recipe.problems.sources[1].options == {"digits": 4}


def test_overrides_can_be_negative_empty_and_null(write):
    path = write(BASE)
    assert load(path, "--rewards.1.weight", "-1").rewards[1].weight == -1
    assert load(path, "--tracking.trackers", "[]").tracking.trackers == ()
    assert load(path, "--sampling.max_model_len", "null").sampling.max_model_len is None


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("foo",), "unexpected argument 'foo'"),
        (("--steps",), "--steps needs a value"),
        (("--steps", "--seed", "1"), "--steps needs a value"),
        (("--rewards.7.weight", "1"), "2 entries"),
        (("--rewards.first.weight", "1"), "no 'first'"),
        (("--name.x", "1"), "a value ('base'), not a section"),
        (("--name", "[1"), "not a YAML value"),
    ],
)
def test_overrides_that_cannot_be(write, arguments, expected):
    assert expected in refusal(write(BASE), *arguments)


def test_overriding_leaves_defaults_of_the_schema_alone(write):
    load(write(BASE), "--rewards.1.weight", "0.9")
    assert load(write(BASE)).rewards[1].weight == 0.1


# --- faults ---


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (("--optimizer.learning_rat", "1"), ["learning_rat:", "1", "'learning_rate'?", "beta1"]),
        (("--algorithm.loss", "dapo"), ["algorithm.loss", "'dapo'", "token_mean", "dapo.yaml"]),
            (("--algorithm.ratio_cap", "1.1"), ["ratio_cap", "1.1", "1.2"]),
            (("--algorithm.reference_every", "9"), ["reference_every", "kl_coefficient is 0"]),
            (("--algorithm.router_replay", "old"), ["router_replay", "num_epochs"]),
            (("--algorithm.loss", "vespo", "--algorithm.correction", "sequence_mask"),
             ["correction", "token_truncate"]),
            (("--algorithm.loss", "grpoo"), ["algorithm.loss", "'grpoo'", "'grpo'?", "dr_grpo"]),
        (("--sampling.engine", "vlm"), ["'vllm'?"]),
        (("--template", "r1zero"), ["template", "'r1-zero'?"]),
        (("--sampling.group_size", "1"), ["sampling.group_size", "1", "at least 2"]),
        (("--steps", "2.5"), ["steps", "2.5", "whole number"]),
        (("--optimizer.learning_rate", "fast"), ["'fast'", "number"]),
        (("--evaluation.greedy", "perhaps"), ["'perhaps'", "true or false"]),
        (("--name", "a/b"), ["name", "'a/b'", "pattern"]),
        (("--problems.sources", "[]"), ["problems.sources", "at least one"]),
        (("--problems.sources", "[boxes]"), ["problems.sources.0", "'boxes'"]),
        (("--model", "nano"), ["model", "'nano'", "section"]),
        (("--model.lora.alfa", "1"), ["model.lora.alfa", "'alpha'?"]),
        (("--sampling.max_model_len", "100"), ["sampling.max_model_len", "100", "128"]),
        (("--sampling.cap_raise", "{after_step: 2, max_tokens: 128}"), ["max_tokens", "above"]),
        (("--sampling.cap_raise", "{after_step: 900, max_tokens: 256}"), ["900", "never reached"]),
        (("--steps", "-1", "--seed", "x"), ["and 1 more"]),
    ],
)  # fmt: skip
def test_a_fault_names_key_value_and_what_is_allowed(write, overrides, expected):
    message = refusal(write(BASE), *overrides)
    assert message.startswith("command line: ")
    for part in expected:
        assert part in message, message


def test_a_fault_in_a_file_names_the_file_and_the_line(write):
    write(BASE + "  beta3: 0.9\n", "base.yaml")
    top = write("extends: base.yaml\noptimizer:\n  beta2: 0.9\n")
    assert "base.yaml, line 6: optimizer.beta3" in refusal(top)
    write(BASE, "base.yaml")
    top = write("extends: base.yaml\noptimizer:\n  beta2: 9\n")
    assert "recipe.yaml, line 3: optimizer.beta2" in refusal(top)


def test_a_missing_key_is_named_with_its_meaning(write):
    assert "name: missing" in refusal(write("problems: {sources: [{source: boxes}]}"))
    assert "problems.sources.0.source: missing" in refusal(
        write("name: x\nproblems: {sources: [{}]}")
    )


def test_a_missing_recipe_names_the_nearest(write, tmp_path):
    write(BASE, "mine.yaml")
    assert "mine.yaml'?" in refusal(tmp_path / "mne.yaml")
    message = refusal("quikstart")
    assert "'quickstart'?" in message and "shipped:" in message
    assert "folder" in refusal(tmp_path)


# --- where recipes are, and the resolved one ---


def test_shipped_recipes_are_found_by_name_and_by_their_path_in_the_checkout(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for spelling in ("quickstart", "quickstart.yaml", "recipes/quickstart.yaml"):
        assert find_recipe(spelling) == shipped_recipes()["quickstart"]


def test_a_run_folder_is_found_as_its_recipe(write, tmp_path):
    write(BASE, "runs/one/recipe.yaml")
    assert load(tmp_path / "runs/one").name == "base"


def test_the_resolved_recipe_reads_back_as_the_same(write):
    recipe = load(write(BASE), "--model.lora.rank", "4", "--optimizer.epsilon", "1e-12")
    text = dump_resolved(recipe, versions={"r1lab": "1", "torch": "2"}, commit="abc")
    assert text.startswith("# r1lab 1\n# torch 2\n# commit abc\nname: base\n")
    assert load(write(text, "resolved.yaml")) == recipe


def test_other_schemas_are_read_in_the_same_way(write):
    path = write("name: small\ntokens: 1000")
    assert load_recipe(path, [("tokens", "2e3")], schema=PretrainRecipe).tokens == 2000
    with pytest.raises(RecipeError, match="tokens_per_batch"):
        load_recipe(path, [("tokens_per_bach", "1")], schema=PretrainRecipe)
