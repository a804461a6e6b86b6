"""A short cold start: solved problems of a recipe, so that its base answers in the form asked.

    python scripts/cold_start.py RECIPE BASE FOLDER [--num 64] [--sources 0 1]

A base that never gives a readable right answer has nothing to be rewarded for. DeepSeek-R1
(arXiv 2501.12948, section 3) therefore begins with supervised training on a few thousand examples;
here some tens of question and gold answer, behind the recipe's template, each seen once, with
the loss on the answer and the end of sequence alone. Problems are of the train split, far along the
streams, so that a run asks others; held-out ones are never touched. The last line is one JSON
object: the loss on the first and on the last tenth of the examples, each taken before it is trained
on. FOLDER is an ordinary Hugging Face folder.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch

from r1lab.config.reading import load_recipe
from r1lab.config.recipe import TrainRecipe
from r1lab.model.load import load_base
from r1lab.model.optim import MasterAdamW
from r1lab.model.weights import save_checkpoint_folder
from r1lab.problems.registry import load_mixture
from r1lab.prompts import TEMPLATES
from r1lab.rollout.source import encode_prompt
from r1lab.types import Problem

FIRST = 10**6  # index of the first example in the recipe's streams
IGNORED = -100  # label of a token without loss


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipe", help="a shipped recipe or a path")
    parser.add_argument("base", help="in the place of the recipe's model.path")
    parser.add_argument("folder", type=Path, help="a new folder for the trained base")
    parser.add_argument("--num", type=int, default=64, help="examples (64)")
    parser.add_argument("--batch", type=int, default=4, help="examples of an update (4)")
    parser.add_argument("--rate", type=float, default=5e-5, help="learning rate, falling to 0")
    parser.add_argument("--sources", type=int, nargs="+", metavar="N",
                        help="only these of problems.sources, counted from 0")  # fmt: skip
    options = parser.parse_args()
    if options.folder.exists():
        raise SystemExit(f"{options.folder} exists already")
    began = time.monotonic()
    recipe = load_recipe(options.recipe, [("model.path", options.base)])
    model, tokenizer, _ = load_base(recipe.model)
    rows = [
        row_of(problem, recipe, tokenizer)
        for problem in examples(recipe, options.num, options.sources)
    ]
    losses = train(model, rows, batch=options.batch, rate=options.rate)
    save_checkpoint_folder(model, tokenizer, options.folder)
    tenth = max(1, len(losses) // 10)
    print(json.dumps({
        "examples": len(rows), "updates": len(losses),
        "loss_first": sum(losses[:tenth]) / tenth, "loss_last": sum(losses[-tenth:]) / tenth,
        "seconds": round(time.monotonic() - began),
    }))  # fmt: skip


def examples(recipe: TrainRecipe, num: int, sources: list[int] | None) -> list[Problem]:
    """`num` problems of the train split, of all the recipe's sources or of some."""
    settings = recipe.problems
    if sources is not None:
        chosen = tuple(settings.sources[number] for number in sources)
        settings = settings.model_copy(update={"sources": chosen})
    stream = load_mixture(settings, "train")
    return [stream[index] for index in range(FIRST, FIRST + num)]


def row_of(problem: Problem, recipe: TrainRecipe, tokenizer: Any) -> tuple[list[int], int]:
    """(token ids of prompt, gold answer and end of sequence; how many are the prompt's)."""
    template = TEMPLATES[recipe.template]
    prompt = list(encode_prompt(tokenizer, template.prompt(problem.question)))
    answer = tokenizer(problem.answer, add_special_tokens=False)["input_ids"]
    return [*prompt, *answer, tokenizer.eos_token_id], len(prompt)


def train(model: Any, rows: list[tuple[list[int], int]], *, batch: int, rate: float) -> list[float]:
    """AdamW, each row once, in place; the loss of every update, taken before it."""
    optimizer = MasterAdamW(list(model.parameters()), learning_rate=rate, betas=(0.9, 0.99))
    pad = torch.nn.utils.rnn.pad_sequence
    losses = []
    starts = range(0, len(rows), batch)
    for number, start in enumerate(starts):
        some = rows[start : start + batch]
        ids = pad([torch.tensor(row) for row, _ in some], batch_first=True)
        labels = pad(
            [torch.tensor([IGNORED] * given + row[given:]) for row, given in some],
            batch_first=True,
            padding_value=IGNORED,
        )
        optimizer.zero_grad()
        loss = model(input_ids=ids, labels=labels).loss
        loss.backward()
        optimizer.step(rate * min(1.0, (number + 1) / 3, 1 - number / len(starts)), 1.0)
        losses.append(float(loss.detach()))
    return losses


if __name__ == "__main__":
    main()
