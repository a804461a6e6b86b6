"""`r1lab chat`: at a pseudo-terminal and through a pipe, the shipped base with transformers."""

from __future__ import annotations

import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest
import tiny

from r1lab.chat.backends import TokenDecoder
from r1lab.chat.terminal import converse
from r1lab.config.recipe import ModelSettings
from r1lab.model.load import load_base
from r1lab.thinking import StreamDelta

COMMAND = [sys.executable, "-m", "r1lab", "chat", "nano", "--engine", "transformers"]
COMMAND += ["--dtype", "float32"]
QUESTION = "12 + 30 = ?"
PROMPT = r"[\r\n](?:\x1b\[[0-9;?]*[a-zA-Z])*> "


class Terminal:
    """A program at a pseudo-terminal, read as a person would."""

    def __init__(self, *arguments: str) -> None:
        self.process, self.screen = pty.fork()
        if self.process == 0:
            os.environ.update(TERM="xterm", OMP_NUM_THREADS="1")
            os.environ.pop("NO_COLOR", None)
            os.execv(sys.executable, [*COMMAND, *arguments])
        self.text = ""

    def read_until(self, wanted: str, seconds: float = 300.0) -> str:
        """What appears before a match of the pattern; the rest is for the next call."""
        end = time.monotonic() + seconds
        while (found := re.search(wanted, self.text)) is None:
            assert time.monotonic() < end, f"no {wanted!r} in {self.text[-2000:]!r}"
            if select.select([self.screen], [], [], 0.2)[0]:
                try:
                    self.text += os.read(self.screen, 4096).decode(errors="replace")
                except OSError:  # it has left
                    raise AssertionError(f"no {wanted!r}: {self.text[-2000:]!r}") from None
        before, self.text = self.text[: found.start()], self.text[found.end() :]
        return before

    def type(self, text: str) -> None:
        os.write(self.screen, text.encode())

    def leave(self) -> int:
        """Ctrl-D; the exit code."""
        self.type("\x04")
        for _ in range(600):
            if select.select([self.screen], [], [], 0.1)[0]:
                try:
                    os.read(self.screen, 4096)
                except OSError:
                    break
        return os.waitstatus_to_exitcode(os.waitpid(self.process, 0)[1])


def bare(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text).replace("\r", "")


def test_a_conversation_at_a_terminal() -> None:
    # Under this seed the base works the answer out before it gives it.
    terminal = Terminal("--seed", "0", "--max-tokens", "200")
    assert "thinking: dim" in terminal.read_until(PROMPT)

    def asked(question: str) -> str:
        terminal.type(f"{question}\n")
        terminal.read_until("\n")  # the echo of what was typed
        return terminal.read_until(PROMPT)

    dimmed = asked(QUESTION)
    assert "\x1b[2m" in dimmed and "\x1b[0m" in dimmed
    assert "<answer>" in dimmed and "</think>" not in dimmed
    assert "thinking: show" in asked("/thinking show")
    shown = asked(QUESTION)
    assert "\x1b[2m" not in shown and bare(shown) == bare(dimmed)  # the same seed
    for following in ("dim", "hide"):  # Ctrl-T
        terminal.type("\x14")
        terminal.read_until(f"thinking: {following}")
        terminal.read_until(PROMPT)
    hidden = bare(asked(QUESTION))
    content = bare(shown)[bare(shown).index("<answer>") :]
    assert hidden.endswith(content) and len(hidden) < len(bare(shown))
    assert "(thinking)" in hidden
    assert "did you mean '/thinking'?" in asked("/thinkin")
    assert "not in the model's vocabulary" in asked("how many zebras ?")
    assert terminal.leave() == 0


def test_ctrl_c_stops_an_answer_and_not_the_program(monkeypatch, capsys) -> None:
    """The answer of a speaker that never ends; the signal comes while it speaks."""

    class Endless:
        ended = "stop"
        closed = False

        def answer(self, question: str) -> Iterator[StreamDelta]:
            try:
                for word in range(10**6):
                    if word == 3:
                        signal.raise_signal(signal.SIGINT)
                    yield StreamDelta(content=f" {word}")
            finally:
                Endless.closed = True

        def unknown_words(self, question: str) -> list[str]:
            return []

    lines = iter(["a question"])

    def typed(prompt: str) -> str:
        try:
            return next(lines)
        except StopIteration:
            raise EOFError from None

    monkeypatch.setattr("builtins.input", typed)
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    converse(Endless(), "show", "endless")
    out = capsys.readouterr().out
    assert " 0 1 2\n" in out and "[stopped]" in out and " 3" not in out
    assert Endless.closed


def test_through_a_pipe() -> None:
    questions = f"{QUESTION}\n\nhow many zebras ?\n{QUESTION}\n"
    done = subprocess.run(
        [*COMMAND, "--seed", "0", "--thinking", "show", "--max-tokens", "200"],
        input=questions, capture_output=True, text=True, timeout=600,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    answers = done.stdout.splitlines()
    assert len(answers) == 3 and answers[0] == answers[2] != answers[1]
    assert re.fullmatch(r"<think> .+ </think> <answer>.*", answers[0])
    assert "\x1b" not in done.stdout
    assert "zebras" in done.stderr and "not in the model's vocabulary" in done.stderr


def test_what_a_model_writes_does_not_steer_the_terminal(monkeypatch, capsys) -> None:
    class Hostile:
        ended = "length"

        def answer(self, question: str) -> Iterator[StreamDelta]:
            yield StreamDelta(thinking="\x1b[2J", content="\x1b]0;taken\x07 2")

        def unknown_words(self, question: str) -> list[str]:
            return ["\x1b[2J"]

    lines = iter(["a question"])
    monkeypatch.setattr("builtins.input", lambda _: next(lines, None) or _end())
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("NO_COLOR", "1")
    converse(Hostile(), "dim", "hostile")
    out = capsys.readouterr().out
    assert "\x1b" not in out and "\x07" not in out and "␛[2J" in out
    assert "cut off" in out


def _end() -> str:
    raise EOFError


@pytest.mark.parametrize("name", ["nano", "tiny"])
def test_text_comes_token_by_token(name: str) -> None:
    if name == "nano":
        _, tokenizer, _ = load_base(ModelSettings(path="nano", dtype="float32"))
        text = "12 + 305 = 3 1 7 </think> <answer> 317 </answer>"
    else:
        tokenizer, text = tiny.tokenizer(), "w1 w2 </think> w3 w3"
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    decoder = TokenDecoder(tokenizer)
    pieces = [decoder.feed(token) for token in ids] + [decoder.finish()]
    assert "".join(pieces) == tokenizer.decode(ids)
    assert all(pieces[:-1])


def test_a_character_of_several_tokens_waits_for_its_last() -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({letter: i for i, letter in enumerate(letters)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)
    decoder = TokenDecoder(tokenizer)
    pieces = [decoder.feed(token) for token in tokenizer("a∪b")["input_ids"]]
    assert pieces == ["a", "", "", "∪", "b"]
