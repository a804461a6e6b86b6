"""The work of scripts/bench_step.py: two bases, and responses as long as a workload asks for.

`nano` is the shipped base and answers the shipped questions. `v3_28m` is built from a configuration
(49,152 words, so that the head is most of it), knows nothing, and is asked random words. How long
responses get is set by what the end of a sequence weighs: its row of the head is moved along the
mean hidden state until the mean length of samples is what was asked for.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from bench_step_sides import BETAS, RATE, Work

from r1lab.config.reading import load_recipe
from r1lab.config.recipe import TrainRecipe
from r1lab.model.config import v3_config
from r1lab.model.load import load_base
from r1lab.model.weights import save_checkpoint_folder
from r1lab.problems.registry import load_mixture
from r1lab.prompts import TEMPLATES
from r1lab.rollout.source import encode_prompt
from r1lab.types import Problem

VOCABULARY = 49_152
COIN = f"{Path(__file__).with_name('bench_step_sides.py')}:coin"


@dataclass(frozen=True)
class Shape:
    """A workload: P questions, G samples of each, at most `cap` tokens, `share` of them on average.

    `share` None: as long as the base makes them.
    """

    base: str
    tail: str
    questions: int
    group_size: int
    cap: int
    share: float | None


SHAPES = [
    Shape("nano", "long_tailed", 32, 16, 128, None),
    Shape("nano", "tight", 32, 16, 64, 0.75),
    Shape("v3_28m", "long_tailed", 8, 8, 96, 0.2),
    Shape("v3_28m", "tight", 8, 8, 64, 0.75),
]


def prepare(shape: Shape, folder: Path, dtype: str) -> Work:
    """Write the base into `folder` and return the work that goes with it."""
    torch.manual_seed(0)
    model, tokenizer, problems = (_nano if shape.base == "nano" else _v3_28m)(shape)
    recipe = _recipe(shape, str(folder), dtype)
    if shape.share is not None:
        template = TEMPLATES[recipe.template]
        prompts = [encode_prompt(tokenizer, template.prompt(p.question)) for p in problems]
        _set_mean_length(model, prompts, shape.cap, shape.share * shape.cap)
    save_checkpoint_folder(model.to(getattr(torch, dtype)), tokenizer, folder)
    return Work(str(folder), recipe, tuple(problems), tokenizer.pad_token_id or 0)


def _recipe(shape: Shape, folder: str, dtype: str) -> TrainRecipe:
    nano = shape.base == "nano"
    return TrainRecipe.model_validate(
        {
            "name": "bench",
            "model": {"path": folder, "dtype": dtype},
            "template": "compact" if nano else "plain",
            "problems": {"sources": [{"source": "boxes"}]},
            "rewards": [{"reward": "problem"}, {"reward": "format", "weight": 0.2}]
            if nano
            else [{"reward": COIN}],
            "reward_workers": 2,
            "sampling": {
                "questions_per_step": shape.questions, "group_size": shape.group_size,
                "max_tokens": shape.cap, "max_model_len": shape.cap + 96,
            },
            "optimizer": {
                "learning_rate": RATE, "beta1": BETAS[0], "beta2": BETAS[1], "warmup_steps": 0,
            },
        }
    )  # fmt: skip


def _nano(shape: Shape) -> tuple[Any, Any, list[Problem]]:
    quickstart = load_recipe("quickstart")
    model, tokenizer, _ = load_base(quickstart.model.model_copy(update={"dtype": "float32"}))
    mixture = load_mixture(quickstart.problems, "train")
    seen: dict[str, Problem] = {}
    for index in range(10 * shape.questions):
        seen.setdefault(mixture[index].question, mixture[index])
    return model, tokenizer, list(seen.values())[: shape.questions]


def _v3_28m(shape: Shape) -> tuple[Any, Any, list[Problem]]:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import DeepseekV3ForCausalLM, PreTrainedTokenizerFast

    words = {"<pad>": 0, "<eos>": 1} | {f"w{i}": i for i in range(2, VOCABULARY)}
    backend = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", eos_token="<eos>", unk_token="<pad>"
    )
    config = v3_config(
        "nano", vocab_size=VOCABULARY, hidden_size=256, num_hidden_layers=4, intermediate_size=1024,
        moe_intermediate_size=160, pad_token_id=0, bos_token_id=None, eos_token_id=1,
    )  # fmt: skip
    model = DeepseekV3ForCausalLM._from_config(config, experts_implementation="eager")
    with torch.no_grad():  # a direction that all states share, for the end of a sequence to use
        model.get_input_embeddings().weight.add_(0.02 * torch.randn(config.hidden_size))
    draw = random.Random(0)
    problems = [
        Problem(str(i), " ".join(f"w{draw.randrange(2, VOCABULARY)}" for _ in range(n)), "", "")
        for i, n in enumerate(draw.randrange(12, 37) for _ in range(shape.questions))
    ]
    return model, tokenizer, problems


@torch.no_grad()
def _set_mean_length(model: Any, prompts: list[tuple[int, ...]], cap: int, mean: float) -> None:
    """Move the head's row of the end of a sequence until samples are `mean` tokens long."""
    rows = max(map(len, prompts))
    ids = torch.tensor([[0] * (rows - len(p)) + list(p) for p in prompts])
    ids = ids.repeat_interleave(max(1, 128 // len(prompts)), 0)
    mask = (ids != 0).long()

    def sample() -> torch.Tensor:
        torch.manual_seed(1)
        return model.generate(
            input_ids=ids, attention_mask=mask, do_sample=True, max_new_tokens=cap, top_k=0,
            eos_token_id=1, pad_token_id=0,
        )[:, rows:]  # fmt: skip

    def mean_length() -> float:
        ended = (sample() == 1).long()
        lengths = torch.where(ended.any(-1), ended.argmax(-1) + 1, cap)
        return float(lengths.float().mean())

    hidden = model.get_decoder()(input_ids=sample()).last_hidden_state.flatten(0, 1).mean(0)
    row = model.get_output_embeddings().weight[1]
    first, direction = row.clone(), hidden / hidden.square().sum()
    low, high = -12.0, 12.0
    for _ in range(7):
        middle = (low + high) / 2
        row.copy_(first + middle * direction)
        low, high = (middle, high) if mean_length() > mean else (low, middle)
