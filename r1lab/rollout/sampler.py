"""The protocol between trainer and samplers, and the record of a sampled response."""

from __future__ import annotations

import hashlib
from collections.abc import Generator, Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from r1lab.prompts import Template
from r1lab.types import Completion, FinishReason, SamplingSettings

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase


@runtime_checkable
class Sampler(Protocol):
    """Samples completions with the weights of its last sync.

    With `settings.seed`, a call is a function of (weights, prompts, settings); without a seed,
    calls continue the sampler's own random stream. Neither affects torch's random state in the
    trainer.
    """

    @property
    def version(self) -> int:
        """Version of the current weights: that of the last sync, or 0 for the initial folder."""
        ...

    @property
    def max_model_len(self) -> int:
        """Limit of prompt and response together, in tokens."""
        ...

    def generate(
        self,
        prompts: Sequence[tuple[int, ...]],
        settings: SamplingSettings,
        *,
        template: Template,
    ) -> list[tuple[Completion, ...]]:
        """`settings.num_samples` completions for each prompt (token ids), in their order."""
        ...

    def sync(self, weights: Iterable[tuple[str, torch.Tensor]], version: int) -> None:
        """Replace all weights, by checkpoint name; complete when it returns."""
        ...

    def close(self) -> None:
        """Free the memory; the sampler cannot be used afterwards."""
        ...


class WeightSource(Protocol):
    """A source of weights to send: the policy."""

    version: int

    def checkpoint_weights(self) -> Iterable[tuple[str, torch.Tensor]]: ...


class GroupStream(Protocol):
    """Groups returned as they finish, while further prompts may be added.

    Prompts are numbered from 0 in the order of addition. The results and their order depend on the
    weights, the settings and the prompts added between calls of `wait`, never on timing (except for
    unseeded calls). The sampler's next call ends a stream and drops prompts in flight.
    """

    def add(self, prompts: Sequence[tuple[int, ...]]) -> None:
        """Submit further prompts; returns at once."""
        ...

    def wait(self) -> list[tuple[int, tuple[Completion, ...]]]:
        """Sample until one or more groups are finished: (number, group), by number.

        Empty if nothing is in flight.
        """
        ...


@runtime_checkable
class Streaming(Protocol):
    """A sampler that accepts prompts while it samples others. Optional: see `stream_of`."""

    def stream(self, settings: SamplingSettings, *, template: Template) -> GroupStream:
        """Open a stream with `settings.num_samples` completions for each prompt."""
        ...


def stream_of(sampler: Sampler, settings: SamplingSettings, *, template: Template) -> GroupStream:
    """Return the sampler's own stream, or one over its ordinary calls."""
    if isinstance(sampler, Streaming):
        return sampler.stream(settings, template=template)
    return BatchStream(sampler, settings, template)


class BatchStream:
    """A `GroupStream` over `Sampler.generate`: `wait` samples all prompts added since, together.

    The first batch is that of `generate` with the same settings; each later one has its own seed.
    """

    def __init__(self, sampler: Sampler, settings: SamplingSettings, template: Template) -> None:
        self._sampler, self._settings, self._template = sampler, settings, template
        self._added: list[tuple[int, ...]] = []
        self._num_done = self._num_batches = 0

    def add(self, prompts: Sequence[tuple[int, ...]]) -> None:
        """See `GroupStream.add`."""
        self._added += prompts

    def wait(self) -> list[tuple[int, tuple[Completion, ...]]]:
        """See `GroupStream.wait`."""
        if not self._added:
            return []
        settings = self._settings
        if settings.seed is not None and self._num_batches:
            settings = replace(settings, seed=seed_of(settings.seed, self._num_batches))
        groups = self._sampler.generate(self._added, settings, template=self._template)
        done = list(enumerate(groups, start=self._num_done))
        self._num_done += len(done)
        self._num_batches += 1
        self._added = []
        return done


def seed_of(*parts: int) -> int:
    """Return a 63-bit seed that depends only on the parts."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


class TokenSampler(Protocol):
    """Token-by-token interface of in-process samplers, for callers that show a response live."""

    @property
    def max_model_len(self) -> int:
        """Limit of prompt and response together, in tokens."""
        ...

    def tokens(self, prompt: Sequence[int], settings: SamplingSettings) -> Generator[int]:
        """Yield one response to a prompt, token by token, including an end token.

        Closing the generator stops it. With `settings.seed` it is the same each time.
        """
        ...

    def close(self) -> None:
        """Free the memory; the sampler cannot be used afterwards."""
        ...


def as_completion(
    token_ids: Sequence[int],
    logprobs: Sequence[float] | None,
    finish_reason: FinishReason,
    *,
    tokenizer: PreTrainedTokenizerBase,
    template: Template,
    end_tokens: Sequence[int],
    version: int,
    routed_experts: Any = None,
) -> Completion:
    """Build the record of one sampled response: decoded without its end token, and parsed."""
    tokens = tuple(token_ids)
    body = tokens[:-1] if tokens and tokens[-1] in end_tokens else tokens
    # Keep special tokens: thinking tags may be special. Do not clean up spaces: it rewrites text.
    text = tokenizer.decode(body, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    response = template.read(text)
    return Completion(
        token_ids=tokens,
        text=text,
        finish_reason=finish_reason,
        weight_version=version,
        prefix=template.prefix,
        thinking=response.thinking,
        answer=response.answer,
        logprobs=None if logprobs is None else tuple(logprobs),
        routed_experts=routed_experts,
    )
