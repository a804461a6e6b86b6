"""Who answers: a model in this process, or a server that speaks OpenAI's protocol.

Questions are independent: R1-Zero and its like were trained on single questions, in the prompt of
their run. An answer comes in pieces, thinking and content apart.
"""

from __future__ import annotations

import json
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, Protocol

from r1lab.evaluate.completion_clients import ServerAsker, open_url
from r1lab.evaluate.prompting import CHAT, template_name
from r1lab.evaluate.target import Target, model_settings
from r1lab.model.load import end_tokens, prepare_base
from r1lab.prompts import TEMPLATES, THINK_OPEN
from r1lab.rollout.build import build_sampler
from r1lab.rollout.sampler import TokenSampler
from r1lab.rollout.source import encode_prompt
from r1lab.thinking import StreamDelta, ThinkingSplitter
from r1lab.types import R1labError, SamplingSettings

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ConversationEnded = Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class ChatOptions:
    """What `r1lab chat` was asked for; None: as the model was evaluated, or what it allows."""

    engine: str | None = None
    template: str = "auto"
    temperature: float | None = None
    top_p: float | None = None
    max_tokens: int | None = None
    seed: int | None = None
    dtype: str | None = None
    kv_cache_gib: float = 1.0
    served_model: str | None = None


class Speaker(Protocol):
    """Answers questions. `ended` says how the last answer ended."""

    ended: ConversationEnded

    def answer(self, question: str) -> Generator[StreamDelta]:
        """The answer, piece by piece; closing the iterator stops it. Raises R1labError."""
        ...

    def unknown_words(self, question: str) -> list[str]:
        """Words of the question that the model cannot see."""
        ...

    def close(self) -> None:
        """Release its resources."""
        ...


class LocalSpeaker:
    """A model in this process."""

    def __init__(self, target: Target, options: ChatOptions) -> None:
        settings = model_settings(target, dtype=options.dtype)
        _, self._tokenizer, folder = prepare_base(settings)
        asked = template_name(options.template, target, folder, self._tokenizer)
        self._template = None if asked == CHAT else TEMPLATES[asked]
        recipe = target.recipe
        self._ends = end_tokens(self._tokenizer, folder)
        self._sampling = _settings(options, target)
        self._max_tokens = options.max_tokens
        self._sampler: TokenSampler = build_sampler(  # type: ignore[assignment]  # both are
            options.engine or (recipe.sampling.engine if recipe else "vllm"),
            folder, self._tokenizer, dtype=settings.dtype,
            max_model_len=recipe.sampling.max_model_len if recipe else None,
            kv_cache_gib=options.kv_cache_gib, gpu_memory_utilization=0.9, max_num_seqs=8,
            seed=_any_seed() if options.seed is None else options.seed,
        )  # fmt: skip
        self.ended: ConversationEnded = "stop"

    def answer(self, question: str) -> Generator[StreamDelta]:
        """See Speaker."""
        prompt, opened = self._prompt(question)
        room = self._sampler.max_model_len - len(prompt)
        if room < 1:
            raise R1labError(
                f"the question takes {len(prompt)} tokens, and the model has "
                f"{self._sampler.max_model_len} for question and answer"
            )
        settings = replace(self._sampling, max_tokens=min(self._max_tokens or room, room))
        splitter, decoder = ThinkingSplitter(opened=opened), TokenDecoder(self._tokenizer)
        self.ended = "length"
        with closing(self._sampler.tokens(prompt, settings)) as tokens:
            for token in tokens:
                if token in self._ends:
                    self.ended = "stop"
                    break
                text = decoder.feed(token)
                yield splitter.feed(text)
        yield splitter.feed(decoder.finish())
        yield splitter.finish()

    def unknown_words(self, question: str) -> list[str]:
        """See Speaker."""
        unknown = self._tokenizer.unk_token_id
        if unknown is None:
            return []
        words = dict.fromkeys(question.split())
        return [w for w in words if unknown in self._tokenizer(w)["input_ids"]]

    def close(self) -> None:
        """See Speaker."""
        self._sampler.close()

    def _prompt(self, question: str) -> tuple[tuple[int, ...], bool]:
        """The prompt's token ids, and whether it opens the thinking part."""
        if self._template is not None:
            prompt = self._template.prompt(question)
            ids = encode_prompt(self._tokenizer, prompt)
        else:
            message = [{"role": "user", "content": question}]
            prompt = str(
                self._tokenizer.apply_chat_template(
                    message, tokenize=False, add_generation_prompt=True
                )
            )
            ids = tuple(self._tokenizer(prompt, add_special_tokens=False)["input_ids"])
        return ids, prompt.rstrip().endswith(THINK_OPEN)


class ServerSpeaker:
    """A running server: vLLM's with a reasoning parser (`r1lab serve`), or another."""

    def __init__(self, target: Target, options: ChatOptions) -> None:
        found = ServerAsker.connect(target.path, options.served_model, TEMPLATES["plain"])
        self._url, self._model = f"{found.url}/chat/completions", found.model
        given = {
            "temperature": options.temperature, "top_p": options.top_p,
            "max_tokens": options.max_tokens, "seed": options.seed,
        }  # fmt: skip
        self._given = {name: value for name, value in given.items() if value is not None}
        self.ended: ConversationEnded = "stop"

    def answer(self, question: str) -> Generator[StreamDelta]:
        """See Speaker."""
        body = {
            "model": self._model, "stream": True, **self._given,
            "messages": [{"role": "user", "content": question}],
        }  # fmt: skip
        # A server without a parser leaves the tags in the content.
        splitter = ThinkingSplitter(opened=False)
        with open_url(self._url, body) as reply:
            for choice in _choices(reply):
                self.ended = "length" if choice.get("finish_reason") == "length" else "stop"
                delta = choice.get("delta") or {}
                thinking = delta.get("reasoning") or delta.get("reasoning_content") or ""
                rest = splitter.feed(delta.get("content") or "")
                yield StreamDelta(thinking + rest.thinking, rest.content)
        yield splitter.finish()

    def unknown_words(self, question: str) -> list[str]:
        """See Speaker; a server keeps its vocabulary."""
        return []

    def close(self) -> None:
        """See Speaker."""


def find_speaker(target: Target, options: ChatOptions) -> Speaker:
    """Who answers for a target; loads it. Raises R1labError."""
    return ServerSpeaker(target, options) if target.is_server else LocalSpeaker(target, options)


class TokenDecoder:
    """Text of tokens as they come, for any tokenizer.

    A token's text depends on those before it (a space in front, a character over several tokens):
    it is what decoding grows by when the token is added to the few before it.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._before: list[int] = []  # tokens whose text is out already
        self._new: list[int] = []  # tokens whose text is not

    def feed(self, token: int) -> str:
        """The text that the token brings; "" while it ends within a character."""
        self._new.append(token)
        text = self._grown()
        if not text or text.endswith("\ufffd"):
            return ""
        self._before, self._new = self._new, []
        return text

    def finish(self) -> str:
        """What was held back."""
        return self._grown() if self._new else ""

    def _grown(self) -> str:
        return self._text([*self._before, *self._new])[len(self._text(self._before)) :]

    def _text(self, tokens: Sequence[int]) -> str:
        text: str = self._tokenizer.decode(
            tokens, skip_special_tokens=False, clean_up_tokenization_spaces=False
        )
        return text


def _settings(options: ChatOptions, target: Target) -> SamplingSettings:
    asked = target.recipe.evaluation if target.recipe else None
    return SamplingSettings(
        num_samples=1,
        temperature=_first(options.temperature, asked.temperature if asked else 1.0),
        top_p=_first(options.top_p, asked.top_p if asked else 1.0),
        max_tokens=1,
        seed=options.seed,
    )


def _first(value: float | None, otherwise: float) -> float:
    return otherwise if value is None else value


def _any_seed() -> int:
    import secrets

    return secrets.randbits(31)


def _choices(reply: Any) -> Iterator[dict[str, Any]]:
    """The first choice of each event of a stream (https://html.spec.whatwg.org, 9.2)."""
    for line in reply:
        kind, _, data = line.decode(errors="replace").strip().partition(":")
        if kind != "data" or not data.strip() or data.strip() == "[DONE]":
            continue
        try:
            event = json.loads(data)
        except ValueError:
            raise R1labError(f"the server sent invalid JSON: {data[:100]!r}") from None
        if error := event.get("error"):
            raise R1labError(f"the server stopped: {str(error)[:300]}")
        yield from event.get("choices", ())[:1]
