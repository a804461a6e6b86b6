"""Whole short runs with real vLLM, as a user starts them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from r1lab.run_folder import RunFolder
from r1lab.verify.verifiers import RESERVED_METRICS

ROOT = Path(__file__).parents[2]
SHORT = (
    "--steps=3", "--sampling.questions_per_step=4", "--sampling.group_size=4",
    "--evaluation.num_problems=8", "--evaluation.num_samples=4", "--evaluation.every=0",
    "--checkpoints.every=1", "--sampling.max_tokens=48",
)  # fmt: skip


def r1lab(*arguments, launch=(), check=True, cwd=ROOT):
    """Run the command as a user would, in a process of its own."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", *launch, "r1lab", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=cwd)
    if check:
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done


def train(folder, *more, **options):
    return r1lab("train", "recipes/quickstart.yaml", f"--output={folder}", *SHORT, *more, **options)


def lines(folder, name="metrics.jsonl"):
    return [json.loads(line) for line in (Path(folder) / name).read_text().splitlines()]


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "whole"
    (folder.parent / "said.txt").write_text(train(folder).stdout)
    return folder


def test_a_run_leaves_everything_the_design_promises(whole_run):
    summary = json.loads((whole_run / "summary.json").read_text())
    for figure in ("pass_at_1", "cons_at_4", "length", "greedy", "format"):
        assert summary[f"{figure}_before"] >= 0 and summary[f"{figure}_after"] >= 0
    assert 0 <= summary["max_sync_kl"] < 1e-2
    assert summary["seconds_training"] < summary["seconds_total"]
    assert [line["step"] for line in lines(whole_run)] == [1, 2, 3]
    assert not any("second" in key for line in lines(whole_run) for key in line)
    # A metric that is not in RESERVED_METRICS would be overwritten by a reward of that name.
    assert set(lines(whole_run)[0]) - {"accuracy", "format"} <= RESERVED_METRICS
    assert {"rollout", "reward", "update", "sync"} <= set(lines(whole_run, "timings.jsonl")[0])
    assert len(list((whole_run / "rollouts").glob("*.parquet"))) == 3
    assert len(list((whole_run / "eval").glob("*.json"))) == 2
    assert (whole_run / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert 'id="index-0"' in (whole_run / "report.html").read_text()
    assert {p.name for p in (whole_run / "checkpoints").iterdir()} == {"step-2", "step-3"}


def test_each_step_is_a_plain_line_where_there_is_no_terminal(whole_run):
    said = (whole_run.parent / "said.txt").read_text()
    assert not any(ord(character) < 32 for character in said.replace("\n", ""))
    steps = [line for line in said.splitlines() if line.startswith("quickstart: step ")]
    steps = [line for line in steps if "held out" not in line]
    assert [line.split("  ")[0] for line in steps] == [f"quickstart: step {n}/3" for n in (1, 2, 3)]
    for part in ("reward ", "accuracy ", "length ", "tokens/s", " left"):
        assert part in steps[-1], part


def test_tensorboard_has_the_figures_of_every_step(whole_run):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(whole_run / "tracking"))
    events.Reload()
    for name in ("reward", "accuracy", "entropy", "sync_kl"):
        logged = [(event.step, event.value) for event in events.Scalars(name)]
        expected = [(line["step"], pytest.approx(line[name])) for line in lines(whole_run)]
        assert logged == expected, name
    assert [event.step for event in events.Scalars("eval/pass_at_1")] == [0, 3]


def test_the_trained_model_loads_with_plain_transformers(whole_run):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = whole_run / "checkpoints" / "step-3" / "model"
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert model.config.model_type == "deepseek_v3" and tokenizer.eos_token_id is not None


def test_samples_can_be_read_in_the_terminal(whole_run):
    shown = r1lab("show", whole_run, "--num", "1").stdout
    assert "User" not in shown.splitlines()[0]
    assert any(word in shown for word in ("accuracy", "right", "wrong", "no answer"))


def test_the_same_seed_gives_the_same_run(whole_run, tmp_path):
    train(tmp_path / "again")
    assert lines(tmp_path / "again") == lines(whole_run)


def test_a_resumed_run_equals_the_uninterrupted_one(whole_run, tmp_path):
    import shutil

    cut = tmp_path / "cut"
    shutil.copytree(whole_run, cut)
    shutil.rmtree(cut / "checkpoints" / "step-3")
    refused = train(cut, check=False)
    assert refused.returncode == 2 and "--resume" in refused.stderr
    assert len(refused.stderr.strip().splitlines()) == 1
    train(cut, "--resume")
    assert lines(cut) == lines(whole_run)
    before, after = (
        json.loads((folder / "summary.json").read_text()) for folder in (whole_run, cut)
    )
    for clock in ("seconds_training", "seconds_total"):
        del before[clock], after[clock]
    assert before == after


def agreements(folder):
    """The sync_kl of the steps that trained on something; there is at least one."""
    found = [line["sync_kl"] for line in lines(folder) if line["sync_kl"] is not None]
    assert found
    return found


def launched(launcher):
    config = ROOT / "recipes" / "accelerate" / launcher
    return ("accelerate.commands.launch", f"--config_file={config}", "-m")


def questions(folder, step):
    return {row["problem_id"] for row in RunFolder(folder).rollouts(step)}


@pytest.mark.long  # the parity tests do it without vLLM
def test_a_run_of_one_process_goes_on_in_two_with_its_model_in_shards(whole_run, tmp_path):
    import shutil

    other = tmp_path / "other"
    shutil.copytree(whole_run, other)
    shutil.rmtree(other / "checkpoints" / "step-3")
    done = train(other, "--resume", launch=launched("two_processes_fsdp2_cpu.yaml"))
    assert "step-2 was saved by 1 processes, this launch has 2" in done.stdout
    assert lines(other)[:2] == lines(whole_run)[:2]
    # Other samples of the same questions, by the same weights.
    assert questions(other, 3) == questions(whole_run, 3)
    assert agreements(other)[-1] < 1e-2
    files = {p.name for p in (other / "checkpoints" / "step-3").iterdir()}
    assert files == {"rank-0.pt", "rank-1.pt", "model", "manifest.json"}


@pytest.mark.long
def test_two_processes_train_shards_and_one_goes_on(tmp_path):
    """Shares that are unequal after dynamic sampling; a checkpoint of shards in one process."""
    settings = ("--algorithm.dynamic_sampling=true", "--optimizer.schedule=constant")
    run = tmp_path / "run"
    shards = launched("two_processes_fsdp2_cpu.yaml")
    train(run, *settings, "--steps=2", launch=shards)
    before = lines(run)
    assert len(before) == 2 and all(kl < 1e-2 for kl in agreements(run))
    done = train(run, *settings, "--resume")
    assert "step-2 was saved by 2 processes, this launch has 1" in done.stdout
    assert lines(run)[:2] == before and len(lines(run)) == 3
    assert all(kl < 1e-2 for kl in agreements(run))
    seen = [questions(run, step) for step in (1, 2, 3)]
    assert not seen[2] & (seen[0] | seen[1]), "no question comes again"


def test_lora_trains_attention_dense_and_experts(tmp_path):
    train(tmp_path / "lora", "--model.lora={rank: 4}", "--optimizer.learning_rate=2e-3")
    assert len(lines(tmp_path / "lora")) == 3
    assert all(kl < 1e-2 for kl in agreements(tmp_path / "lora"))
    # The floor was measured under adapters that are not zero: no step's own, and above 0.
    assert lines(tmp_path / "lora")[0]["sync_kl_bound"] > 0


def test_two_processes_share_the_questions_and_agree(tmp_path):
    train(
        tmp_path / "two", "--algorithm.loss=bnpo", "--algorithm.num_minibatches=2",
        "--algorithm.advantage=reinforce_pp", "--algorithm.dynamic_sampling=true",
        launch=launched("two_processes_cpu.yaml"),
    )  # fmt: skip
    steps = lines(tmp_path / "two")
    # 4 questions of 4 each, and those that were asked in the place of empty ones.
    assert [line["responses"] for line in steps] == [4 * line["groups"] for line in steps]
    assert all(line["groups"] + waited >= 4 for line, waited in zip(
        steps, [0, *(line["groups_waiting"] for line in steps)], strict=False
    ))  # fmt: skip
    assert all(kl < 1e-2 for kl in agreements(tmp_path / "two"))
    summary = json.loads((tmp_path / "two" / "summary.json").read_text())
    assert summary["num_problems"] == 8


def test_the_quickstart_in_two_processes_resumes_exactly(tmp_path):
    """`r1lab quickstart` starts a process for each core: cut and resumed, it is the same run."""
    import shutil

    whole, cut = tmp_path / "whole", tmp_path / "cut"
    train(whole, launch=launched("two_processes_cpu.yaml"))
    shutil.copytree(whole, cut)
    shutil.rmtree(cut / "checkpoints" / "step-3")
    train(cut, "--resume", launch=launched("two_processes_cpu.yaml"))
    assert lines(cut) == lines(whole)
    one, other = (
        (folder / "checkpoints" / "step-3" / "model" / "model.safetensors").read_bytes()
        for folder in (whole, cut)
    )
    assert one == other


def test_every_piece_of_state_resumes_exactly(tmp_path):
    """Reference, epochs, waiting groups, router bias, a sampler's choices: all at once."""
    import shutil

    everything = (
        "--steps=4", "--sampling.engine=transformers", "--model.dtype=float32",
        "--sampling.max_tokens=32", "--evaluation.num_samples=1", "--checkpoints.keep=10",
        "--algorithm.loss=dr_grpo", "--algorithm.advantage=mean_only",
        "--algorithm.num_minibatches=2", "--algorithm.num_epochs=2",
        "--algorithm.kl_coefficient=0.05", "--algorithm.kl_corrected=true",
        "--algorithm.reference_every=2", "--algorithm.dynamic_sampling=true",
        "--algorithm.correction=token_truncate", "--algorithm.overlong_filter=true",
        "--algorithm.router_bias_speed=0.001", "--algorithm.router_replay=sampler",
    )  # fmt: skip
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    train(whole, *everything)
    steps = lines(whole)
    assert all(kl < 1e-6 for kl in agreements(whole))
    assert steps[-1]["kl_ref"] > 0 and steps[-1]["kl_old"] > 0
    waiting = [line["step"] for line in steps[:-1] if line["groups_waiting"]]
    assert waiting, "no step of this seed leaves groups over; take another"
    shutil.copytree(whole, cut)
    for step in range(waiting[0] + 1, 5):
        shutil.rmtree(cut / "checkpoints" / f"step-{step}")
    train(cut, *everything, "--resume")
    assert lines(cut) == steps


@pytest.mark.long
@pytest.mark.parametrize("fault", ["repack_experts", "patch_rotary_embedding"])
def test_a_sampler_that_keeps_old_state_stops_the_run(tmp_path, fault):
    """The whole loop, with one mend of the sync left out: stopped in one line, exit code 4."""
    planted = (
        "import sys; from r1lab.rollout import vllm_mends; from r1lab.cli.app import main; "
        f"vllm_mends.{fault} = lambda *_: None; sys.exit(main())"
    )
    settings = (*SHORT, "--steps=8", "--optimizer.learning_rate=2e-3", "--optimizer.warmup_steps=0",
                "--checkpoints.every=0", "--sampling.questions_per_step=8")  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", planted, "train", "recipes/quickstart.yaml",
         f"--output={tmp_path / 'run'}", *settings],
        capture_output=True, text=True, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 4, done.stderr[-3000:]
    assert "sampler and trainer disagree" in done.stderr and "Traceback" not in done.stderr
