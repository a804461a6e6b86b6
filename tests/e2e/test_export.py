"""`r1lab export`: the folder that plain transformers loads, its prompt, its card and its lineage.

vLLM loads one in tests/e2e/test_serve.py.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import tiny
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from r1lab.cli.app import main
from r1lab.config.recipe import LoraSettings, ModelSettings
from r1lab.evaluate.standalone import EvalOptions, prepare_target
from r1lab.evaluate.target import find_target
from r1lab.hashing import artefact_sha256
from r1lab.lineage import lineage_tree, read_lineage
from r1lab.model.adapters import add_lora
from r1lab.model.load import load_base, resolve_folder
from r1lab.prompts import TEMPLATES
from r1lab.run_folder import RunFolder
from r1lab.stages.export import chat_template_of, exported

QUESTION = "red at bottom ; blue on it ; what is on top ?"
PROMPT = TEMPLATES["compact"].prompt(QUESTION)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("R1LAB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run folder whose trained model is the base itself, with an evaluation."""
    folder = RunFolder.create(tmp_path / "mine")
    shutil.copytree(resolve_folder("nano"), folder.path / "checkpoints/step-3/model")
    folder.recipe_path.write_text(
        "# r1lab 9\nname: mine\ntemplate: compact\nmodel: {path: nano}\n"
        "problems: {sources: [{source: boxes}]}\nevaluation: {temperature: 0.6, top_p: 0.95}\n"
    )
    about = {"value": 0.5, "low": 0.4, "high": 0.6}
    overall = {"num_problems": 240, "pass_at_1": about, "cons_at_k": None, "format": about,
               "length": {"value": 31.04, "low": 30.0, "high": 32.0}}  # fmt: skip
    folder.write_eval(3, {"suite": None, "k": 4, "temperature": 0.6, "overall": overall})
    return folder.path


@pytest.mark.parametrize("begins", [False, True])
@pytest.mark.parametrize("name", TEMPLATES)
def test_the_chat_template_writes_the_prompt_of_training(name: str, begins: bool) -> None:
    tokenizer, template = tiny.tokenizer(), TEMPLATES[name]
    if begins:  # as Llama's tokenizers do
        from tokenizers.processors import TemplateProcessing

        tokenizer.add_special_tokens({"bos_token": "<s>"})
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", tokenizer.bos_token_id)]
        )
    tokenizer.chat_template = chat_template_of(template, tokenizer)
    asked = 'w1 {"x"} \\frac{1}{2}\n{{ w2 }} it\'s {question}'
    talk = [{"role": "user", "content": asked}]

    def written(messages: list[dict[str, str]], begin: bool = True) -> str:
        found = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=begin)
        return str(found)

    expected = template.text.replace("{question}", asked)
    first_token = "<s>" if begins else ""
    assert written(talk) == first_token + expected + template.prefix
    earlier = [{"role": "user", "content": "w9"}, {"role": "assistant", "content": "w8"}]
    assert written(earlier + talk) == written(talk)
    answered = [*talk, {"role": "assistant", "content": "<think> w3"}]
    assert written(answered, False) == first_token + expected + "<think> w3<eos>"
    ids = tokenizer.apply_chat_template(talk, add_generation_prompt=True)["input_ids"]
    assert ids == tokenizer(template.prompt(asked))["input_ids"]


def test_an_adapter_is_merged_and_plain_transformers_computes_the_same(tmp_path: Path) -> None:
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
    out = tmp_path / "out"
    assert main(["export", str(adapter), "--out", str(out), "--dtype", "float32"]) == 0

    plain, words = AutoModelForCausalLM.from_pretrained(out), AutoTokenizer.from_pretrained(out)
    assert plain.dtype == torch.float32
    ids = words.apply_chat_template(
        [{"role": "user", "content": QUESTION}], add_generation_prompt=True, return_tensors="pt"
    )["input_ids"]
    assert ids.tolist() == [tokenizer(PROMPT)["input_ids"]]
    with torch.no_grad():
        expected = adapted(input_ids=ids).logits.log_softmax(-1)
        found = plain(input_ids=ids).logits.log_softmax(-1)
        base = load_base(ModelSettings(path="nano", dtype="float32"))[0](input_ids=ids).logits
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    assert (base.log_softmax(-1) - expected).abs().max() > 0.1
    tree = lineage_tree(out)
    (parent,) = tree.parents
    assert (parent.record.stage, parent.state) == ("adapter", "ok")
    assert parent.parents[0].record.name == "nano"


def test_a_run_with_its_card_and_lineage(run: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "out"
    assert main(["export", str(run), "--out", str(out)]) == 0
    source = run / "checkpoints/step-3/model"
    weights = "model.safetensors"
    assert (out / weights).read_bytes() == (source / weights).read_bytes()
    generation = json.loads((out / "generation_config.json").read_text())
    found = {key: generation[key] for key in ("do_sample", "temperature", "top_p", "eos_token_id")}
    assert found == {"do_sample": True, "temperature": 0.6, "top_p": 0.95, "eos_token_id": 1}
    record = read_lineage(out)
    assert record is not None and record.stage == "export" and record.template == "compact"
    assert record.recipe is not None and record.recipe["model"] == {"path": "nano"}
    (parent,) = record.parents
    assert parent.sha256 == artefact_sha256(source)
    assert record.figures[0].value == 0.5
    card = (out / "README.md").read_text()
    row = "| held-out | 240 x 4 | 0.6 | 0.500 [0.400, 0.600] |  | 0.500 [0.400, 0.600] | 31.0"
    assert row in card
    assert "User: {question} Assistant: <think>" in card
    assert "└── mine step-3 (reinforcement learning)  held-out 0.500 [0.400, 0.600]" in card
    assert "    └── nano (pre-training)" in card
    # A run whose folder goes on without it: the export is whole.
    shutil.rmtree(run)
    capsys.readouterr()
    assert main(["lineage", str(out)]) == 0
    assert "gone" in capsys.readouterr().out
    # Asked again, it is asked as in training, although it has a chat template.
    lines = prepare_target(find_target(str(out)), EvalOptions(suites=("boxes",), num=2))
    assert "template compact" in lines[0]
    assert main(["export", str(out), "--out", str(out)]) == 2
    assert "is not empty" in capsys.readouterr().err


def test_the_exported_form_is_made_once(run: Path, cache: Path) -> None:
    target = find_target(str(run))
    place = exported(target)
    assert place.parent == cache
    written = (place / "README.md").stat().st_mtime_ns
    assert exported(target) == place
    assert (place / "README.md").stat().st_mtime_ns == written
    assert exported(find_target(str(place))) == place  # it has its chat template
    assert AutoTokenizer.from_pretrained(place).chat_template


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["http://127.0.0.1:9/v1", "--out", "x"], "is a server"),
        (["nano", "--out", "x", "--template", "chat"], "no chat template"),
        (["nano", "--out", "x", "--template", "compct"], "did you mean 'compact'"),
        (["no-such-model", "--out", "x"], "no-such-model"),
    ],
)
def test_what_cannot_be_exported_is_said(
    arguments: list[str], said: str, tmp_path, monkeypatch, capsys
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["export", *arguments]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1
    assert not (tmp_path / "x").exists()
