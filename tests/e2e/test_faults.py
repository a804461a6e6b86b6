"""What stops a run, made to happen for real: its exit code, its one line, and the way on.

Runs of the shipped base with the slow sampler, in this process where nothing dies; rewards in this
process (`isolate: false`) are where the faults are set off.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from r1lab.cli.app import main
from r1lab.run_folder import RunFolder

STEPS = 3

REWARD = '''\
"""Scores by length, and sets off a fault from the call `at` on, counted in the file `calls`."""
import os, signal, time
from pathlib import Path

def score(completion):
    return float(len(completion.text) % 7) / 7

def counted(calls):
    with open(calls, "a") as file:
        file.write(".")
        return file.tell()

def plain(problem, completion):
    return score(completion)

def signalled(problem, completion, *, calls, number, at):
    if counted(calls) == at:
        os.kill(os.getpid(), number)
    return score(completion)

def raises(problem, completion, *, calls, at, every=1):
    if counted(calls) >= at and counted(calls) % every == 0:
        raise KeyError("no such table")
    return score(completion)

def dies(problem, completion, *, calls, at):
    if counted(calls) >= at:
        os.kill(os.getpid(), signal.SIGKILL)
    return score(completion)

def hangs(problem, completion, *, calls, at):
    if counted(calls) >= at:
        time.sleep(60)
    return score(completion)

def huge(problem, completion, *, calls, at, until):
    """More than a float32 holds, between two calls."""
    return (1e300 if at <= counted(calls) < until else 1.0) * score(completion)

def starved(problem, completion, *, calls, at):
    """From then on this process gets no more memory than it has."""
    import resource
    if counted(calls) == at:
        size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (size, resource.RLIM_INFINITY))
    return score(completion)
'''


@pytest.fixture(autouse=True)
def listening():
    """A job in the background inherits SIGINT (under nohup SIGHUP) ignored, and a run leaves it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    hung_up = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGINT, before)
    signal.signal(signal.SIGHUP, hung_up)


@pytest.fixture(scope="module")
def rewards(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("rewards") / "my_reward.py"
    path.write_text(REWARD)
    return path


def arguments(folder: Path, *more: str, recipe="recipes/quickstart.yaml", **settings) -> list[str]:
    given = {
        "output": folder, "steps": STEPS, "model.dtype": "float32", "tracking.trackers": "[]",
        "sampling.engine": "transformers", "sampling.questions_per_step": 2,
        "sampling.group_size": 4, "sampling.max_tokens": 8, "evaluation.num_problems": 2,
        "evaluation.num_samples": 2, "evaluation.every": 2, "evaluation.greedy": False,
        "checkpoints.every": 1, "reward_workers": 1, "problems.check_gold": 0, **settings,
    }  # fmt: skip
    return ["train", str(recipe), *more,
            *(f"--{key}={value}" for key, value in given.items())]  # fmt: skip


@pytest.fixture
def run(tmp_path, monkeypatch, repository, rewards, capsys):
    """Train in this process: run(reward, isolate=..., **settings) -> (exit code, said, errors)."""
    monkeypatch.chdir(repository)

    def run(name="plain", *more, isolate=True, options=None, seconds=5.0, **settings):
        options = {} if options is None else {"calls": str(tmp_path / "calls"), **options}
        reward = {"reward": f"{rewards}:{name}", "isolate": isolate, "options": options,
                  "seconds": seconds}  # fmt: skip
        code = main(arguments(tmp_path / "run", *more, rewards=json.dumps([reward]), **settings))
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err
        return code, captured.out, captured.err

    return run


@pytest.fixture(scope="module")
def whole(tmp_path_factory, rewards, repository) -> Path:
    """The undisturbed run that the others are held against."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    reward = json.dumps([{"reward": f"{rewards}:plain"}])
    with contextlib.chdir(repository):
        assert main(arguments(folder, rewards=reward)) == 0
    return folder


def metrics(folder: Path, *, without: str = "plain") -> list[dict[str, object]]:
    """The lines of a run without the reward's own column, which bears its name."""
    names = {"plain", without}
    return [
        {key: value for key, value in line.items() if key not in names}
        for line in RunFolder(folder).metrics()
    ]


def weights(folder: Path) -> bytes:
    return (folder / "checkpoints" / f"step-{STEPS}" / "model" / "model.safetensors").read_bytes()


def errors(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("r1lab: error")]


# --- signals --------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP])
def test_a_signal_while_scoring_saves_the_run_and_it_goes_on_exactly(run, tmp_path, whole, number):
    # 4 responses are scored before the first step, 8 in each: the 14th is one of the second step.
    code, said, _ = run("signalled", isolate=False, options={"number": int(number), "at": 14})
    assert code == 0
    assert (
        f"stopped by {number.name}" in said and f"r1lab train {tmp_path / 'run'} --resume" in said
    )
    assert [line["step"] for line in metrics(tmp_path / "run")] == [1]
    never = {"number": int(number), "at": 0}
    code, _, err = run("signalled", "--resume", isolate=False, options=never)
    assert code == 2 and "rewards.0.options.at: 14 -> 0" in err
    code, said, _ = run("signalled", "--resume", "--force", isolate=False, options=never)
    assert code == 0 and "resuming from step 1" in said
    assert metrics(tmp_path / "run", without="signalled") == metrics(whole)
    assert weights(tmp_path / "run") == weights(whole)


def test_a_signal_in_an_update_waits_for_its_end(run, tmp_path, whole, monkeypatch):
    from r1lab.grpo.policy import Policy

    apply = Policy.optimizer_step

    def signalled(self, **options):
        if self.num_updates == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return apply(self, **options)

    monkeypatch.setattr(Policy, "optimizer_step", signalled)
    code, said, _ = run(**{"checkpoints.every": 0})
    assert code == 0 and "step 2 is saved" in said
    assert [line["step"] for line in metrics(tmp_path / "run")] == [1, 2]
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-2"]
    monkeypatch.undo()
    monkeypatch.chdir(Path(__file__).parents[2])
    code, said, _ = run("plain", "--resume")  # checkpoints.every is no part of what is learned
    assert code == 0 and metrics(tmp_path / "run") == metrics(whole)
    assert weights(tmp_path / "run") == weights(whole)


@pytest.mark.long
def test_a_second_signal_ends_at_once_and_the_last_checkpoint_stays_whole(
    tmp_path, rewards, repository, whole
):
    planted = (
        "import os, signal, sys, time\n"
        "from r1lab.cli.app import main\n"
        "from r1lab.grpo.policy import Policy\n"
        "apply = Policy.optimizer_step\n"
        "def twice(self, **options):\n"
        "    if self.num_updates == 1:\n"
        "        os.kill(os.getpid(), signal.SIGTERM)\n"
        "        time.sleep(1.5)\n"
        "        os.kill(os.getpid(), signal.SIGTERM)\n"
        "    return apply(self, **options)\n"
        "Policy.optimizer_step = twice\n"
        "sys.exit(main())\n"
    )
    given = arguments(tmp_path / "run", rewards=json.dumps([{"reward": f"{rewards}:plain"}]))
    done = subprocess.run([sys.executable, "-c", planted, *given], cwd=repository)
    assert done.returncode == -signal.SIGTERM
    checkpoints = tmp_path / "run" / "checkpoints"
    assert [path.name for path in checkpoints.iterdir()] == ["step-1"]
    resumed = subprocess.run([sys.executable, "-m", "r1lab", *given, "--resume"], cwd=repository)
    assert resumed.returncode == 0
    assert metrics(tmp_path / "run") == metrics(whole)


def test_resume_auto_needs_no_flag(run, tmp_path, whole):
    shutil.copytree(whole, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / f"step-{STEPS}")
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("extends: quickstart\nresume: auto\n")
    code, said, _ = run(recipe=recipe)
    assert code == 0 and f"resuming from step {STEPS - 1}" in said
    assert metrics(tmp_path / "run") == metrics(whole)


# --- checkpoints and recipes ----------------------------------------------------------------


@pytest.mark.parametrize("harm", ["cut", "altered", "missing", "no manifest"])
def test_a_torn_checkpoint_is_passed_over_for_the_one_before(run, tmp_path, whole, harm):
    shutil.copytree(whole, tmp_path / "run")
    newest = tmp_path / "run" / "checkpoints" / f"step-{STEPS}"
    state = newest / "rank-0.pt"
    content = state.read_bytes()
    if harm == "cut":
        state.write_bytes(content[: len(content) // 2])
    elif harm == "altered":
        state.write_bytes(content[:-9] + bytes([content[-9] ^ 1]) + content[-8:])
    elif harm == "missing":
        (newest / "model" / "config.json").unlink()
    else:
        (newest / "manifest.json").unlink()
    code, said, _ = run("plain", "--resume")
    assert code == 0 and f"warning: step-{STEPS} is incomplete or corrupted" in said
    assert f"resuming from step {STEPS - 1}" in said
    assert metrics(tmp_path / "run") == metrics(whole)
    assert weights(tmp_path / "run") == weights(whole)
    assert newest.with_name(newest.name + ".torn").is_dir()
    assert any(
        event["event"] == "checkpoint torn" for event in RunFolder(tmp_path / "run").events()
    )


def test_where_no_checkpoint_is_whole_the_run_says_so(run, tmp_path, whole):
    shutil.copytree(whole, tmp_path / "run")
    for manifest in (tmp_path / "run").glob("checkpoints/*/manifest.json"):
        manifest.write_text("{}")
    code, _, err = run("plain", "--resume")
    assert code == 2 and len(errors(err)) == 1 and "no checkpoint" in err and "--output" in err


def test_another_recipe_is_refused_with_the_difference_and_forced_on_demand(run, tmp_path, whole):
    shutil.copytree(whole, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / f"step-{STEPS}")
    changed = {"optimizer.learning_rate": 1e-5, "checkpoints.keep": 7}
    code, _, err = run("plain", "--resume", **changed)
    assert code == 2 and len(errors(err)) == 1
    assert "optimizer.learning_rate" in err and "1e-05" in err and "--force" in err
    assert "checkpoints.keep" not in err  # harmless, and so no part of the refusal
    code, said, _ = run("plain", "--resume", "--force", **changed)
    assert code == 0 and "recipe changed: optimizer.learning_rate" in said
    assert metrics(tmp_path / "run")[:2] == metrics(whole)[:2]
    assert weights(tmp_path / "run") != weights(whole)


def test_fewer_steps_than_were_done_are_refused(run, tmp_path, whole):
    shutil.copytree(whole, tmp_path / "run")
    code, _, err = run("plain", "--resume", "--force", steps=1)
    assert code == 2 and errors(err)[0].startswith("r1lab: error: steps: 1 is ")


def test_two_runs_in_one_folder_are_kept_apart(run, tmp_path):
    with RunFolder(tmp_path / "run").locked():
        code, _, err = run()
    assert code == 2 and len(errors(err)) == 1
    assert "another run" in err and f"process {os.getpid()}" in err and "--output" in err


# --- rewards --------------------------------------------------------------------------------


def test_a_reward_that_raises_now_and_then_is_counted_and_the_run_goes_on(run, tmp_path):
    code, _, _ = run("raises", options={"at": 5, "every": 6})
    assert code == 0
    assert 0 < sum(line["faults"] for line in metrics(tmp_path / "run")) < 12


@pytest.mark.parametrize(
    ("name", "cause"),
    [("raises", "KeyError: 'no such table'"), ("dies", "crash"), ("hangs", "timeout")],
)
def test_rewards_that_break_down_stop_the_run_with_the_first_fault(run, tmp_path, name, cause):
    # 4 responses are judged before the first step, 8 in it.
    code, said, err = run(name, options={"at": 13}, seconds=0.3)
    assert code == 4 and len(errors(err)) == 1
    assert cause in err and "r1lab verify" in err and "8 of 8" in err
    assert "step-1 is intact" in said and "--resume" in said


# --- numbers --------------------------------------------------------------------------------


def test_an_update_that_is_not_finite_is_skipped_and_counted(run, tmp_path):
    code, said, _ = run("huge", isolate=False, options={"at": 5, "until": 13},
                        **{"algorithm.advantage": "mean_only"})  # fmt: skip
    assert code == 0 and "update skipped" in said
    lines = metrics(tmp_path / "run")
    assert [line["skipped"] for line in lines] == [1, 0, 0] and lines[0]["grad_norm"] is None
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["skipped_updates"] == 1


def test_several_in_a_row_stop_the_run_and_the_batch_is_kept(run, tmp_path):
    settings = {"algorithm.advantage": "mean_only", "algorithm.max_skipped": 2}
    code, said, err = run("huge", isolate=False, options={"at": 5, "until": 99}, **settings)
    assert code == 4 and len(errors(err)) == 1
    assert "2 consecutive updates" in err and "algorithm.max_skipped" in err
    kept = tmp_path / "run" / "faulty" / "step-000002.parquet"
    assert str(kept) in said and kept.exists() and "step-1 is intact" in said
    assert [line["step"] for line in metrics(tmp_path / "run")] == [1]


# --- the machine ----------------------------------------------------------------------------


def limited(repository, folder, limit: str, *more: str, **settings):
    """Train in a process of its own, after `limit` (Python) was set on it."""
    planted = f"import resource, sys\nfrom r1lab.cli.app import main\n{limit}\nsys.exit(main())"
    given = arguments(folder, *more, **settings)
    return subprocess.run(
        [sys.executable, "-c", planted, *given], cwd=repository, capture_output=True, text=True
    )


@pytest.mark.long
def test_a_full_disk_ends_the_run_and_what_was_saved_stays_whole(
    tmp_path, rewards, repository, whole
):
    shutil.copytree(whole, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / f"step-{STEPS}")
    size = "resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, 2**20))"
    reward = json.dumps([{"reward": f"{rewards}:plain"}])
    done = limited(repository, tmp_path / "run", size, "--resume", rewards=reward)
    assert done.returncode == 5, done.stderr
    assert len(errors(done.stderr)) == 1 and "Traceback" not in done.stderr, done.stderr
    assert "output:" in errors(done.stderr)[0] and "make room" in done.stderr
    assert f"step-{STEPS - 1} is intact" in done.stdout
    done = limited(repository, tmp_path / "run", "", "--resume", rewards=reward)
    assert done.returncode == 0, done.stderr
    assert metrics(tmp_path / "run") == metrics(whole)
    assert weights(tmp_path / "run") == weights(whole)


def test_a_rollout_file_that_cannot_be_written_ends_the_run(run, tmp_path, whole):
    blocked = tmp_path / "run" / "rollouts" / "step-000002.parquet"
    blocked.mkdir(parents=True)
    (blocked / "held").touch()
    code, _, err = run()
    assert code == 5 and "step-000002.parquet" in err and len(errors(err)) == 1
    shutil.rmtree(blocked)
    assert run()[0] == 0 and metrics(tmp_path / "run") == metrics(whole)


def test_a_rollout_file_that_is_corrupt_is_named(tmp_path, whole, capsys):
    shutil.copytree(whole, tmp_path / "run")
    path = tmp_path / "run" / "rollouts" / "step-000003.parquet"
    path.write_bytes(path.read_bytes()[:200])
    assert main(["show", str(tmp_path / "run")]) == 2
    err = capsys.readouterr().err
    assert str(path) in err and len(errors(err)) == 1 and "Traceback" not in err


def test_memory_that_runs_out_in_the_update_is_named_with_what_to_lower(
    tmp_path, rewards, repository
):
    reward = {"reward": f"{rewards}:starved", "isolate": False,
              "options": {"calls": str(tmp_path / "calls"), "at": 5}}  # fmt: skip
    done = limited(
        repository, tmp_path / "run", "", rewards=json.dumps([reward]),
        **{"sampling.questions_per_step": 16, "sampling.group_size": 16,
           "sampling.max_tokens": 48, "algorithm.tokens_per_microbatch": 65536},
    )  # fmt: skip
    assert done.returncode == 5, (done.returncode, done.stderr[-2000:])
    assert len(errors(done.stderr)) == 1 and "Traceback" not in done.stderr
    assert "algorithm.tokens_per_microbatch (65536)" in done.stderr


# --- the sampler's engine (real vLLM) -------------------------------------------------------

KILLER = '''\
"""At the call `at`: vLLM's worker loses its runner, and with it weights and cache; `model`, if
given, vanishes from the disk too."""
import gc, shutil

def reward(problem, completion, *, calls, at, model=None):
    from r1lab.rollout.vllm.engine import VllmSampler
    with open(calls, "a") as file:
        file.write(".")
        if file.tell() == at:
            gc.unfreeze()  # vLLM hides what there is from the collector
            for sampler in [it for it in gc.get_objects() if type(it) is VllmSampler]:
                sampler.llm.llm_engine.model_executor.driver_worker.worker.model_runner = None
            if model:
                shutil.rmtree(model)
    return float(len(completion.text) % 7) / 7
'''


def with_killer(tmp_path, repository, folder, at, base="nano", **options):
    killer = tmp_path / "killer.py"
    killer.write_text(KILLER)
    options = {"calls": str(folder) + ".calls", "at": at, **options}
    reward = {"reward": str(killer), "isolate": False, "options": options}
    return limited(
        repository, folder, "", rewards=json.dumps([reward]),
        **{"sampling.engine": "vllm", "steps": 2, "model.path": base},
    )  # fmt: skip


@pytest.mark.long
def test_an_engine_that_dies_is_started_anew_and_the_run_is_the_same(tmp_path, repository):
    whole = with_killer(tmp_path, repository, tmp_path / "whole", at=0)
    died = with_killer(tmp_path, repository, tmp_path / "died", at=12)  # at the end of step 1
    assert whole.returncode == 0 and died.returncode == 0, died.stderr[-3000:]
    assert "engine died" in died.stdout and "restarting it once" in died.stdout
    assert any(e["event"] == "sampler restarted" for e in RunFolder(tmp_path / "died").events())
    assert metrics(tmp_path / "died") == metrics(tmp_path / "whole")


@pytest.mark.long
def test_an_engine_that_cannot_be_started_anew_ends_the_run(tmp_path, repository):
    base = tmp_path / "base"
    shutil.copytree(repository / "data" / "models" / "nano", base)
    done = with_killer(tmp_path, repository, tmp_path / "run", at=12, base=base, model=str(base))
    assert done.returncode == 5, done.stderr[-3000:]
    assert len(errors(done.stderr)) == 1 and "Traceback" not in done.stderr
    assert "engine died and could not be restarted" in done.stderr
    assert "step-1 is intact" in done.stdout


# --- several processes ----------------------------------------------------------------------


@pytest.mark.long
def test_a_signal_to_one_of_two_processes_stops_both_at_the_same_step(
    tmp_path, rewards, repository
):
    def launch(folder, at, *more):
        reward = {"reward": f"{rewards}:signalled", "isolate": False,
                  "options": {"calls": str(folder) + ".calls", "number": 15, "at": at}}  # fmt: skip
        config = repository / "recipes" / "accelerate" / "two_processes_cpu.yaml"
        given = arguments(folder, *more, rewards=json.dumps([reward]))
        return subprocess.run(
            [sys.executable, "-m", "accelerate.commands.launch", f"--config_file={config}", "-m",
             "r1lab", *given], cwd=repository, capture_output=True, text=True,
        )  # fmt: skip

    assert launch(tmp_path / "whole", 0).returncode == 0
    stopped = launch(tmp_path / "run", 14)
    assert stopped.returncode == 0, stopped.stderr[-3000:]
    assert "stopped by SIGTERM; step 2 is saved" in stopped.stdout
    assert launch(tmp_path / "run", 0, "--resume", "--force").returncode == 0
    assert metrics(tmp_path / "run") == metrics(tmp_path / "whole")
    assert weights(tmp_path / "run") == weights(tmp_path / "whole")
