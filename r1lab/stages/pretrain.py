"""Pre-training a small base, V3-style or dense, on a corpus of problems with answers.

Next-token cross-entropy over documents packed into rows; positions and attention start anew at each
document, so that a document looks in training as it will in a rollout. DeepSeek-V3's balancing
(`r1lab.model.balance`) runs after each update; its sequence-wise balance loss (weight 1e-4) and
multi-token prediction are left out.
"""

from __future__ import annotations

import json
import os
import pickle
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from r1lab.config.diff import differences, moved
from r1lab.config.recipe import PretrainRecipe
from r1lab.hashing import Inputs, changed_inputs, input_digests
from r1lab.model.balance import ExpertLoad, update_router_bias
from r1lab.model.config import base_config
from r1lab.model.optim import MasterAdamW, learning_rate_at
from r1lab.model.tokenizer import VOCAB_SIZE, build_tokenizer
from r1lab.types import RecipeError

_IGNORED = -100
_HARMLESS = ("name", "output", "checkpoint_every")  # for a resumed run
_POOL = 64  # rows packed at once: enough documents for a tight fit


@dataclass(frozen=True, slots=True)
class Rows:
    """Packed rows: token_ids, position_ids [B, T]; labels [B, T]; weights [B, T]."""

    token_ids: torch.Tensor
    position_ids: torch.Tensor
    labels: torch.Tensor
    weights: torch.Tensor
    next_document: int

    @property
    def num_tokens(self) -> int:
        """Tokens of documents, padding left out."""
        return int((self.labels != _IGNORED).sum())


class PackedCorpus:
    """Batches of packed rows from a corpus, restartable at any document."""

    def __init__(self, corpus: Any, tokenizer: Any, recipe: PretrainRecipe, start: int = 0) -> None:
        self.corpus, self.tokenizer, self.recipe, self.next_document = (
            corpus, tokenizer, recipe, start,
        )  # fmt: skip

    def __iter__(self) -> Iterator[Rows]:
        rows_per_batch = max(self.recipe.tokens_per_batch // self.recipe.row_length, 1)
        while True:
            rows, start = self._pack_pool(), 0
            while start + rows_per_batch <= len(rows):
                last = start + 2 * rows_per_batch > len(rows)
                yield self._tensors(rows[start : start + rows_per_batch], last)
                start += rows_per_batch

    def _pack_pool(self) -> list[list[tuple[list[int], int]]]:
        """First fit: each document goes into the first row with room for it.

        Rows are (token ids, prompt tokens) lists. What no row has room for is dropped: the next
        pool starts at the next document, so that a state is one number.
        """
        length = self.recipe.row_length
        num_rows = max(_POOL, self.recipe.tokens_per_batch // length)
        rows: list[list[tuple[list[int], int]]] = [[] for _ in range(num_rows)]
        room = [length] * num_rows
        misses = 0
        while misses < 8:
            document = self.corpus[self.next_document]
            self.next_document += 1
            prompt = self.tokenizer.encode(document.prompt) if document.prompt else []
            tokens = [*prompt, *self.tokenizer.encode(document.response)]
            tokens.append(self.tokenizer.eos_token_id)
            place = next((i for i, left in enumerate(room) if left >= len(tokens)), None)
            if place is None:
                misses += 1
                continue
            rows[place].append((tokens, len(prompt)))
            room[place] -= len(tokens)
        if not any(rows):
            raise RecipeError(
                f"row_length: {length} tokens are too few: none of the corpus's documents fits; "
                "raise it"
            )
        return rows

    def _tensors(self, rows: list[list[tuple[list[int], int]]], last_of_pool: bool) -> Rows:
        shape = (len(rows), self.recipe.row_length)
        tokens = torch.full(shape, self.tokenizer.pad_token_id)
        positions, labels = torch.zeros(shape, dtype=torch.long), torch.full(shape, _IGNORED)
        weights = torch.zeros(shape)
        for i, row in enumerate(rows):
            at = 0
            for ids, num_prompt in row:
                end = at + len(ids)
                tokens[i, at:end] = torch.tensor(ids)
                positions[i, at:end] = torch.arange(len(ids))
                # labels[t] is what position t predicts: the next token of the same document.
                labels[i, at : end - 1] = torch.tensor(ids[1:])
                weights[i, at : end - 1] = 1.0
                weights[i, at : at + max(num_prompt - 1, 0)] = self.recipe.prompt_loss_weight
                at = end
            # Padding restarts at position 0 too, each token a document of its own.
        return Rows(tokens, positions, labels, weights, self.next_document if last_of_pool else -1)


@dataclass
class PretrainProgress:
    """State of a pre-training run; with weights and optimiser, all it needs to resume."""

    step: int = 0
    tokens: int = 0
    next_document: int = 0
    seconds: float = 0.0
    inputs: Inputs = field(default_factory=dict)  # digests of what the recipe names


def next_token_loss(model: torch.nn.Module, rows: Rows) -> tuple[torch.Tensor, torch.Tensor]:
    """Weighted mean cross-entropy (nats), and the unweighted mean over response tokens."""
    logits = model(
        input_ids=rows.token_ids, position_ids=rows.position_ids, use_cache=False
    ).logits.float()
    losses = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), rows.labels.flatten(), ignore_index=_IGNORED, reduction="none"
    ).view_as(rows.weights)
    responses = rows.weights == 1.0
    return (losses * rows.weights).sum() / rows.weights.sum(), losses[responses].mean().detach()


def build_model(recipe: PretrainRecipe) -> torch.nn.Module:
    """A freshly initialised base of the recipe's size, its router bias in float32."""
    from transformers import AutoModelForCausalLM

    torch.manual_seed(recipe.seed)
    tokenizer = build_tokenizer()
    config = base_config(
        recipe.size, vocab_size=VOCAB_SIZE, eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id, bos_token_id=None,
    )  # fmt: skip
    config._experts_implementation = "eager"  # by far the fastest on the CPU for a small model
    model = AutoModelForCausalLM.from_config(config)
    for parameter in model.parameters():
        parameter.data = parameter.data.to(getattr(torch, recipe.dtype))
    return model


def save_state(
    folder: Path,
    model: Any,
    optimizer: MasterAdamW,
    progress: PretrainProgress,
    recipe: PretrainRecipe,
) -> None:
    """Write everything the run needs to resume, atomically."""
    state = {
        "recipe": recipe.model_dump(mode="json"),
        "inputs": progress.inputs,
        "optimizer": optimizer.state_dict(),
        "buffers": dict(model.named_buffers()),
        "progress": {k: v for k, v in vars(progress).items() if k != "inputs"},
    }
    temporary = folder / "state.pt.tmp"
    torch.save(state, temporary)
    os.replace(temporary, folder / "state.pt")


def load_state(
    folder: Path, model: Any, optimizer: MasterAdamW, recipe: PretrainRecipe
) -> PretrainProgress:
    """Load a saved state if present; otherwise return a fresh PretrainProgress.

    Raises RecipeError if the state belongs to another recipe or is corrupted.
    """
    path = folder / "state.pt"
    found = input_digests(recipe)
    if not path.exists():
        return PretrainProgress(inputs=found)
    try:
        state = torch.load(path, weights_only=True)
    except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
        raise RecipeError(
            f"output: {path} is corrupted ({' '.join(str(error).split())[:100]}); remove it to "
            "start anew, or name another folder with --output"
        ) from None
    now, inputs = recipe.model_dump(mode="json"), (state.get("inputs", {}), found)
    changed = [
        f"{key}: {text}"
        for key, text in differences(moved(state.get("recipe", {}), now, inputs), now)
        if key not in _HARMLESS and not key.startswith("card_")
    ] + [message for message in changed_inputs(*inputs) if not message.startswith("card_")]
    if changed and "recipe" in state:
        raise RecipeError(
            f"output: {folder} contains a pre-training of another recipe ({'; '.join(changed)}); "
            "change it back, or name another folder with --output"
        )
    optimizer.load_state_dict(state["optimizer"])
    for name, buffer in model.named_buffers():
        buffer.copy_(state["buffers"][name])
    return PretrainProgress(**state["progress"], inputs=found)


def forget_lines_after(path: Path, step: int) -> None:
    """Drop lines logged after the resumed state, so that no line is duplicated."""
    lines = path.read_text().splitlines() if path.exists() else []
    kept = [line for line in lines if json.loads(line)["step"] <= step]
    path.write_text("".join(f"{line}\n" for line in kept))


def pretrain(recipe: PretrainRecipe) -> Path:
    """Run (or resume) a pre-training; return the folder of the finished base."""
    from r1lab.problems.registry import resolve

    folder = Path(recipe.run_folder)
    folder.mkdir(parents=True, exist_ok=True)
    corpus = resolve(recipe.corpus.source, "source", key="corpus.source")(
        seed=recipe.seed, **recipe.corpus.options
    )
    model, tokenizer = build_model(recipe), build_tokenizer()
    optimizer = MasterAdamW(
        list(model.parameters()), learning_rate=recipe.learning_rate,
        betas=(recipe.beta1, recipe.beta2), weight_decay=recipe.weight_decay,
    )  # fmt: skip
    progress = load_state(folder, model, optimizer, recipe)
    forget_lines_after(folder / "metrics.jsonl", progress.step)
    _loop(recipe, folder, model, tokenizer, optimizer, corpus, progress)
    from r1lab.stages.model_card import finish_base

    return finish_base(recipe, folder, model, tokenizer, corpus, progress)


def _loop(
    recipe: PretrainRecipe, folder: Path, model: Any, tokenizer: Any, optimizer: MasterAdamW,
    corpus: Any, progress: PretrainProgress,
) -> None:  # fmt: skip
    from tqdm import tqdm

    batches = iter(PackedCorpus(corpus, tokenizer, recipe, progress.next_document))
    began, saved_at = time.monotonic() - progress.seconds, progress.step
    bar = tqdm(total=recipe.tokens, initial=progress.tokens, unit="tok", unit_scale=True)
    with ExpertLoad(model) as load, (folder / "metrics.jsonl").open("a") as log, bar:
        while progress.tokens < recipe.tokens:
            rows = next(batches)
            load.mask = rows.labels != _IGNORED
            optimizer.zero_grad()
            loss, response_loss = next_token_loss(model, rows)
            loss.backward()
            rate = learning_rate_at(
                progress.step, progress.tokens / recipe.tokens, peak=recipe.learning_rate,
                schedule="linear", warmup_steps=recipe.warmup_steps,
                final_fraction=recipe.final_fraction, flat_until=recipe.flat_until,
            )  # fmt: skip
            norm = optimizer.step(rate, recipe.max_grad_norm)
            counts = load.take()
            update_router_bias(model, counts, recipe.router_bias_speed)
            progress.step += 1
            progress.tokens += rows.num_tokens
            progress.seconds = time.monotonic() - began
            bar.update(rows.num_tokens)
            if progress.step % 20 == 0 or progress.tokens >= recipe.tokens:
                share = counts / counts.sum(-1, keepdim=True)
                line = {
                    "step": progress.step, "tokens": progress.tokens, "loss": loss.item(),
                    "response_loss": response_loss.item(), "learning_rate": rate, "grad_norm": norm,
                }  # fmt: skip
                if share.numel():
                    line |= {"load_min": share.min().item(), "load_max": share.max().item()}
                print(json.dumps(line), file=log, flush=True)
                bar.set_postfix_str(f"loss {response_loss.item():.3f}")
            # A state can be taken between pools only: within one, documents are half used.
            if rows.next_document >= 0:
                progress.next_document = rows.next_document
                if progress.step - saved_at >= recipe.checkpoint_every:
                    save_state(folder, model, optimizer, progress, recipe)
                    saved_at = progress.step
    save_state(folder, model, optimizer, progress, recipe)
