"""`r1lab verify` and `r1lab new reward`, through the real command."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from textwrap import dedent

import pytest

SHIPPED = [("boxes", "boxes"), ("division", "division"), ("math", "arithmetic")]


@pytest.fixture
def write(tmp_path: Path):
    """Write a file beside the command."""

    def write(name: str, source: str) -> str:
        (tmp_path / name).write_text(dedent(source).lstrip())
        return name

    return write


def checks(path: Path) -> dict[str, tuple[int, int]]:
    """(passed, responses) of each kind in a report."""
    report = json.loads(path.read_text())
    return {name: (row["passed"], row["responses"]) for name, row in report["checks"].items()}


@pytest.mark.parametrize(("reward", "problems"), SHIPPED)
def test_shipped_rewards_pass(r1lab, tmp_path, reward, problems):
    done = r1lab("verify", reward, "--problems", problems, "--num", 30, "--json", "report.json")
    assert done.returncode == 0, done.stdout + done.stderr
    found = checks(tmp_path / "report.json")
    assert list(found) == ["gold", "empty", "wrong", "format", "hostile"]
    assert all(passed == responses > 0 for passed, responses in found.values())
    assert "responses a second" in done.stdout and "worst time" in done.stdout


@pytest.mark.parametrize("option", [(), ("--no-isolate",)])
def test_a_reward_that_faults_on_ordinary_wrong_answers(r1lab, write, tmp_path, option):
    write(
        "mine.py",
        """
        def reward(problem, completion):
            return float(int(completion.answer) == int(problem.answer))
    """,
    )
    done = r1lab(
        "verify",
        "mine.py",
        "--problems",
        "arithmetic",
        "--num",
        4,
        "--json",
        "report.json",
        *option,
    )
    found = checks(tmp_path / "report.json")
    assert done.returncode == 3
    assert found["empty"][0] == found["format"][0] == 0


PRINTS = {
    "print": "print('flood', problem.id)",
    "stderr": "import sys; sys.stderr.write('flood\\n')",
}
IN_WORKERS = {
    "descriptor": "import os; os.write(1, b'flood\\n'); os.write(2, b'flood\\n')",
    "child": "import subprocess; subprocess.run(['echo', 'flood'])",
}


@pytest.mark.parametrize(
    ("body", "option"),
    [
        *[(body, option) for body in PRINTS.values() for option in ((), ("--no-isolate",))],
        *[(body, ()) for body in IN_WORKERS.values()],
    ],
)
def test_a_flood_is_bounded(r1lab, write, body, option):
    write(
        "mine.py",
        f"""
        def reward(problem, completion):
            for _ in range(40):
                {body}
            return float(completion.answer == problem.answer)
    """,
    )
    done = r1lab("verify", "mine.py", "--problems", "arithmetic", "--num", 1, *option)
    assert done.returncode in (0, 3), done.stderr
    assert "flood" not in done.stdout
    flood = [line for line in done.stderr.splitlines() if line.startswith("flood")]
    assert len(flood) == 20
    assert len(done.stderr.splitlines()) < 60


def test_a_slow_reward_shows_progress(r1lab, write):
    write(
        "mine.py",
        """
        import time
        def reward(problem, completion):
            time.sleep(0.02)
            return float(completion.answer == problem.answer)
    """,
    )
    done = r1lab("verify", "mine.py", "--problems", "arithmetic", "--num", 5)
    assert [line for line in done.stderr.splitlines() if line.startswith("r1lab verify: ")]


def test_the_verifier_that_each_problem_names(r1lab):
    done = r1lab("verify", "problem", "--problems", "arithmetic", "--num", 10)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("body", "fails"),
    [
        ("return 1.0", {"empty", "wrong", "format", "hostile"}),
        ("return 0.0", {"gold"}),
        ("return float(problem.answer in completion.text)", {"wrong", "format", "hostile"}),
        ("return float(completion.answer is not None)", {"empty", "wrong", "format", "hostile"}),
        ("return eval(completion.answer) == eval(problem.answer)", {"empty", "format", "hostile"}),
    ],
)
def test_a_reward_that_does_not_tell_right_from_wrong(r1lab, write, tmp_path, body, fails):
    write("mine.py", f"def reward(problem, completion):\n    {body}\n")
    write("mine.jsonl", "".join(f'{{"question": "q{n}?", "answer": "{n}"}}\n' for n in range(1, 9)))
    done = r1lab(
        *("verify", "mine.py", "--problems", "mine.jsonl", "--json", "report.json"),
        *("--seconds", 1, "--memory-mib", 256),
    )
    assert done.returncode == 3, done.stdout + done.stderr
    report = json.loads((tmp_path / "report.json").read_text())
    found = {
        name for name, (passed, num) in checks(tmp_path / "report.json").items() if passed < num
    }
    assert found | ({"hostile"} if report["executed"] else set()) == fails
    assert "fails" in done.stdout or report["executed"]


def test_faults_are_no_scores(r1lab, write, tmp_path):
    write(
        "mine.py",
        """
        import os

        def reward(problem, completion):
            if completion.answer is None:
                os._exit(1)
            return float(completion.answer == problem.answer)
        """,
    )
    done = r1lab("verify", "mine.py", "--problems", "boxes", "--num", 5, "--json", "report.json")
    assert done.returncode == 3, done.stdout
    assert json.loads((tmp_path / "report.json").read_text())["checks"]["empty"]["faults"] == 10
    assert "the worker died of exit code 1" in " ".join(done.stdout.split())


def test_a_trl_reward_on_a_file_with_columns_of_its_own(r1lab, write, tmp_path):
    write(
        "mine.py",
        """
        def exact(prompts, completions, answer, level, scale, **columns):
            ends = [text.split("<answer>")[-1].split("</answer>")[0] for text in completions]
            return [scale * (end.strip() == gold) for end, gold in zip(ends, answer)]
        """,
    )
    rows = [{"prompt": f"{n} + 1?", "solution": f"{n + 1}", "level": n} for n in range(12)]
    write("mine.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    done = r1lab(
        *("verify", "mine.py:exact", "--problems", "mine.jsonl", "--json", "report.json"),
        *("--columns", "question=prompt,answer=solution", "--options", "{scale: 2}", "--full", 2),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert checks(tmp_path / "report.json")["gold"] == (12, 12)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["boxs", "--problems", "boxes"], ["'boxs'", "did you mean 'boxes'"]),
        (["no.py", "--problems", "boxes"], ["no.py"]),
        (["mine.py:rewrad", "--problems", "boxes"], ["no function 'rewrad'", "mine.py", "reward"]),
        (["mine.py", "--problems", "boxs"], ["--problems", "'boxs'"]),
        (["mine.py:signature", "--problems", "boxes"], ["line 5", "write reward(problem"]),
        (["mine.py:short", "--problems", "boxes"], ["line 8", "returned 0 scores for 1"]),
        (["mine.py:nan", "--problems", "boxes"], ["line 11", "returned nan", "finite number"]),
        (["mine.py:text", "--problems", "boxes"], ["line 14", "'1.0' (str)", "a score is a"]),
        (["mine.py:verdict", "--problems", "boxes"], ["line 19", "finite number or None, not nan"]),
        (["mine.py:nameless", "--problems", "boxes"], ["line 21", "without their names", "write "]),
        (["mine.py:Judge", "--problems", "boxes"], ["line 24", "is a class", "write reward("]),
        (
            ["mine.py:FULL", "--problems", "boxes"],
            ["'FULL'", "not a function but float", "mine.py"],
        ),
        (["mine", "--problems", "boxes"], ["did you mean 'mine.py'"]),
        ([":reward", "--problems", "boxes"], ["no reward is called ':reward'", "path/to/file.py"]),
        (["broken.py", "--problems", "boxes"], ["broken.py, line 2", "SyntaxError: expected ':'"]),
        (["lost.py", "--problems", "boxes"], ["lost.py, line 3", "No module named 'no_such'"]),
        (["mine.py", "--problems", "boxes", "--options", "{x: 1}"], ["options.x", "takes none"]),
        (["mine.py", "--problems", "boxes", "--num", "0"], ["--num"]),
        (["mine.py", "--problems", "boxes", "--template", "compct"], ["'compct'", "compact"]),
    ],
)
def test_mistakes_are_one_line_with_the_fix(r1lab, write, arguments, expected):
    write(
        "mine.py",
        """
        def reward(problem, completion):
            return 1.0


        def signature(text):
            return 1.0

        def short(completions, **columns):
            return []

        def nan(problem, completion):
            return float("nan")

        def text(problem, completion):
            return "1.0"

        def verdict(problem, completion):
            from r1lab.types import Verdict
            return Verdict(float("nan"))

        def nameless(problem, completion, /):
            return 1.0

        class Judge:
            def __call__(self, problem, completion):
                return 1.0

        FULL = 1.0
        """,
    )
    write("broken.py", "def reward(problem, completion):\n    if True\n        return 1.0\n")
    write("lost.py", "import os\n\nimport no_such\n")
    done = r1lab("verify", *arguments)
    assert done.returncode == 2, done.stdout + done.stderr
    progress = "r1lab verify: "  # where this machine took more than a second
    lines = [line for line in done.stderr.splitlines() if not line.startswith(progress)]
    assert len(lines) == 1, done.stderr
    for part in expected:
        assert part in done.stderr, done.stderr


def test_a_new_reward_is_ready_to_run(r1lab, tmp_path):
    done = r1lab("new", "reward", "stacked")
    assert done.returncode == 0 and "test_stacked.py" in done.stdout, done.stderr
    tested = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_stacked.py"],
        cwd=tmp_path, capture_output=True, text=True, env=os.environ,
    )  # fmt: skip
    assert tested.returncode == 0, tested.stdout
    done = r1lab("verify", "stacked.py", "--problems", "boxes", "--num", 10)
    assert done.returncode == 0, done.stdout


def test_a_new_reward_overwrites_nothing(r1lab, write, tmp_path):
    write("test_mine.py", "mine = 1\n")
    done = r1lab("new", "reward", "mine")
    assert done.returncode == 2 and "test_mine.py already exists" in done.stderr
    assert not (tmp_path / "mine.py").exists()
    assert (tmp_path / "test_mine.py").read_text() == "mine = 1\n"


@pytest.mark.parametrize("name", ["my-reward", "2", "class", "json", "a/b c"])
def test_a_new_reward_needs_a_name_that_can_be_imported(r1lab, tmp_path, name):
    done = r1lab("new", "reward", name)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1, done.stderr
    assert not list(tmp_path.rglob("*.py"))
