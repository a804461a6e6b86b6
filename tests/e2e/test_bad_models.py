"""Bases that are not whole, through the real command: exit code 2 and one line, before a step.

What the folder's files tell is refused without torch, also by a dry run; what only the built model
tells is refused when it is loaded.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file

from r1lab.cli.app import main

RECIPE = """\
name: bad
steps: 1
model: {path: base, dtype: float32}
problems: {sources: [{source: boxes}]}
sampling: {engine: transformers, questions_per_step: 2, group_size: 2, max_tokens: 4}
evaluation: {num_problems: 2, num_samples: 2}
tracking: {trackers: []}
"""


@pytest.fixture(scope="module")
def bases(tmp_path_factory) -> Path:
    """A V3-style base and a Llama with tied embeddings, of random weights."""
    from transformers import DeepseekV3ForCausalLM, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("bases")
    torch.manual_seed(0)
    tiny.save(DeepseekV3ForCausalLM(tiny.v3_config(num_hidden_layers=2)), folder / "v3")
    tiny.save(LlamaForCausalLM(tiny.llama_config(num_hidden_layers=2)), folder / "llama")
    return folder


@pytest.fixture
def base(bases: Path, tmp_path: Path, monkeypatch) -> Path:
    """A copy of the V3-style base in the current folder, beside a recipe that names it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    shutil.copytree(bases / "v3", tmp_path / "base")
    return tmp_path / "base"


def edit(file: Path, **changes: object) -> None:
    """Change values of a JSON file; `...` takes one out."""
    values = {**json.loads(file.read_text()), **changes}
    file.write_text(json.dumps({name: value for name, value in values.items() if value is not ...}))


def weights(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    """A change of the base's tensors."""

    def apply(folder: Path) -> None:
        held = load_file(folder / "model.safetensors")
        change(held)
        save_file(held, folder / "model.safetensors", metadata={"format": "pt"})

    return apply


def config(**changes: object) -> Callable[[Path], None]:
    return lambda folder: edit(folder / "config.json", **changes)


def tokens(**changes: object) -> Callable[[Path], None]:
    return lambda folder: edit(folder / "tokenizer_config.json", **changes)


def shard(folder: Path, weight_map: object = None) -> None:
    """The weights in two files with an index."""
    held = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(held)
    files = {name: f"model-0000{1 + (i % 2)}-of-00002.safetensors" for i, name in enumerate(names)}
    for file in set(files.values()):
        part = {name: held[name] for name in names if files[name] == file}
        save_file(part, folder / file, metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": files if weight_map is None else weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def lose_a_shard(folder: Path) -> None:
    shard(folder)
    (folder / "model-00002-of-00002.safetensors").unlink()


def misplace_a_tensor(folder: Path) -> None:
    shard(folder)
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    index["weight_map"]["model.norm.weight"] = "model-00001-of-00002.safetensors"
    index["weight_map"]["lm_head.weight"] = "model-00002-of-00002.safetensors"
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def turn_into_adapter(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "adapter_model.safetensors")
    named = {"base_model_name_or_path": "owner/base"}
    (folder / "adapter_config.json").write_text(json.dumps(named))


def move_into(folder: Path, *places: str) -> None:
    """The model in folders below its own, as runs and trainers leave it."""
    held = folder.rename(folder.with_name("held"))
    for place in places:
        shutil.copytree(held, folder / place)


def cut(name: str, num_bytes: int) -> Callable[[Path], None]:
    """Only the first bytes of a file are there; all but some for a negative number."""

    def apply(folder: Path) -> None:
        (folder / name).write_bytes((folder / name).read_bytes()[:num_bytes])

    return apply


def gone(*names: str) -> Callable[[Path], None]:
    return lambda folder: [(folder / name).unlink(missing_ok=True) for name in names]


EXPERT = "model.layers.1.mlp.experts.3.up_proj.weight"


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (shutil.rmtree, ["'base'", "neither a folder nor a shipped base"]),
        (gone("config.json"), ["no config.json", "model's own folder"]),
        (cut("config.json", 100), ["config.json is not JSON", "download it again"]),
        (cut("config.json", 0), ["config.json is not JSON"]),
        (lambda folder: (folder / "config.json").write_text("[1]"),
         ["config.json is not a JSON object"]),
        (config(model_type=...), ["has no model_type"]),
        (config(tie_word_embeddings=True), ["tied embeddings", "tie_word_embeddings=false"]),
        (config(topk_method=...), ["topk_method None", "'noaux_tc'"]),
        (config(topk_method="greedy"), ["topk_method 'greedy'", "'noaux_tc'"]),
        (config(vocab_size=100), ["tokenizer of 128 entries for a model of 100"]),
        (config(max_position_embeddings=16), ["max_model_len: 16", "prompt has"]),
        (gone("model.safetensors"), ["no weights", "model.safetensors"]),
        (cut("model.safetensors", -1000),
         ["model.safetensors is incomplete or corrupted", "download it again"]),
        (cut("model.safetensors", 100), ["model.safetensors is incomplete or corrupted"]),
        (cut("model.safetensors", 0), ["model.safetensors is incomplete or corrupted", "0 bytes"]),
        (lambda folder: (folder / "model.safetensors").write_text("version https://git-lfs" * 9),
         ["model.safetensors is incomplete or corrupted"]),
        (lose_a_shard, ["lacks 1 of its 2 files", "model-00002-of-00002.safetensors"]),
        (misplace_a_tensor, ["1 tensors are not in the file", "download it again"]),
        (lambda folder: shard(folder, weight_map=[1]), ["no weight_map"]),
        (weights(lambda held: held.pop(EXPERT)), [EXPERT, "is missing", "other 7 experts"]),
        (weights(lambda held: held.update({EXPERT: torch.ones(3, 3)})),
         ["experts' model.layers.1.mlp.experts.*.up_proj.weight differ in shape", "(3, 3)"]),
        (gone("tokenizer.json"), ["no tokenizer", "copy the one"]),
        (cut("tokenizer.json", 200), ["tokenizer.json does not load"]),
        (cut("tokenizer_config.json", 20), ["tokenizer_config.json is not JSON"]),
        (tokens(eos_token=...), ["without an end-of-sequence token", "set eos_token"]),
        (tokens(eos_token=None), ["without an end-of-sequence token"]),
        (tokens(pad_token="[NEW]"), ["tokenizer of 129 entries for a model of 128"]),
        (config(architectures=["BertForMaskedLM"], model_type="bert"), ["an encoder"]),
        (config(architectures=..., model_type="roberta"), ["an encoder"]),
        (config(architectures=["T5ForConditionalGeneration"], model_type="t5",
                is_encoder_decoder=True), ["sequence-to-sequence"]),
        (config(architectures=["LlavaForConditionalGeneration"], model_type="llava",
                text_config={"model_type": "llama"}), ["several parts", "text_config (llama)"]),
        (config(architectures=["DeepseekV3ForSequenceClassification"]), ["reward model"]),
        (config(architectures=["DeepseekV3Model"]), ["DeepseekV3Model", "ForCausalLM"]),
        (config(quantization_config={"quant_method": "awq"}), ["quantised (awq)"]),
        (config(quantization_config={"quant_method": "fp8"}), ["quantised (fp8)"]),
        (lambda folder: turn_into_adapter(folder), ["adapter of owner/base", "r1lab export"]),
        (lambda folder: move_into(folder, "model"), ["set model.path to base/model"]),
        (lambda folder: move_into(folder, "checkpoints/step-9/model", "checkpoints/step-10/model"),
         ["set model.path to base/checkpoints/step-10/model"]),
        (lambda folder: move_into(folder, "checkpoint-5", "checkpoint-40"),
         ["set model.path to base/checkpoint-40"]),
        (lambda folder: move_into(folder, "snapshots/abc"), ["base/snapshots/abc"]),
        (lambda folder: (shutil.rmtree(folder), folder.mkdir()), ["empty folder"]),
        (lambda folder: (shutil.rmtree(folder), folder.mkdir(),
                         (folder / "q.gguf").write_bytes(b"GGUF")), ["model.gguf_file (q.gguf)"]),
        (lambda folder: (shutil.rmtree(folder), folder.write_text("")), ["is a file"]),
    ],
)  # fmt: skip
def test_what_the_files_tell(base, capsys, damage, expected):
    damage(base)
    assert main(["train", "recipe.yaml", "--dry-run"]) == 2
    captured = capsys.readouterr()
    assert captured.out == "", captured.out
    # Messages name whole paths; the expected ones are as seen from the recipe's folder.
    (line,) = captured.err.replace(f"{Path.cwd()}/", "").splitlines()
    for part in ("r1lab: error: ", *expected):
        assert part in line, line
    assert line.startswith(("r1lab: error: model.path: ", "r1lab: error: sampling.")), line


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (weights(lambda held: held.pop("model.norm.weight")), ["1 weights are missing",
                                                               "model.norm.weight"]),
        (weights(lambda held: held.update({"model.norm.weight": torch.ones(5)})),
         ["model.norm.weight has shape (5,)", "(192,)"]),
        (weights(lambda held: held.update({"model.extra.weight": torch.ones(5)})),
         ["model.extra.weight", "not belong to a deepseek_v3 with 2 layers"]),
        (weights(lambda held: held["model.norm.weight"].fill_(torch.nan)),
         ["model.norm.weight contains NaN"]),
        (config(num_hidden_layers=1), ["deepseek_v3 with 1 layers", "model.layers.1."]),
        (config(num_hidden_layers=3), ["weights are missing", "model.layers.2."]),
        (config(hidden_size=96), ["weights have a wrong shape"]),
        (config(n_routed_experts=4), ["experts", "config.json requires (4, "]),
        (config(vocab_size=256), ["has shape (128, 192)", "(256, 192)"]),
        (config(hidden_size="wide"), ["config.json does not load", "hidden_size"]),
        (config(model_type="deepseek_v9"), ["config.json does not load", "deepseek_v9"]),
    ],
)  # fmt: skip
def test_what_the_built_model_tells(base, capsys, damage, expected):
    damage(base)
    assert main(["train", "recipe.yaml"]) == 2
    captured = capsys.readouterr()
    assert "Traceback" not in captured.out + captured.err, captured.err
    said = captured.err.replace(f"{Path.cwd()}/", "").splitlines()
    (line,) = [line for line in said if "r1lab: error: " in line]
    for part in ("r1lab: error: model.path: 'base': ", *expected):
        assert part in line, line


def test_a_head_that_differs_from_the_embedding_it_is_tied_to(base, bases, capsys):
    shutil.rmtree(base)
    shutil.copytree(bases / "llama", base)
    weights(lambda held: held.update({"lm_head.weight": torch.ones(128, 128)}))(base)
    assert main(["train", "recipe.yaml"]) == 2
    assert "set tie_word_embeddings=false" in capsys.readouterr().err


SHORT = "".join(f'{{"question": "{i} + 1 =", "answer": "{i + 1}"}}\n' for i in range(80))
LONG = '{"question": "' + "1 + " * 300 + '1 =", "answer": "301"}\n'


@pytest.mark.parametrize("share", [0.01, 0.99])
def test_a_long_row_is_found_however_far_down(base, capsys, share):
    many = "".join(f'{{"question": "{i} + 1 =", "answer": "{i + 1}"}}\n' for i in range(12_000))
    (base.parent / "rows.jsonl").write_text(many + LONG)
    sources = f"[{{source: rows.jsonl, options: {{test_fraction: {share}}}}}]"
    assert main(["train", "recipe.yaml", "--problems.sources", sources,
                 "--problems.check_gold", "0", "--dry-run"]) == 2  # fmt: skip
    said = capsys.readouterr().err.splitlines()[-1]
    for part in ("sampling.max_model_len", "rows/12001", "leave_out_long"):
        assert part in said, said


def test_rows_that_do_not_fit_are_left_out_and_counted(base, capsys):
    (base.parent / "rows.jsonl").write_text(SHORT + 2 * LONG)
    sources = "[{source: rows.jsonl, options: {test_fraction: 0.2}}]"
    asked = ["train", "recipe.yaml", "--problems.sources", sources, "--dry-run"]
    assert main(asked) == 2
    capsys.readouterr()
    assert main([*asked, "--problems.leave_out_long", "true"]) == 0
    said = capsys.readouterr().err
    assert "problems.leave_out_long: 2 of 82 rows" in said, said


def test_a_run_that_is_there_is_refused_by_a_dry_run_too(base, capsys):
    (base.parent / "run").mkdir()
    (base.parent / "run" / "metrics.jsonl").write_text('{"step": 1}\n')
    asked = ["train", "recipe.yaml", "--output", "run", "--dry-run"]
    assert main(asked) == 2 and "--resume" in capsys.readouterr().err
    assert main([*asked, "--resume"]) == 0


def test_a_gguf_file_is_looked_at_by_a_dry_run(base, capsys):
    (base / "q.gguf").write_bytes(b"none")
    for name, expected in (("q.gguf", "not a GGUF file"), ("r.gguf", "GGUF files there: q.gguf")):
        assert main(["train", "recipe.yaml", "--dry-run", "--model.gguf_file", name]) == 2
        assert expected in capsys.readouterr().err


def test_a_dense_base_has_no_routers_to_replay(base, bases, capsys):
    shutil.rmtree(base)
    shutil.copytree(bases / "llama", base)
    bias = ["--algorithm.router_bias_speed", "0.001"]
    assert main(["train", "recipe.yaml", "--dry-run", *bias]) == 2
    assert "algorithm.router_bias_speed" in capsys.readouterr().err


def test_a_tokenizer_without_padding_is_warned_of(base, capsys):
    edit(base / "tokenizer_config.json", pad_token=...)
    assert main(["train", "recipe.yaml", "--dry-run"]) == 0
    lines = capsys.readouterr().err.splitlines()
    assert any("warning: model.path" in line and "no pad_token" in line for line in lines), lines


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["--model.path", "nnao"], ["'nnao'", "'nano'"]),
        (["--model.path", "./no/such"], ["'./no/such'"]),
        (["--model.path", "nobody/nothing"], ["'nobody/nothing'", "local folder"]),
        (["--model.gguf_file", "x.gguf"], ["model.gguf_file", "'x.gguf'", "GGUF files there"]),
    ],
)
def test_a_base_that_is_not_there(base, capsys, overrides, expected):
    assert main(["train", "recipe.yaml", *overrides]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "r1lab: error: " in line]
    for part in expected:
        assert part in line, line


# --- in processes of their own: what a shell and a launcher see ---


def run(*words: object, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *map(str, words)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_a_shell_sees_one_line(base):
    done = run("-m", "r1lab", "train", "recipe.yaml", "--optimizer.learning_rate", "3")
    assert done.returncode == 2 and done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("r1lab: error: command line: optimizer.learning_rate: 3 must be at most")


def test_debug_shows_where(base):
    done = run("-m", "r1lab", "train", "recipe.yaml", "--steps", "x", R1LAB_DEBUG="1")
    assert done.returncode == 1 and "Traceback" in done.stderr


@pytest.mark.parametrize(
    "streams", [{"PYTHONIOENCODING": "ascii"}, {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0",
                                                "LC_ALL": "C"}],
)  # fmt: skip
def test_a_stream_that_cannot_print_a_response(base, streams):
    """What the terminal's encoding lacks is escaped; a half character is in no encoding."""
    (base.parent / "own.py").write_text(
        "from r1lab.types import Problem\n"
        "def load(split):\n"
        "    return [Problem(f'{split}/{i}', f'{i} \u2264 \u4e2d', 'é', 'math')"
        " for i in range(9)]\n",
        encoding="utf-8",
    )
    done = run("-m", "r1lab", "train", "recipe.yaml", "--dry-run", "--problems.sources",
               "[{source: 'own.py:load'}]", **streams)  # fmt: skip
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    assert "\\u4e2d" in done.stdout


@pytest.mark.parametrize("launcher", ["single.yaml", "two_processes_cpu.yaml"])
def test_a_launcher_shows_the_line_once(base, repository, launcher):
    recipes = repository / "recipes" / "accelerate"
    done = run(
        "-m", "accelerate.commands.launch", "--quiet", "--config_file", recipes / launcher,
        "-m", "r1lab", "train", "recipe.yaml", "--problems.sources", "[{source: missing.jsonl}]",
    )  # fmt: skip
    assert done.returncode != 0
    said = [line for line in done.stderr.splitlines() if "r1lab: error:" in line]
    assert len(said) == 1 and "missing.jsonl" in said[0], done.stderr
    assert 'r1lab/cli/app.py", line' not in done.stderr, "no traceback of ours"


def test_without_vllm(base):
    without = (
        "import sys; sys.modules['vllm'] = None; from r1lab.cli.app import main; sys.exit(main())"
    )
    done = run("-c", without, "train", "recipe.yaml", "--sampling.engine", "vllm")
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "sampling.engine" in line and "'vllm'" in line and "transformers" in line


@pytest.mark.long
@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ("0.00001", "does not hold vLLM's cache for one whole sequence"),
        pytest.param("9000", "lower it", marks=pytest.mark.long),
    ],
)
def test_a_cache_that_vllm_cannot_have(base, size, expected):
    done = run("-m", "r1lab", "train", "recipe.yaml", "--sampling.engine", "vllm",
               "--sampling.kv_cache_gib", size)  # fmt: skip
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if "r1lab: error:" in line]
    assert "sampling.kv_cache_gib" in line and expected in line, line
