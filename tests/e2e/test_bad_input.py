"""Bad input, through the real command: one line that names key, value and fix; exit code 2."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import tiny

RECIPE = """\
name: bad
steps: 1
model: {{path: {base}, dtype: float32}}
problems: {{sources: [{{source: boxes}}]}}
sampling: {{engine: transformers, questions_per_step: 2, group_size: 2, max_tokens: 4}}
evaluation: {{num_problems: 2, num_samples: 2}}
"""


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    """A base that loads, of random weights."""
    from transformers import DeepseekV3ForCausalLM

    folder = tmp_path_factory.mktemp("base")
    return tiny.save(DeepseekV3ForCausalLM(tiny.v3_config()), folder)


@pytest.fixture
def recipe(base: Path, tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE.format(base=base))
    return path


def refused(done: subprocess.CompletedProcess[str], *expected: str) -> None:
    assert done.returncode == 2, done.stderr
    said = [line for line in done.stderr.splitlines() if "r1lab: error:" in line]
    assert len(said) == 1 and "Traceback" not in done.stderr, done.stderr
    for part in expected:
        assert part in said[0], said[0]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (
            ["--optimizer.learning_rat", "1e-3"],
            ["optimizer.learning_rat", "0.001", "learning_rate"],
        ),
        (["--algorithm.loss", "gpro"], ["algorithm.loss", "'gpro'", "'grpo'", "dr_grpo"]),
        (["--sampling.engine", "vlm"], ["sampling.engine", "'vlm'", "'vllm'"]),
        (["--sampling.group_size", "1"], ["sampling.group_size", "1", "at least 2"]),
        (["--model.path", "nono"], ["model.path", "'nono'", "folder"]),
        (["--model.path", "./no/such/base"], ["model.path", "'./no/such/base'"]),
        (["--sampling.max_model_len", "4"], ["sampling.max_model_len", "4", "lower max_tokens"]),
        (["--problems.sources.0.source", "boxs"], ["problems.sources.0.source", "'boxes'"]),
        (["--problems.sources.0.options", "{boxs: 3}"], ["problems.sources.0.options.boxs"]),
        (["--sampling.top_p", "0.9"], ["sampling.top_p", "0.9", "evaluation.top_p"]),
        (["--template", "compct"], ["template", "'compct'", "'compact'"]),
    ],
)
def test_what_the_recipe_says(r1lab, recipe, arguments, expected):
    done = r1lab("train", recipe, *arguments)
    refused(done, *expected)
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert not (recipe.parent / "runs").exists()


def test_a_missing_recipe(r1lab, recipe):
    refused(r1lab("train", "recpe.yaml"), "recpe.yaml", "recipe.yaml'?")


def test_a_reward_file_without_the_function(r1lab, recipe):
    (recipe.parent / "mine.py").write_text("def rewrad(problem, completion):\n    return 1.0\n")
    done = r1lab("train", recipe, "--rewards", "[{reward: 'mine.py:reward'}]")
    refused(done, "rewards.0.reward", "mine.py:reward", "no function 'reward'", "'rewrad'")


def test_a_tokenizer_without_end_of_sequence(r1lab, recipe, base):
    folder = recipe.parent / "endless"
    shutil.copytree(base, folder)
    config = folder / "tokenizer_config.json"
    config.write_text(config.read_text().replace('"eos_token": "<eos>"', '"eos_token": null'))
    for path in folder.glob("special_tokens_map.json"):
        path.unlink()
    done = r1lab("train", recipe, "--model.path", folder)
    refused(done, "model.path", "endless", "end-of-sequence", "eos_token")


@pytest.mark.parametrize("engine", ["transformers", "vllm"])
def test_a_length_limit_below_the_prompt(r1lab, recipe, engine):
    done = r1lab("train", recipe, "--sampling.max_model_len", 8, "--sampling.engine", engine)
    refused(done, "sampling.max_model_len", "8", "max_tokens")


def test_no_vllm(recipe):
    without = "import sys; sys.modules['vllm'] = None; from r1lab.cli import main; sys.exit(main())"
    done = subprocess.run(
        [sys.executable, "-c", without, "train", recipe, "--sampling.engine", "vllm"],
        capture_output=True,
        text=True,
        env=os.environ,
        cwd=recipe.parent,
    )
    refused(done, "sampling.engine", "'vllm'", "transformers")


def test_show_without_a_run(r1lab):
    refused(r1lab("show", "runs/nothing"), "runs/nothing")


def test_debug_shows_where(r1lab, recipe):
    done = r1lab("train", recipe, "--steps", "x", R1LAB_DEBUG="1")
    assert done.returncode == 1 and "Traceback" in done.stderr
