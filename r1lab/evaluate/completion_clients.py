"""Clients for completions: a model in this process, or an OpenAI-compatible server.

Both take problems and return their completions in order; the template defines the form of a
response and where its answer is. A server returns counts, not tokens, so its completions have as
many placeholders (-1) as there were tokens. It draws from its own random stream: vLLM's CPU build
crashes on seeds of single requests, so none is sent, and only metrics within their intervals, not
samples, are reproducible.
"""

from __future__ import annotations

import json
import os
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from http.client import HTTPException, HTTPResponse
from typing import TYPE_CHECKING, Any, Protocol

from r1lab.prompts import THINK_CLOSE, THINK_OPEN, Encode, Template
from r1lab.rollout.sampler import Sampler
from r1lab.types import Completion, FinishReason, Problem, R1labError, Rollout, SamplingSettings

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_AT_ONCE = 64  # requests that wait for a server
_SECONDS = 1800.0  # for one of them
_API_KEY = "OPENAI_API_KEY"


class Asker(Protocol):
    """Asks problems; `max_tokens` of each response at most, as the settings say."""

    def ask(self, problems: Sequence[Problem], settings: SamplingSettings) -> list[Rollout]: ...


@dataclass(frozen=True, slots=True)
class LocalAsker:
    """Asks a sampler of this process."""

    sampler: Sampler
    tokenizer: PreTrainedTokenizerBase
    template: Template
    encode: Encode

    def prompts(self, problems: Sequence[Problem]) -> list[tuple[int, ...]]:
        """Return the token ids of each problem's prompt."""
        return [tuple(self.encode(self.template.prompt(p.question))) for p in problems]

    def ask(self, problems: Sequence[Problem], settings: SamplingSettings) -> list[Rollout]:
        """See Asker."""
        prompts = self.prompts(problems)
        groups = self.sampler.generate(prompts, settings, template=self.template)
        return [
            Rollout(problem, prompt, tuple(self._cut(completion) for completion in group))
            for problem, prompt, group in zip(problems, prompts, groups, strict=True)
        ]

    def _cut(self, completion: Completion) -> Completion:
        """Cut the completion at the template's stop, which ends it as an end token would."""
        places = [completion.text.find(stop) for stop in self.template.stop]
        found = [place for place in places if place >= 0]
        if not found:
            return completion
        text = completion.text[: min(found)]
        read = self.template.read(text)
        # The fewest tokens whose text reaches the stop: decoding grows with every token.
        low, high = 0, len(completion.token_ids)
        while low < high:
            middle = (low + high) // 2
            if len(self._decoded(completion.token_ids[:middle])) < len(text):
                low = middle + 1
            else:
                high = middle
        return replace(
            completion, token_ids=completion.token_ids[:low], text=text, finish_reason="stop",
            thinking=read.thinking, answer=read.answer, logprobs=None,
        )  # fmt: skip

    def _decoded(self, tokens: Sequence[int]) -> str:
        text: str = self.tokenizer.decode(
            tokens, skip_special_tokens=False, clean_up_tokenization_spaces=False
        )
        return text


@dataclass(frozen=True, slots=True)
class ServerAsker:
    """Asks a server: chat completions for a chat template, else completions of the prompt's text.

    `url` is the address up to /v1; a key for it is read from $OPENAI_API_KEY.
    """

    url: str
    model: str
    template: Template

    @classmethod
    def connect(cls, url: str, model: str | None, template: Template) -> ServerAsker:
        """Query the server's models; raises R1labError if there is none or more than one."""
        url = url.rstrip("/")
        url = url if url.endswith("/v1") else f"{url}/v1"
        served = [str(row["id"]) for row in _request(f"{url}/models")["data"]]
        if model is None and len(served) == 1:
            model = served[0]
        if model not in served:
            raise R1labError(
                f"--served-model: {model!r} is not served by {url}; it serves "
                f"{', '.join(served) or 'none'}"
            )
        return cls(url, model, template)

    def ask(self, problems: Sequence[Problem], settings: SamplingSettings) -> list[Rollout]:
        """See Asker."""
        times = 1 if settings.temperature == 0 else settings.num_samples
        jobs = [problem for problem in problems for _ in range(times)]
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            done = list(pool.map(lambda problem: self._one(problem, settings), jobs))
        return [
            Rollout(problem, (), tuple(done[i * times : (i + 1) * times]))
            for i, problem in enumerate(problems)
        ]

    def _one(self, problem: Problem, settings: SamplingSettings) -> Completion:
        body: dict[str, Any] = {
            "model": self.model, "temperature": settings.temperature, "top_p": settings.top_p,
            "max_tokens": settings.max_tokens,
        }  # fmt: skip
        if self.template.stop:
            body["stop"] = list(self.template.stop)
        if self.template.message is not None:
            message = self.template.message.replace("{question}", problem.question)
            body["messages"] = [{"role": "user", "content": message}]
            reply = _request(f"{self.url}/chat/completions", body)
        else:
            body["prompt"] = self.template.prompt(problem.question)
            # The thinking tags may be special tokens.
            body["skip_special_tokens"] = False
            reply = _request(f"{self.url}/completions", body)
        (choice,) = reply["choices"]
        length = int(reply["usage"]["completion_tokens"])
        text = _text(choice)
        reasons: dict[str, FinishReason] = {"stop": "stop", "length": "length"}
        read = self.template.read(text)
        return Completion(
            token_ids=(-1,) * length,
            text=text,
            finish_reason=reasons.get(choice.get("finish_reason"), "abort"),
            weight_version=0,
            prefix=self.template.prefix,
            thinking=read.thinking,
            answer=read.answer,
        )


def _text(choice: dict[str, Any]) -> str:
    """Return the text, with a thinking part that the server split off put back in front."""
    if "message" not in choice:
        return str(choice.get("text") or "")
    message = choice["message"]
    # vLLM 0.32 says `reasoning`, older versions and other servers `reasoning_content`.
    thinking = message.get("reasoning") or message.get("reasoning_content")
    content = str(message.get("content") or "")
    if not thinking:
        return content
    closed = THINK_CLOSE if content or choice.get("finish_reason") == "stop" else ""
    return f"{THINK_OPEN}{thinking}{closed}{content}"


def _request(url: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
    with open_url(url, body) as reply:
        try:
            found: dict[str, Any] = json.load(reply)
        except ValueError as error:
            raise R1labError(f"{url} returned invalid JSON: {error}") from None
    return found


@contextmanager
def open_url(url: str, body: dict[str, Any] | None = None) -> Iterator[HTTPResponse]:
    """Open a server's reply; raises R1labError if it refuses or does not answer.

    A body makes it a POST. A key is read from $OPENAI_API_KEY.
    """
    headers = {"Content-Type": "application/json"}
    if key := os.environ.get(_API_KEY):
        headers["Authorization"] = f"Bearer {key}"
    data = None if body is None else json.dumps(body).encode()
    try:
        request = urllib.request.Request(url, data, headers)
        with urllib.request.urlopen(request, timeout=_SECONDS) as reply:
            yield reply
    except urllib.error.HTTPError as error:
        reason = " ".join(error.read(1000).decode(errors="replace").split())[:300]
        raise R1labError(f"{url} answered {error.code}: {reason}") from error
    except (urllib.error.URLError, TimeoutError, ConnectionError, HTTPException) as error:
        raise R1labError(f"{url} does not answer ({error}); is the server running?") from error
    except ValueError as error:  # no URL at all
        raise R1labError(f"{url}: {error}") from error
