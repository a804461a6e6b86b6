"""How well sampler and trainer agree before, during and after a weight sync.

    python scripts/measure_sync.py [--base nano] [--case NAME ...] [--dtype auto]

For the shipped base on both of vLLM's attention paths (on the MLA kernel as its widened equal, see
r1lab.model.widen) and for a Llama-style model with tied embeddings, trained here for half a minute;
each with full weights and with LoRA:

    kl_floor   both hold the same weights: rounding is all that is left
    kl_stale   the trainer has taken real updates and the sampler has not been told
    kl_after   after one sync

KL is the k3 estimate over the sampler's own tokens as a run's guard takes it, each token's share
capped (r1lab.rollout.agreement says why); `plain_*` are the same without the cap. Temperature 1,
prompts of at least 24 tokens. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import itertools
import json
import logging
import math
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from r1lab.config.recipe import LoraSettings, ModelSettings
from r1lab.data.corpus import Corpus, Dials
from r1lab.model.adapters import add_lora
from r1lab.model.load import load_base
from r1lab.model.optim import MasterAdamW
from r1lab.model.weights import checkpoint_weights, save_checkpoint_folder
from r1lab.model.widen import widen
from r1lab.precision import CHOICES, settled
from r1lab.prompts import TEMPLATES
from r1lab.rollout.agreement import both_logprobs, k3_kl
from r1lab.rollout.build import build_sampler
from r1lab.rollout.sampler import Sampler
from r1lab.rollout.source import encode_prompt
from r1lab.types import SamplingSettings

MIN_PROMPT_TOKENS, NUM_PROMPTS, NUM_SAMPLES, MAX_TOKENS = 24, 64, 16, 48
UPDATES, ROWS = 12, 32
# Complete solutions only: they draw the base away from its guesses, as reinforcement does.
SOLUTIONS = Dials(drills=0.0, guess=0.0, partial=0.0, selfcheck=0.0, slip_rate=0.0, broken=0.0)
IGNORED = -100  # label of a token without loss


def main() -> None:
    """Measure the cases asked for, print a line for each, and all of them as JSON at the end."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base", default="nano", help="V3-style base (model.path); default: nano")
    parser.add_argument("--case", nargs="*", help="only these cases (default: all)")
    parser.add_argument("--dtype", type=settled, choices=CHOICES, default="auto",
                        help="of trainer and sampler (auto: as this machine is fast)")  # fmt: skip
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as scratch:
        folders: dict[str, Path] = {}
        cases = {}
        for kind, way in itertools.product(MODELS, ("full", "lora")):
            name = f"{kind}_{way}"
            if arguments.case and name not in arguments.case:
                continue
            if kind not in folders:
                folders[kind] = MODELS[kind](arguments.base, Path(scratch) / kind)
            cases[name] = measure(
                folders[kind],
                LoraSettings(rank=16) if way == "lora" else None,
                "mla" if kind == "base_mla_kernel" else "auto",
                arguments.dtype,
            )
            print(f"{name:28}", *(f"{key} {value:.3g}  " for key, value in cases[name].items()))
    print(json.dumps({"cases": cases, "dtype": arguments.dtype}))


def measure(
    folder: Path, lora: LoraSettings | None, attention: str, dtype: str
) -> dict[str, float]:
    """The three estimates of one case, the tokens behind the first, the seconds of a sync."""
    settings = ModelSettings(path=str(folder), lora=lora, dtype=dtype)
    model, tokenizer, folder = load_base(settings)
    if lora is not None:
        model = add_lora(model, lora, seed=0)
    sampler = build_sampler("vllm", folder, tokenizer, dtype=dtype, attention=attention)
    try:
        prompts = long_prompts(tokenizer)
        sampler.sync(checkpoint_weights(model), 0)
        floor = disagreement(model, sampler, prompts, seed=1)
        train(model, tokenizer, UPDATES, 1e-3 if lora else 3e-4)
        stale = disagreement(model, sampler, prompts, seed=2)
        began = time.perf_counter()
        sampler.sync(checkpoint_weights(model), 1)
        seconds = time.perf_counter() - began
        after = disagreement(model, sampler, prompts, seed=3)
    finally:
        sampler.close()
    phases = {"floor": floor, "stale": stale, "after": after}
    return {
        **{f"kl_{phase}": k3_kl(*logprobs) for phase, logprobs in phases.items()},
        **{f"plain_{phase}": k3_kl(*logprobs, cap=math.inf) for phase, logprobs in phases.items()},
        "num_tokens": len(floor[0]),
        "sync_seconds": round(seconds, 4),
    }


def disagreement(
    model: Any, sampler: Sampler, prompts: list[tuple[int, ...]], *, seed: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Sampler's and trainer's log-probs of the sampler's own tokens."""
    settings = SamplingSettings(
        num_samples=NUM_SAMPLES, max_tokens=MAX_TOKENS, logprobs=True, seed=seed
    )
    groups = sampler.generate(prompts, settings, template=TEMPLATES["compact"])
    return both_logprobs(model.eval(), prompts, groups)


def long_prompts(tokenizer: Any) -> list[tuple[int, ...]]:
    """The first prompts of the problem streams that have at least MIN_PROMPT_TOKENS tokens."""
    encoded = (encode_prompt(tokenizer, document.prompt) for document in Corpus(SOLUTIONS, seed=7))
    fitting = (prompt for prompt in encoded if len(prompt) >= MIN_PROMPT_TOKENS)
    return list(itertools.islice(fitting, NUM_PROMPTS))


def train(
    model: Any, tokenizer: Any, steps: int, rate: float, seed: int = 0, rows: int = ROWS
) -> float:
    """AdamW on solutions of the corpus, `rows` a step, in place; the last loss."""
    optimizer = MasterAdamW(list(model.parameters()), learning_rate=rate, betas=(0.9, 0.95))
    batches = solution_batches(tokenizer, seed, rows)
    loss = torch.zeros(())
    for step in range(steps):
        ids, labels = next(batches)
        optimizer.zero_grad()
        loss = model(input_ids=ids, labels=labels).loss
        loss.backward()
        optimizer.step(rate * min(1.0, (step + 1) / 20, 2 * (steps - step) / steps), 1.0)
    return float(loss.detach())


def solution_batches(
    tokenizer: Any, seed: int, count: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Token ids and labels [count, T] of prompts with their solutions, padded on the right."""
    documents = iter(Corpus(SOLUTIONS, seed))
    while True:
        rows = [
            torch.tensor(
                tokenizer(f"{d.prompt} {d.response}")["input_ids"] + [tokenizer.eos_token_id]
            )
            for d in itertools.islice(documents, count)
        ]
        pad = torch.nn.utils.rnn.pad_sequence
        yield (
            pad(rows, batch_first=True, padding_value=tokenizer.pad_token_id),
            pad(rows, batch_first=True, padding_value=IGNORED),
        )


def shipped(base: str, folder: Path) -> Path:
    """The base itself: vLLM runs it on decompressed heads where its shape has no kernel."""
    del folder
    return load_base(ModelSettings(path=base))[2]


def widened(base: str, folder: Path) -> Path:
    """The base in the one shape that vLLM's MLA kernel takes."""
    model, tokenizer, _ = load_base(ModelSettings(path=base, dtype="float32"))
    save_checkpoint_folder(widen(model), tokenizer, folder)
    return folder


def tied_llama(base: str, folder: Path) -> Path:
    """A small Llama with tied embeddings and the base's tokenizer, trained until it is peaked."""
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = load_base(ModelSettings(path=base))[1]
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=128, intermediate_size=384, num_hidden_layers=3,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=512,
        tie_word_embeddings=True, eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id, bos_token_id=None,
    )  # fmt: skip
    torch.manual_seed(0)
    model = LlamaForCausalLM(config)
    print(f"trained a tied Llama to a loss of {train(model, tokenizer, 250, 3e-3, seed=1):.2f}")
    save_checkpoint_folder(model, tokenizer, folder)
    return folder


MODELS: dict[str, Callable[[str, Path], Path]] = {
    "base_decompressed": shipped,
    "base_mla_kernel": widened,
    "tied_llama": tied_llama,
}


if __name__ == "__main__":
    main()
