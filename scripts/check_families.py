"""Does vLLM compute what is trained, for every family of causal LMs, before and after a sync?

    python scripts/check_families.py [--family NAME ...] [--steps N] [--dtype float32]

A small model of each family (scripts/families.py) is trained on the project's corpus until it is
peaked, as on fresh weights every output is near uniform and hides faults. Then, with one vLLM
engine for full weights and LoRA:

    kl_floor   both hold the same weights: rounding is all that is left. With LoRA, the same small
               random adapters on both sides: zero ones would round nothing
    kl_stale   the trainer has taken real updates and the sampler has not been told
    kl_after   after one sync

KL is the k3 estimate in nats per token over the sampler's own tokens (r1lab.rollout.agreement), at
temperature 1 behind prompts of at least 24 tokens. `entropy` is the sampler's, in nats per token;
a uniform one has log(vocabulary) = 5.0. The last line is one JSON object: `families` with the
figures of each (of full weights; LoRA's beside them as `lora`), the families that `failed`, and
those `skipped`, each with the reason: they are not sampled, and tests/unit/test_head.py compares
their log-probs in training with their own forward. A
family fails where kl_after is above 2 * kl_floor or kl_stale below 10 * kl_floor, in either way of
training; then the exit status is 1.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from families import FAMILIES, FORWARD_ONLY, random_model
from measure_sync import long_prompts, train

from r1lab.config.recipe import LoraSettings, ModelSettings
from r1lab.grpo.mismatch_baseline import perturbed_adapters
from r1lab.model.adapters import add_lora
from r1lab.model.load import load_base
from r1lab.model.weights import checkpoint_weights, save_checkpoint_folder
from r1lab.precision import CHOICES, settled
from r1lab.prompts import TEMPLATES
from r1lab.rollout.agreement import both_logprobs, k3_kl
from r1lab.rollout.build import build_sampler
from r1lab.rollout.sampler import Sampler
from r1lab.types import SamplingSettings

NUM_PROMPTS, NUM_SAMPLES, MAX_TOKENS = 32, 6, 40
ROWS, PEAKING_RATE = 12, 3e-3
UPDATES, RATES = 12, {"full": 3e-4, "lora": 1e-3}
MOST_AFTER, LEAST_STALE = 2.0, 10.0  # times the floor

Figures = dict[str, float]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--family", nargs="*", choices=list(FAMILIES), metavar="NAME",
                        help=f"only these of {', '.join(FAMILIES)}")  # fmt: skip
    parser.add_argument("--steps", type=int, default=300, help="of training until peaked (300)")
    parser.add_argument("--dtype", type=settled, choices=CHOICES, default="float32",
                        help="of trainer and sampler; rounding is the floor (float32)")  # fmt: skip
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)
    families: dict[str, Any] = {}
    failed: dict[str, str] = {}
    for family in arguments.family or FAMILIES:
        began = time.monotonic()
        with tempfile.TemporaryDirectory() as scratch:
            try:
                found = check(family, Path(scratch) / family, arguments.steps, arguments.dtype)
            except Exception as error:  # of whatever class: the other families are still checked
                failed[family] = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
                print(f"{family:17} FAILED {failed[family]}", flush=True)
                continue
        for way, figures in found.items():
            shown = "  ".join(f"{name} {value:.3g}" for name, value in figures.items())
            print(f"{family:17} {way:5} {shown}", flush=True)
            if fault := fault_of(figures):
                failed[family] = f"{way}: {fault}"
        print(f"{family:17} {time.monotonic() - began:.0f} s", flush=True)
        families[family] = {**found["full"], "lora": found["lora"]}
    print(json.dumps({
        "families": families, "dtype": arguments.dtype, "failed": failed,
        "skipped": skipped(arguments.family),
    }))  # fmt: skip
    sys.exit(bool(failed))


def skipped(chosen: Sequence[str] | None) -> dict[str, str]:
    """Why each family that was not sampled was not."""
    reasons = dict.fromkeys(FORWARD_ONLY, "compared with its own forward alone, without vLLM")
    if chosen:
        reasons |= {name: "not chosen with --family" for name in FAMILIES if name not in chosen}
    return reasons


def fault_of(figures: Figures) -> str | None:
    """What is wrong with a family's figures; None where they are as they should be."""
    floor = figures["kl_floor"]
    if not figures["kl_after"] <= MOST_AFTER * floor:
        return f"kl_after is {figures['kl_after'] / floor:.3g} times the floor"
    if not figures["kl_stale"] >= LEAST_STALE * floor:
        return f"kl_stale is {figures['kl_stale'] / floor:.3g} times the floor"
    return None


def check(family: str, folder: Path, steps: int, dtype: str) -> dict[str, Figures]:
    """The figures of one family by way of training; its peaked model is left in `folder`."""
    tokenizer = load_base(ModelSettings(path="nano"))[1]
    model = random_model(family, tokenizer)
    loss = train(model, tokenizer, steps, PEAKING_RATE, seed=1, rows=ROWS)
    save_checkpoint_folder(model.to(getattr(torch, dtype)), tokenizer, folder)
    count = sum(parameter.numel() for parameter in model.parameters())
    print(f"{family:17} {count:,} parameters, trained to a loss of {loss:.2f}", flush=True)
    settings = ModelSettings(path=str(folder), dtype=dtype)
    sampler = build_sampler("vllm", folder, tokenizer, dtype=dtype, kv_cache_gib=0.25)
    try:
        return {way: measure(settings, sampler, way) for way in ("full", "lora")}
    finally:
        sampler.close()


def measure(settings: ModelSettings, sampler: Sampler, way: str) -> Figures:
    """The three estimates, and the sampler's entropy, of one way of training."""
    model, tokenizer, _ = load_base(settings)
    if way == "lora":
        model = add_lora(model, LoraSettings(rank=16), seed=0)
    prompts = long_prompts(tokenizer)[:NUM_PROMPTS]
    with perturbed_adapters(model, seed=0):  # full weights have none
        sampler.sync(checkpoint_weights(model), 0)
        floor, entropy = agreement(model, sampler, prompts, seed=1)
    sampler.sync(checkpoint_weights(model), 0)
    train(model, tokenizer, UPDATES, RATES[way], rows=ROWS)
    stale, _ = agreement(model, sampler, prompts, seed=2)
    sampler.sync(checkpoint_weights(model), 1)
    after, _ = agreement(model, sampler, prompts, seed=3)
    return {"kl_floor": floor, "kl_stale": stale, "kl_after": after, "entropy": entropy}


def agreement(
    model: Any, sampler: Sampler, prompts: list[tuple[int, ...]], *, seed: int
) -> tuple[float, float]:
    """The k3 estimate of KL(sampler, trainer), and the sampler's entropy, in nats per token."""
    settings = SamplingSettings(
        num_samples=NUM_SAMPLES, max_tokens=MAX_TOKENS, logprobs=True, seed=seed
    )
    groups = sampler.generate(prompts, settings, template=TEMPLATES["compact"])
    sampled, trained = both_logprobs(model.eval(), prompts, groups)
    kl = k3_kl(sampled, trained)
    assert math.isfinite(kl)
    return kl, -float(sampled.mean())


if __name__ == "__main__":
    main()
