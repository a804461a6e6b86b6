"""What the trainer asks of a sampler, and what every sampler makes of a sampled response."""

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
    """Draws completions under the weights it was last given.

    A call is a function of (weights, prompts, settings) where `settings.seed` is given; without a
    seed, calls go on in the sampler's own random stream. Neither touches torch's random state as
    the trainer sees it.
    """

    @property
    def version(self) -> int:
        """Of the weights it samples under: of the last sync; 0: the folder it was built from."""
        ...

    @property
    def max_model_len(self) -> int:
        """Prompt and response together, at most, in tokens."""
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
        """Take over all weights, by checkpoint name; exact when it returns."""
        ...

    def close(self) -> None:
        """Give the memory back; the sampler is of no use afterwards."""
        ...


class WeightSource(Protocol):
    """What weights are sent from: the policy."""

    version: int

    def checkpoint_weights(self) -> Iterable[tuple[str, torch.Tensor]]: ...


class GroupStream(Protocol):
    """Groups that come back as they finish, while further prompts may be added.

    Prompts are numbered from 0 in the order they are added. What comes back, and in which order,
    depends on the weights, on the settings and on what was added between which calls of `wait`,
    never on the clock (but for unseeded calls). A stream ends with the sampler's next call: what is
    in flight then is dropped.
    """

    def add(self, prompts: Sequence[tuple[int, ...]]) -> None:
        """Send further prompts off; returns at once."""
        ...

    def wait(self) -> list[tuple[int, tuple[Completion, ...]]]:
        """Sample until a group is finished, or several at once: (number, group), by number.

        Empty where nothing is in flight.
        """
        ...


@runtime_checkable
class Streaming(Protocol):
    """A sampler that takes prompts while it samples others. None needs to: see `stream_of`."""

    def stream(self, settings: SamplingSettings, *, template: Template) -> GroupStream:
        """`settings.num_samples` completions for each prompt of a new stream."""
        ...


def stream_of(sampler: Sampler, settings: SamplingSettings, *, template: Template) -> GroupStream:
    """The sampler's own stream, or its ordinary calls in the place of one."""
    if isinstance(sampler, Streaming):
        return sampler.stream(settings, template=template)
    return BatchStream(sampler, settings, template)


class BatchStream:
    """A `GroupStream` over `Sampler.generate`: `wait` samples all that was added since, together.

    The first batch is that of `generate` with the same settings; each further one has its own seed.
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
    """A 63-bit seed that depends on the parts alone."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


class TokenSampler(Protocol):
    """What a sampler in process does beside, for who wants to read along."""

    @property
    def max_model_len(self) -> int:
        """Prompt and response together, at most, in tokens."""
        ...

    def tokens(self, prompt: Sequence[int], settings: SamplingSettings) -> Generator[int]:
        """One response to a prompt, token by token, the end token included where it comes.

        Closing the generator stops it. With `settings.seed` it is the same each time.
        """
        ...

    def close(self) -> None:
        """Give the memory back; the sampler is of no use afterwards."""
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
    """The record of one sampled response: decoded without its end token, and taken apart."""
    tokens = tuple(token_ids)
    body = tokens[:-1] if tokens and tokens[-1] in end_tokens else tokens
    # Special tokens stay: the thinking tags may be such. No tidying of spaces: it rewrites text.
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
