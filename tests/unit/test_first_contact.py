"""What a newcomer meets: `r1lab` alone, errors that name their page, completion, the quickstart."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from r1lab.cli.app import build_parser, main
from r1lab.cli.start import completion_script, let_threads_sleep, welcome
from r1lab.pages import page_for, with_page

ROOT = Path(__file__).resolve().parents[2]


def test_alone_it_says_what_to_do_next(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main([]) == 0
    said = capsys.readouterr().out
    commands = re.findall(r"^  r1lab (\w+)", said, re.MULTILINE)
    assert commands[:2] == ["doctor", "quickstart"] and "newest" not in said
    known = build_parser().format_help()
    assert all(re.search(rf"^    {name}\b", known, re.MULTILINE) for name in commands)
    for name in ("older", "newer"):
        (tmp_path / "runs" / name).mkdir(parents=True)
        (tmp_path / "runs" / name / "recipe.yaml").write_text("")
    os.utime(tmp_path / "runs/older/recipe.yaml", (1, 1))
    assert "r1lab report runs/newer" in welcome(tmp_path)


@pytest.mark.parametrize(
    ("message", "page"),
    [
        ("mine.yaml, line 3: rewards.0.reward: no reward is called 'maths'", "docs/rewards.md"),
        ("command line: algorithm.clip_low: 3 must be at most 1", "docs/algorithms.md"),
        ("command line: samplng.x: unknown key (value 1)", "docs/reference/recipe.md"),
        ("no recipe 'quickstrat'", "docs/reference/recipe.md"),
        ("model.path: 'x': no folder", "docs/reference/recipe.md"),
        ("evaluation.num_problems: 9 is more than the sources have", "docs/evaluation.md"),
        ("--optimizer.learning_rate needs a value", "docs/reference/recipe.md"),
        ("accelerate launch: DeepSpeed owns the optimiser", "docs/processes.md"),
        ("KL(sampler, trainer) is 0.2", "docs/exact-weights.md"),
        ("max_fault_share: rewards failed for 3 of 4 responses", "docs/rewards.md"),
        ("torch is not installed here; install r1lab's extra [cpu]", "README.md"),
        ("something else", None),
    ],
)
def test_an_error_ends_with_its_page(message, page):
    assert page_for(message) == page
    assert with_page(message) == (message if page is None else f"{message} ({page})")
    assert page is None or (ROOT / page).is_file()


def test_a_page_that_is_named_already_is_not_named_twice():
    assert with_page("rewards: see docs/rewards.md") == "rewards: see docs/rewards.md"


def test_errors_of_the_command_line_stay_one_line(capsys):
    assert main(["train", "quickstart", "--rewards.0.weight", "heavy"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("(docs/rewards.md)")


def test_bash_completes_commands_keys_and_their_words(tmp_path):
    script = tmp_path / "r1lab.bash"
    script.write_text(completion_script(build_parser(), "bash"))

    def completed(*words: str) -> list[str]:
        code = (
            f"source {script}; COMP_WORDS=({' '.join(words)}); COMP_CWORD={len(words) - 1}; "
            f'_shtab_r1lab r1lab "{words[-1]}" "{words[-2]}"; echo "${{COMPREPLY[@]}}"'
        )
        done = subprocess.run(["bash", "-c", code], capture_output=True, text=True, check=True)
        return done.stdout.split()

    assert completed("r1lab", "qu") == ["quickstart"]
    assert completed("r1lab", "train", "--algorithm.los") == ["--algorithm.loss"]
    assert completed("r1lab", "train", "--algorithm.loss", "dr") == ["dr_grpo"]
    assert completed("r1lab", "train", "--sampling.engine", "v") == ["vllm"]


@pytest.mark.parametrize("shell", ["zsh", "tcsh"])
def test_other_shells_have_a_script(shell):
    assert "dry-run" in completion_script(build_parser(), shell)


def test_the_quickstart_takes_keys_and_goes_on_where_it_was(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name in ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "KMP_BLOCKTIME"):
        monkeypatch.setenv(name, os.environ.get(name, "1"))  # put back behind the test
    assert main(["quickstart", "--dry-run", "--steps", "5"]) == 0
    assert "would train nano for 5 steps" in capsys.readouterr().out
    calls = []
    monkeypatch.setattr("r1lab.cli.app._train", lambda options, _: calls.append(options) or 0)
    monkeypatch.setattr("r1lab.cli.app.usable_cores", lambda: 1)
    main(["quickstart", "--name", "mine"])
    (tmp_path / "runs/mine").mkdir(parents=True)
    (tmp_path / "runs/mine/metrics.jsonl").write_text("{}\n")
    main(["quickstart", "--name", "mine"])
    assert [call.resume for call in calls] == [False, True]


def test_the_quickstart_starts_a_process_for_each_core(tmp_path, monkeypatch):
    """Four of five cores share 32 prompts evenly; a run that is there is resumed."""
    monkeypatch.chdir(tmp_path)
    for name in ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "KMP_BLOCKTIME"):
        monkeypatch.setenv(name, "")  # so that it is restored after the test
        monkeypatch.delenv(name)
    monkeypatch.setattr("r1lab.cli.app.usable_cores", lambda: 5)
    monkeypatch.setattr("r1lab.cli.app.sees_gpu", lambda: False)
    started = []
    monkeypatch.setattr("r1lab.cli.app.run_on_cpu", lambda *call: started.append(call) or 0)
    main(["quickstart", "--steps", "5"])
    assert started == [(4, ["train", "quickstart", "--steps=5"])]
    assert os.environ["OMP_NUM_THREADS"] == "1"
    (tmp_path / "runs/quickstart").mkdir(parents=True)
    (tmp_path / "runs/quickstart/metrics.jsonl").write_text("{}\n")
    main(["quickstart"])
    assert started[1][1][-1] == "--resume"
    assert main(["quickstart", "--step", "5"]) == 2 and len(started) == 2


def test_threads_are_left_as_they_were_set(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.delenv("KMP_BLOCKTIME", raising=False)
    let_threads_sleep(2)
    assert (os.environ["OMP_NUM_THREADS"], os.environ["KMP_BLOCKTIME"]) == ("7", "0")
    monkeypatch.delenv("KMP_BLOCKTIME")
