"""Low-rank adapters (Hu et al. 2021, arXiv 2106.09685) on attention, dense and expert weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from r1lab.config.recipe import LoraSettings
from r1lab.model.quantize import quantize_base
from r1lab.types import RecipeError

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

FUSED_EXPERTS = ("gate_up_proj", "down_proj")


def add_lora(model: PreTrainedModel, settings: LoraSettings, seed: int = 0) -> PeftModel:
    """Freeze `model` and add adapters; at the start its output equals the base's exactly.

    The adapters are float32 whatever the base's precision, and initialised only from `seed`
    (torch's random state is unchanged). The router is never adapted. There is no dropout: with it
    the trainer would compute another model than the sampler. Raises RecipeError if `settings`
    select no weights of the model.
    """
    from peft import LoraConfig, get_peft_model

    modules, parameters = _targets(model, settings)
    if settings.four_bit:
        quantize_base(model)
    if not modules and not parameters:
        raise RecipeError(
            "model.lora: attention, dense and experts select no weights of "
            f"{type(model).__name__}; set to true one that the model has"
        )
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        target_modules=modules,
        target_parameters=parameters or None,
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng(), _targets_taken_literally():
        torch.manual_seed(seed)
        return get_peft_model(model, config)


def merged_folder(
    adapter: Path, target: Path, *, dtype: str = "auto", base: str | None = None
) -> Path:
    """Write the base, merged with a saved adapter, as an ordinary folder `target`.

    `base` replaces the base that adapter_config.json names. Raises RecipeError.
    """
    import json

    from peft import PeftModel

    from r1lab.config.recipe import ModelSettings
    from r1lab.model.load import load_base
    from r1lab.model.weights import save_checkpoint_folder

    named = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))[
        "base_model_name_or_path"
    ]
    if not (base or named):
        raise RecipeError(f"{adapter}: its adapter_config.json names no base")
    model, tokenizer, _ = load_base(ModelSettings(path=base or named, dtype=dtype))
    with _targets_taken_literally():
        adapted = PeftModel.from_pretrained(model, adapter)
    partial = target.with_name(f"{target.name}.partial")
    save_checkpoint_folder(adapted, tokenizer, partial)
    partial.rename(target)
    return target


@contextmanager
def _targets_taken_literally() -> Iterator[None]:
    """Keep peft (0.21) from rewriting the targets of mixtures of experts.

    It treats every gate_proj, up_proj and down_proj as an expert in the old format, and adapts the
    fused experts with twice the rank instead: dense layers and shared experts would get no
    adapters, and experts would get unrequested ones.
    """
    from peft.utils import transformers_weight_conversion as peft_conversion

    name = "convert_peft_config_for_transformers"
    rewrite = getattr(peft_conversion, name)
    setattr(peft_conversion, name, lambda *args, **kwargs: None)
    try:
        yield
    finally:
        setattr(peft_conversion, name, rewrite)


def _targets(model: PreTrainedModel, settings: LoraSettings) -> tuple[list[str], list[str]]:
    """Return full names of the linear modules and the fused expert parameters to adapt."""
    modules, parameters = [], []
    for name, module in model.named_modules():
        parent = name.rpartition(".")[0]
        if isinstance(module, nn.Linear) and name != "lm_head":
            attention = "attn" in parent or "attention" in parent
            if settings.attention if attention else settings.dense:
                modules.append(name)
        elif settings.experts and name.endswith(".experts"):
            parameters += [
                f"{name}.{weight}" for weight in FUSED_EXPERTS if hasattr(module, weight)
            ]
    return modules, parameters
