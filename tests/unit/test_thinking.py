"""Thinking and content come apart the same way, however a response is cut into pieces."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from r1lab.thinking import StreamDelta, ThinkingSplitter, split_thinking

RESPONSES = st.lists(
    st.sampled_from(["<think>", "</think>", "<", "</", "thi", "nk>", " ", "\n", "a", "<answer>"]),
    max_size=12,
).map("".join)


@pytest.mark.parametrize(
    ("response", "opened", "thinking", "content"),
    [
        (" 1 + 1 </think> <answer> 2 </answer>", True, "1 + 1", "<answer> 2 </answer>"),
        ("</think> 2", True, "", "2"),
        (" \n <think> so\nit </think>\n\n 2 ", False, "so\nit", "2 "),
        ("2 </think> 3", False, "", "2 </think> 3"),  # no thinking part was opened
        (" a < b </thin </think> c </think> d", True, "a < b </thin", "c </think> d"),
        (" cut off", True, "cut off", ""),
        (" cut </thi", True, "cut </thi", ""),
        (" <thin", False, "", "<thin"),
        ("  ", True, "", ""),
        ("", False, "", ""),
    ],
)
def test_a_response_is_taken_apart(
    response: str, opened: bool, thinking: str, content: str
) -> None:
    assert split_thinking(response, opened=opened) == StreamDelta(thinking, content)


@given(RESPONSES, st.booleans(), st.randoms(use_true_random=False))
def test_however_it_is_cut(response: str, opened: bool, random) -> None:
    splitter, pieces, rest = ThinkingSplitter(opened=opened), [], response
    while rest:
        length = random.randint(1, 4)
        piece, rest = rest[:length], rest[length:]
        pieces.append(splitter.feed(piece))
    pieces.append(splitter.finish())
    found = StreamDelta("".join(p.thinking for p in pieces), "".join(p.content for p in pieces))
    whole = split_thinking(response, opened=opened)
    # Behind the content nothing is held back, so white space at its end stays.
    assert found.thinking == whole.thinking
    assert found.content == whole.content
    assert whole.thinking == whole.thinking.strip()
    assert whole.content == whole.content.lstrip()
    assert not (whole.thinking and "</think>" in whole.thinking)


def test_nothing_waits_that_can_be_shown() -> None:
    splitter = ThinkingSplitter(opened=True)
    assert splitter.feed(" red on") == StreamDelta("red on")
    assert splitter.feed(" <") == StreamDelta()  # may be the tag
    assert splitter.feed(" blue </think>") == StreamDelta(" < blue")
    assert not splitter.in_content
    assert splitter.feed(" 2") == StreamDelta(content="2")
    assert splitter.in_content
    assert splitter.feed(" ") == StreamDelta(content=" ")
