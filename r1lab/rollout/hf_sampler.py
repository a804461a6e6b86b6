"""The sampler for machines without vLLM: plain transformers with a key-value cache.

Selected by name (`sampling.engine: transformers`), never silently. It supports any causal LM of
transformers whose cache consists only of keys and values. Prompts are padded on the left and
prefilled once per group, and finished rows leave the batch.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from r1lab.model.load import end_tokens, load_config, load_model
from r1lab.model.replay import RouterReplay
from r1lab.precision import settled
from r1lab.prompts import Template
from r1lab.rollout.sampler import as_completion
from r1lab.types import Completion, RecipeError, SamplingSettings

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class TransformersSampler:
    """A `Sampler` with its own copy of the model, and at most `max_num_seqs` rows at a time."""

    def __init__(
        self,
        model_folder: str | Path,
        tokenizer: PreTrainedTokenizerBase,
        *,
        dtype: str = "auto",
        max_model_len: int | None = None,
        max_num_seqs: int = 512,
        seed: int = 0,
    ) -> None:
        folder = Path(model_folder)
        self._config = load_config(folder, str(folder))
        self._dtype = getattr(torch, settled(dtype))
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._model = load_model(folder, self._config, self._dtype).to(self._device).eval()
        self.version = 0
        kind = self._config.model_type
        if self._model._is_stateful:
            # Recurrent caches can neither be repeated for a group nor drop finished rows.
            raise RecipeError(
                f"sampling.engine: 'transformers' cannot sample a {kind}, whose layers keep a "
                "recurrent state; use vllm"
            )
        allowed = getattr(self._config, "max_position_embeddings", max_model_len)
        if allowed is None:
            raise RecipeError(
                f"sampling.max_model_len: set it, as a {kind} has no max_position_embeddings in "
                "its config.json"
            )
        self.max_model_len = min(max_model_len or allowed, allowed)
        self._max_num_seqs = max_num_seqs
        self._tokenizer = tokenizer
        self._end_tokens = end_tokens(tokenizer, folder)
        self._pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
        self._generator = torch.Generator(self._device).manual_seed(seed)

    def generate(
        self,
        prompts: Sequence[tuple[int, ...]],
        settings: SamplingSettings,
        *,
        template: Template,
    ) -> list[tuple[Completion, ...]]:
        """See `Sampler.generate`."""
        generator = self._generator
        if settings.seed is not None:
            generator = torch.Generator(self._device).manual_seed(settings.seed)
        greedy = settings.temperature == 0
        repeats = 1 if greedy else settings.num_samples
        at_once = max(1, self._max_num_seqs // repeats)
        groups = []
        for start in range(0, len(prompts), at_once):
            rows = self._sample(prompts[start : start + at_once], repeats, settings, generator)
            done = [self._completion(row, settings, template) for row in rows]
            groups += [tuple(done[i : i + repeats]) for i in range(0, len(done), repeats)]
        return [group * settings.num_samples for group in groups] if greedy else groups

    @torch.inference_mode()
    def tokens(self, prompt: Sequence[int], settings: SamplingSettings) -> Generator[int]:
        """See `TokenSampler.tokens`."""
        generator = self._generator
        if settings.seed is not None:
            generator = torch.Generator(self._device).manual_seed(settings.seed)
        ids = torch.tensor([list(prompt)], device=self._device)
        cache = None
        for _ in range(settings.max_tokens):
            output = self._model(
                input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1
            )
            cache = output.past_key_values
            tokens, _ = _draw(output.logits[:, -1], settings, generator)
            token = int(tokens[0])
            yield token
            if token in self._end_tokens:
                return
            ids = tokens[:, None]

    def sync(self, weights: Iterable[tuple[str, Tensor]], version: int) -> None:
        """See `Sampler.sync`."""
        # Copy, because the trainer changes its own tensors in place.
        state = {name: tensor.detach().clone() for name, tensor in weights}
        self._model = load_model(state, self._config, self._dtype).to(self._device).eval()
        self.version = version

    def close(self) -> None:
        """See `Sampler.close`."""
        del self._model

    @torch.inference_mode()
    def _sample(
        self,
        prompts: Sequence[tuple[int, ...]],
        repeats: int,
        settings: SamplingSettings,
        generator: torch.Generator,
    ) -> list[Sampled]:
        """Return `repeats` responses to each prompt, in order."""
        ids, mask = self._pad_left(prompts)
        recorder = RouterReplay(self._model) if settings.routed_experts else None
        with _recorded(recorder) as chosen:
            output = self._model(
                input_ids=ids,
                attention_mask=mask,
                position_ids=(mask.cumsum(-1) - 1).clamp(min=0),
                use_cache=True,
                logits_to_keep=1,
            )
        results = [Sampled() for _ in range(len(mask) * repeats)]
        if chosen:
            experts = torch.stack(chosen, 1).short().cpu()  # [P * T, layers, top_k]
            for row, of_row in enumerate(experts.split(ids.shape[1])):
                real = of_row[mask[row].bool().cpu()]
                for result in results[row * repeats : (row + 1) * repeats]:
                    result.experts.append(real)
        cache = output.past_key_values
        cache.batch_repeat_interleave(repeats)
        mask = mask.repeat_interleave(repeats, 0)
        logits = output.logits[:, -1].repeat_interleave(repeats, 0)  # [B, V]
        rows = torch.arange(len(mask))  # unfinished rows, as indices into `results`
        ends = torch.tensor(self._end_tokens, device=self._device)
        for step in range(settings.max_tokens):
            tokens, logprobs = _draw(logits, settings, generator)
            for row, token, logprob in zip(
                rows.tolist(), tokens.tolist(), logprobs.tolist(), strict=True
            ):
                results[row].token_ids.append(token)
                results[row].logprobs.append(logprob)
            running = ~torch.isin(tokens, ends)
            if step + 1 == settings.max_tokens or not running.any():
                break
            if not running.all():
                keep = running.nonzero()[:, 0]
                cache.batch_select_indices(keep)
                rows, mask, tokens = rows[keep.cpu()], mask[keep], tokens[keep]
            positions = mask.sum(-1, keepdim=True)
            mask = torch.cat([mask, mask.new_ones(len(mask), 1)], -1)
            with _recorded(recorder) as chosen:
                logits = self._model(
                    input_ids=tokens[:, None],
                    attention_mask=mask,
                    position_ids=positions,
                    past_key_values=cache,
                    use_cache=True,
                ).logits[:, -1]
            if chosen:
                experts = torch.stack(chosen, 1).short().cpu()  # [B, layers, top_k]
                for row, of_token in zip(rows.tolist(), experts, strict=True):
                    results[row].experts.append(of_token[None])
        return results

    def _pad_left(self, prompts: Sequence[tuple[int, ...]]) -> tuple[Tensor, Tensor]:
        """Return token ids and attention mask, [P, T] each."""
        longest = max(len(prompt) for prompt in prompts)
        ids = [[self._pad] * (longest - len(prompt)) + list(prompt) for prompt in prompts]
        mask = [[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts]
        return torch.tensor(ids, device=self._device), torch.tensor(mask, device=self._device)

    def _completion(
        self,
        sampled: Sampled,
        settings: SamplingSettings,
        template: Template,
    ) -> Completion:
        token_ids = sampled.token_ids
        return as_completion(
            token_ids,
            sampled.logprobs if settings.logprobs else None,
            "stop" if token_ids and token_ids[-1] in self._end_tokens else "length",
            tokenizer=self._tokenizer,
            template=template,
            end_tokens=self._end_tokens,
            version=self.version,
            routed_experts=torch.cat(sampled.experts) if sampled.experts else None,
        )


@dataclass
class Sampled:
    """A partial response: tokens, their log-probs, experts [tokens, layers, top_k] so far."""

    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    experts: list[Tensor] = field(default_factory=list)


def _recorded(recorder: RouterReplay | None) -> AbstractContextManager[list[Tensor]]:
    return nullcontext([]) if recorder is None else recorder.recorded()


def _draw(
    logits: Tensor, settings: SamplingSettings, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """logits [B, V] -> sampled tokens [B] and their log-probs [B] in the sampled distribution."""
    logits = logits.float()
    if settings.temperature == 0:
        tokens = logits.argmax(-1)
        return tokens, logits.log_softmax(-1).gather(-1, tokens[:, None])[:, 0]
    logprobs = (logits / settings.temperature).log_softmax(-1)
    if settings.top_p < 1:
        # Keep the smallest set of tokens whose probability reaches top_p.
        ordered, places = logprobs.sort(descending=True)
        before = ordered.exp().cumsum(-1) - ordered.exp()
        outside = (before >= settings.top_p).scatter(-1, places, before >= settings.top_p)
        logprobs = logprobs.masked_fill(outside, -torch.inf).log_softmax(-1)
    tokens = torch.multinomial(logprobs.exp(), 1, generator=generator)
    return tokens[:, 0], logprobs.gather(-1, tokens)[:, 0]
