"""What the trainer asks of a sampler, and what every sampler makes of a sampled response."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
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
