"""`r1lab eval` with real models: resumed, a run's trained model, adapters, servers."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch

from r1lab.cli.app import main
from r1lab.config.recipe import LoraSettings, ModelSettings
from r1lab.evaluate import standalone
from r1lab.evaluate.standalone import EvalOptions, evaluate_target
from r1lab.evaluate.target import find_target, model_folder
from r1lab.model.adapters import add_lora
from r1lab.model.load import load_base, resolve_folder
from r1lab.model.weights import save_checkpoint_folder
from r1lab.types import R1labError

OPTIONS: dict[str, Any] = {"suites": ("boxes",), "num": 12, "k": 2, "max_tokens": 24}


def scores(model: str, folder: Path, say: Any = None, **options: Any) -> dict[str, Any]:
    chosen = EvalOptions(
        **{**OPTIONS, "engine": "transformers", "out": str(folder), **options}
    )  # fmt: skip
    ((_, result),) = evaluate_target(find_target(model), chosen, say or (lambda *_: None))
    return result


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(standalone, "SAMPLES_AT_ONCE", 8)


def test_an_interrupted_evaluation_goes_on_to_the_same_figures(small_chunks, tmp_path) -> None:
    whole = scores("nano", tmp_path / "whole", greedy=True)

    def interrupt(suite: str, done: int, total: int) -> None:
        if done == 16:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        scores("nano", tmp_path / "parts", interrupt, greedy=True)
    (lines,) = (tmp_path / "parts").glob("*.samples.jsonl")
    assert len(lines.read_text().splitlines()) == 1 + 8
    asked: list[int] = []
    resumed = scores("nano", tmp_path / "parts", lambda s, done, t: asked.append(done), greedy=True)
    assert resumed == whole
    assert asked == [8, 16, 24]
    assert not lines.exists()
    assert whole["overall"]["num_samples"] == 24 and len(whole["problems"]) == 12
    assert all(len(p["samples"]) == 2 and p["greedy"] for p in whole["problems"])
    # Asked again, it is read and not sampled.
    assert scores("nano", tmp_path / "parts", lambda *_: pytest.fail(), greedy=True) == whole


def test_budgets_a_second_grader_and_contamination(tmp_path, monkeypatch) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text("extends: quickstart\nname: r\nsteps: 1\n")
    result = scores(
        "nano", tmp_path, suites=("arithmetic",), k=4, max_tokens=96, budgets=(2, 90),
        grader="math_verify", trained_on=str(recipe),
    )  # fmt: skip
    short, long = result["budgets"]
    assert short["cut"] > long["cut"] == 0
    assert short["tokens"]["value"] < long["tokens"]["value"]
    # A budget that cuts nothing gives the figures of the evaluation itself.
    assert long["pass_at_1"] == result["overall"]["pass_at_1"]
    assert long["tokens"] == result["overall"]["length"]
    second = result["second_grader"]
    assert second["num_samples"] == 48 - second["num_faults"] > 0
    assert second["agreement"] > 0.9
    assert second["difference"]["low"] <= second["difference"]["value"]
    assert result["contamination"]["exact"] == 0
    assert result["contamination"]["num_training"] == 32
    assert result["prompt"].startswith("User: ")
    # Another look at the same samples: nothing is asked anew.
    monkeypatch.setattr(standalone, "build_sampler", lambda *_, **__: pytest.fail("sampled again"))
    again = scores("nano", tmp_path, suites=("arithmetic",), k=4, max_tokens=96)
    assert again["problems"] == result["problems"] and "budgets" not in again


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run folder whose trained model is the base itself."""
    folder = tmp_path / "run"
    shutil.copytree(resolve_folder("nano"), folder / "checkpoints/step-3/model")
    (folder / "recipe.yaml").write_text(
        "extends: quickstart\nname: run\nmodel: {path: no/base}\n"
        "sampling: {engine: transformers}\nevaluation: {num_problems: 10, num_samples: 2}\n"
    )
    return folder


def test_a_run_is_its_trained_model_on_its_held_out_problems(run, tmp_path, capsys) -> None:
    out = tmp_path / "x.json"
    assert main(["eval", str(run), "--json", str(out)]) == 0
    result = json.loads(out.read_text())
    assert (result["suite"], result["k"], result["max_tokens"]) == ("held-out", 2, 128)
    assert result["overall"]["num_problems"] == 10
    assert len(list((run / "eval/suites").glob("held-out-*.json"))) == 1
    printed = capsys.readouterr().out
    assert "pass@1" in printed and "greedy" in printed
    assert all("[" in line for line in printed.splitlines() if line.startswith("  pass@"))
    assert main(["compare", str(out), "--with", str(run / "eval/suites")]) == 0
    printed = capsys.readouterr().out
    assert "run against run" in printed and printed.count("p = 1 (10 problems)") == 3
    assert main(["compare", str(out), str(run / "eval/suites")]) == 0
    printed = capsys.readouterr().out
    assert "held-out, 2 runs" in printed and printed.count("[") == 3
    assert main(["compare", str(out)]) == 2
    assert "at least two results" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["nano"], "--suite: name one"),
        ([], "name a MODEL"),
        (["nano", "--suite", "boxes", "--json", "no/such/folder/x.json"], "--json"),
        (["nano", "--suite", "boxes", "--max-tokens", "600"], "lower --max-tokens to"),
        (["nano", "--suite", "gsm8k.jsonl"], "gsm8k.jsonl"),
        (["nano", "--suite", "boxes", "--steps", "3"], "no recipe whose keys"),
        (["nano", "--suite", "boxes", "--budgets", "1,x"], "--budgets"),
        (["http://127.0.0.1:9/v1", "--suite", "boxes"], "is the server running"),
        (["no-such-model", "--suite", "boxes"], "no-such-model"),
        (["nano", "--suite", "boxes", "--grader", "no_such"], "--grader"),
    ],
)
def test_what_cannot_work_is_said_before_any_work(arguments, expected, capsys) -> None:
    assert main(["eval", *arguments]) == 2
    error = capsys.readouterr().err
    assert expected in error and error.count("\n") == 1


def test_words_that_the_tokenizer_lacks_are_refused(tmp_path, capsys) -> None:
    table = tmp_path / "t.jsonl"
    table.write_text('{"question": "How many zebras?", "answer": "3"}\n')
    assert main(["eval", "nano", "--suite", str(table)]) == 2
    assert "does not know" in capsys.readouterr().err


def test_an_adapter_is_added_to_its_base(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("R1LAB_CACHE", str(tmp_path / "cache"))
    model, tokenizer, folder = load_base(ModelSettings(path="nano", dtype="float32"))
    adapted = add_lora(model, LoraSettings(rank=4), seed=1)
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if "lora_B" in name:
                weight.normal_(0, 0.05)
    adapter = tmp_path / "adapter"
    adapted.save_pretrained(adapter)
    config = json.loads((adapter / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = str(folder)
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    target = find_target(str(adapter))
    merged = model_folder(target, ModelSettings(path=target.path, dtype="float32"))
    assert merged == model_folder(target, ModelSettings(path=target.path, dtype="float32"))
    plain, _, _ = load_base(ModelSettings(path=merged, dtype="float32"))
    ids = torch.tensor([tokenizer("User: red at bottom")["input_ids"]])
    with torch.no_grad():
        expected, found = adapted(input_ids=ids).logits, plain(input_ids=ids).logits
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    adapted.unload()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """`vllm serve` of a small Llama on loopback; its URL."""
    model = tiny.LlamaForCausalLM(tiny.llama_config())
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = "User: {{ messages[0]['content'] }} Assistant: <think>"
    save_checkpoint_folder(model, tokenizer, tmp_path / "served")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # `vllm serve`, which vLLM's CPU build cannot start by that name (it looks for its metadata).
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server"]
    command += ["--model", tmp_path / "served"]
    command += ["--host", "127.0.0.1", "--port", str(port), "--enforce-eager"]
    command += ["--max-model-len", "256", "--served-model-name", "tiny"]
    environment = {**os.environ, "VLLM_CPU_KVCACHE_SPACE": "1", "OMP_NUM_THREADS": "1"}
    log = (tmp_path / "log").open("wb")
    process = subprocess.Popen([str(w) for w in command], env=environment, stdout=log, stderr=log)
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(300):
            assert process.poll() is None, (tmp_path / "log").read_text()[-3000:]
            try:
                urllib.request.urlopen(f"{url}/health", timeout=1)
                break
            except (urllib.error.URLError, OSError):
                time.sleep(1)
        yield url
    finally:
        process.terminate()
        process.wait(60)
        log.close()


@pytest.mark.long
def test_a_running_server_is_asked(server, tmp_path) -> None:
    options = {"suites": ("division",), "num": 6, "k": 2, "max_tokens": 16, "engine": None}
    for template in ("chat", "r1-zero"):
        result = scores(server, tmp_path / template, template=template, **options)
        assert result["overall"]["num_samples"] == 12
        lengths = [s["length"] for p in result["problems"] for s in p["samples"]]
        assert all(0 < length <= 16 for length in lengths)
        assert result["overall"]["truncated"]["value"] > 0
    with pytest.raises(R1labError, match="tiny"):
        scores(server, tmp_path / "other", served_model="other", **options)
    with pytest.raises(R1labError, match="no tokens to cut"):
        scores(server, tmp_path / "cut", budgets=(4,), **options)
