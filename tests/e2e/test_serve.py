"""`r1lab serve` on loopback, asked by OpenAI's own client: thinking and content apart.

One server of the shipped base for the whole module; it is the exported form that vLLM loads.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from r1lab.chat.backends import ChatOptions, ServerSpeaker
from r1lab.cli.app import main
from r1lab.config.recipe import ModelSettings
from r1lab.evaluate.target import find_target
from r1lab.model.load import load_base
from r1lab.prompts import TEMPLATES

openai = pytest.importorskip("openai")
if find_spec("vllm") is None:
    pytest.skip("vLLM is not installed", allow_module_level=True)

QUESTION = "12 + 30 = ?"
MESSAGES = [{"role": "user", "content": QUESTION}]
PROMPT = TEMPLATES["compact"].prompt(QUESTION)
KEY = "a-secret"


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """`r1lab serve nano` with a key, on loopback; its URL up to /v1."""
    folder = tmp_path_factory.mktemp("serve")
    (folder / "key").write_text(f"{KEY}\n")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "r1lab", "serve", "nano", "--port", str(port)]
    command += ["--key-file", str(folder / "key"), "--dtype", "float32", "--name", "tiny"]
    environment = {**os.environ, "R1LAB_CACHE": str(folder / "cache"), "OMP_NUM_THREADS": "1"}
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        try:
            deadline = time.monotonic() + 800
            while not _answers(f"http://127.0.0.1:{port}/health"):
                said = (folder / "log").read_text(errors="replace")[-3000:]
                assert process.poll() is None and time.monotonic() < deadline, said
                time.sleep(0.5)
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            process.terminate()
            process.wait(120)


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as reply:
            return bool(reply.status == 200)
    except (urllib.error.URLError, OSError):
        return False


@pytest.fixture(scope="module")
def client(url: str) -> Any:
    return openai.OpenAI(base_url=url, api_key=KEY, max_retries=0)


def ask(client: Any, **options: Any) -> Any:
    settings = {"temperature": 0.0, "max_tokens": 128, **options}
    return client.chat.completions.create(model="tiny", messages=MESSAGES, **settings)


def test_reasoning_and_content_come_apart(client: Any) -> None:
    # Greedy or not, an answer of the base is mostly well-formed; of 16, one is for certain.
    choices = [c for c in ask(client, n=16, temperature=1.0, seed=3).choices if c.message.content]
    thinking = [c for c in choices if c.message.reasoning]
    assert choices and thinking
    for choice in choices:
        content = choice.message.content
        assert "<think>" not in content and content == content.lstrip()
    for choice in thinking:
        reasoning = choice.message.reasoning
        assert "</think>" not in reasoning and reasoning == reasoning.strip()
        assert choice.message.reasoning_content == reasoning  # what older clients read
    assert any("<answer>" in choice.message.content for choice in choices)


@pytest.mark.parametrize("seed", [1, 2, 3, 4])
def test_a_stream_brings_the_same_parts(client: Any, seed: int) -> None:
    whole = ask(client, temperature=1.0, seed=seed)
    parts: dict[str, str] = {"reasoning": "", "reasoning_content": "", "content": ""}
    order = []
    for event in ask(client, temperature=1.0, seed=seed, stream=True):
        for name in parts:
            if text := getattr(event.choices[0].delta, name, None):
                parts[name] += text
                order.append(name)
    message = whole.choices[0].message
    assert parts["reasoning"] == parts["reasoning_content"] == (message.reasoning or "")
    assert parts["content"] == (message.content or "")
    assert "reasoning" not in order[order.index("content") :] if "content" in order else order


def test_thinking_that_never_ends_is_all_reasoning(client: Any) -> None:
    reply = ask(client, max_tokens=1, temperature=1.0, seed=1, logit_bias={"4": -100})
    assert reply.choices[0].finish_reason == "length"
    assert reply.choices[0].message.content is None
    assert reply.choices[0].message.reasoning
    assert reply.usage.completion_tokens_details.reasoning_tokens == 1


def test_vllm_computes_the_log_probs_of_the_source(client: Any) -> None:
    model, tokenizer, _ = load_base(ModelSettings(path="nano", dtype="float32"))
    reply = ask(
        client, temperature=1.0, seed=7, n=4, logprobs=True,
        extra_body={"return_token_ids": True},
    )  # fmt: skip
    prompt = list(tokenizer(PROMPT)["input_ids"])
    assert reply.prompt_token_ids == prompt
    for choice in reply.choices:
        ids, said = choice.token_ids, [token.logprob for token in choice.logprobs.content]
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([prompt + ids])).logits[0, len(prompt) - 1 : -1]
        expected = logits.log_softmax(-1).gather(-1, torch.tensor(ids)[:, None])[:, 0]
        torch.testing.assert_close(torch.tensor(said), expected, atol=2e-3, rtol=2e-3)


def test_a_key_opens_it_and_nothing_else_does(url: str) -> None:
    stranger = openai.OpenAI(base_url=url, api_key="another", max_retries=0)
    with pytest.raises(openai.AuthenticationError):
        ask(stranger)
    for path in ("/invocations", "/tokenize", "/metrics"):
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(url.removesuffix("/v1") + path)
        assert refused.value.code == 401


def test_chat_over_the_url(url: str, client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    speaker = ServerSpeaker(find_target(url), ChatOptions(temperature=0.0, max_tokens=64))
    pieces = list(speaker.answer(QUESTION))
    message = ask(client, max_tokens=64).choices[0].message
    assert "".join(piece.thinking for piece in pieces) == (message.reasoning or "")
    assert "".join(piece.content for piece in pieces) == (message.content or "")


# --- the parser alone, for a tokenizer that has no tokens for the tags ---


@pytest.fixture(scope="module")
def parser_class() -> Any:
    from vllm.reasoning import ReasoningParserManager

    from r1lab.rollout.vllm import reasoning_parser as vllm_thinking

    return ReasoningParserManager.get_reasoning_parser(vllm_thinking.NAME)


def letters(chat_template: str | None = None) -> Any:
    """A tokenizer of single letters."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({letter: i for i, letter in enumerate(alphabet)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)
    tokenizer.chat_template = chat_template
    return tokenizer


OPENS = "{{ messages[-1]['content'] }}{% if add_generation_prompt %} <think>{% endif %}"


@pytest.mark.parametrize(
    ("template", "response", "reasoning", "content"),
    [
        (OPENS, " 1 + 1 </think> 2 ", "1 + 1", "2 "),
        (OPENS, " on and on", "on and on", None),
        (None, "2", None, "2"),  # not trained to think: vLLM's own would call it thinking
        (None, "<think> so </think> 2", "so", "2"),
    ],
)
def test_the_parser_knows_the_tags_by_their_text(
    parser_class: Any, template: str | None, response: str, reasoning: str | None,
    content: str | None,
) -> None:  # fmt: skip
    from vllm.parser.abstract_parser import DelegatingParser

    tokenizer = letters(template)
    request = SimpleNamespace(include_reasoning=True, tools=None, tool_choice=None, messages=[])
    assert parser_class(tokenizer).extract_reasoning(response, request) == (reasoning, content)

    class Parser(DelegatingParser):
        reasoning_parser_cls = parser_class

    prompt = tokenizer.encode("1 + 1 ?" + (" <think>" if template else ""))
    ids, parser = tokenizer.encode(response), Parser(tokenizer)
    deltas = [
        parser.parse_delta(
            tokenizer.decode([token]), [token], request, prompt, finished=place == len(ids) - 1
        )
        for place, token in enumerate(ids)
    ]
    found = [delta for delta in deltas if delta is not None]
    assert "".join(d.reasoning or "" for d in found) == (reasoning or "")
    assert "".join(d.content or "" for d in found) == (content or "")


def test_what_else_vllm_asks_of_a_parser(parser_class: Any) -> None:
    tokenizer = letters(OPENS)
    parser = parser_class(tokenizer)
    ids = tokenizer.encode("ab</think>cd")
    assert parser.count_reasoning_tokens(ids) == 2
    assert parser.count_reasoning_tokens(ids[:1]) == 1
    assert tokenizer.decode(parser.extract_content_ids(ids)) == "cd"
    assert parser.extract_content_ids(ids[:4]) == []
    assert parser.is_reasoning_end_streaming(ids[:10], ids[9:10])
    assert not parser.is_reasoning_end_streaming(ids[:9], ids[8:9])
    assert not parser.is_reasoning_end(tokenizer.encode("a</think> b <think>"))
    assert parser.is_reasoning_end(tokenizer.encode("<think> </think>\n"))
    assert parser_class(letters()).count_reasoning_tokens(ids) == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--host", "0.0.0.0"], "R1LAB_SERVER_KEY"),
        (["--port", "70000"], "--port"),
        (["--vllm-args", 'a "b'], "--vllm-args"),
        (["--key-file", "no/such/file"], "no/such/file"),
    ],
)
def test_what_cannot_be_served_is_said(
    arguments: list[str], said: str, monkeypatch, capsys
) -> None:
    monkeypatch.delenv("R1LAB_SERVER_KEY", raising=False)
    assert main(["serve", "nano", *arguments]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1


def test_a_port_that_is_taken_is_said(capsys) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        assert main(["serve", "nano", "--port", str(taken.getsockname()[1])]) == 2
    assert "is taken by another process" in capsys.readouterr().err
