"""QLoRA: four-bit bases under adapters. Needs bitsandbytes (the extra `qlora`)."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import tiny
import torch
from transformers import LlamaForCausalLM

from r1lab.config.recipe import LoraSettings, ModelSettings
from r1lab.model.adapters import add_lora
from r1lab.model.load import load_base
from r1lab.model.weights import checkpoint_weights, save_checkpoint_folder
from r1lab.types import RecipeError

IDS = torch.arange(8, 40).view(2, 16)
FOUR_BIT = LoraSettings(rank=4, four_bit=True)


def build(kind: str) -> Any:
    torch.manual_seed(0)
    if kind == "llama":
        return LlamaForCausalLM(tiny.llama_config(initializer_range=0.1)).eval()
    return tiny.trained_v3(10).eval()


def disturb(model: Any) -> None:
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_B." in name:
                parameter.normal_(std=0.02)


@pytest.mark.parametrize("kind", ["v3", "llama"])
def test_the_sampler_gets_what_the_trainer_computes_with(kind: str, tmp_path: Any) -> None:
    pytest.importorskip("bitsandbytes")
    plain = build(kind)
    names = {name: tensor.shape for name, tensor in checkpoint_weights(plain)}
    with torch.no_grad():
        original = plain(input_ids=IDS).logits
    model = add_lora(plain, FOUR_BIT).eval()
    disturb(model)
    packed = [p for p in model.parameters() if p.dtype == torch.uint8]
    assert packed and not any(p.requires_grad for p in packed)
    sent = dict(checkpoint_weights(model))
    assert {name: tensor.shape for name, tensor in sent.items()} == names
    save_checkpoint_folder(model, tiny.tokenizer(), tmp_path)
    again, _, _ = load_base(ModelSettings(path=str(tmp_path), dtype="float32"))
    with torch.no_grad():
        ours, theirs = model(input_ids=IDS).logits, again(input_ids=IDS).logits
    torch.testing.assert_close(ours, theirs, atol=2e-4, rtol=1e-3)
    assert (ours - original).abs().max() > 0.01


def test_adapters_learn_and_the_base_stays() -> None:
    pytest.importorskip("bitsandbytes")
    model = add_lora(build("v3"), FOUR_BIT)
    packed = [p.clone() for p in model.parameters() if p.dtype == torch.uint8]
    rows = tiny.sequences()

    def loss() -> float:
        return float(model(input_ids=rows, labels=rows).loss.detach())

    before = loss()
    tiny.train(model, rows, 40, rate=5e-3)
    assert loss() < before - 0.1
    now = [p for p in model.parameters() if p.dtype == torch.uint8]
    assert all(torch.equal(a, b) for a, b in zip(packed, now, strict=True))


def test_without_bitsandbytes_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "meta_path", [])  # nothing can be found any more
    monkeypatch.delitem(sys.modules, "bitsandbytes", raising=False)
    from r1lab.model.quantize import quantize_base

    with pytest.raises(RecipeError, match=r"r1lab\[qlora\]"):
        quantize_base(torch.nn.Linear(2, 2))
