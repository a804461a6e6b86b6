"""What a reward returned may raise when it is read: a fault of that response, in every mode."""

from __future__ import annotations

import pytest

from r1lab.types import Completion, Problem, ScoringFailure, Verdict
from r1lab.verify import InProcessRunner, IsolatedRunner, RewardCall, load_reward
from r1lab.verify.for_trl import trl_reward

DEEDS = """
from numbers import Real
from r1lab.types import Verdict

def bad(*args):
    raise ERROR("boom")

class Broken(Exception):
    __str__ = bad

class Stop(BaseException):
    pass

class Text(str):
    __len__ = __getitem__ = __format__ = __str__ = bad

class Number(float):
    __float__ = __round__ = __trunc__ = bad

class Truth(dict):
    __bool__ = __len__ = items = bad

class Liar:
    __class__ = property(bad)
    __repr__ = __float__ = __len__ = bad

class Own(Verdict):
    score = property(bad)

class Scalar:
    item = bad
    __repr__ = bad

def make(deed):
    if deed == "harmless":
        return 1.0
    if deed == "huge":
        return 10**400
    if deed == "huge part":
        return Verdict(1.0, "", {"x": -10**400})
    if deed == "number":
        return Number(1.0)
    if deed == "verdict number":
        return Verdict(Number(1.0))
    if deed == "part":
        return Verdict(1.0, "", {"x": Number(1.0)})
    if deed == "name":
        return Verdict(1.0, "", {Text("x"): 1.0})
    if deed == "reason":
        return Verdict(1.0, Text("x"))
    if deed == "parts":
        return Verdict(1.0, "", Truth(x=1.0))
    if deed == "no parts":
        return Verdict(1.0, "", 3)
    if deed == "class":
        return Liar()
    if deed == "own verdict":
        return object.__new__(Own)
    if deed == "scalar":
        return Scalar()

def reward(problem, completion):
    return make(completion.text)

def batched(completions, **columns):
    return [make(text) for text in completions]
"""
KINDS = ["huge", "huge part", "number", "verdict number", "part", "name", "reason", "parts",
         "no parts", "class", "own verdict", "scalar"]  # fmt: skip
ERRORS = ["ValueError", "SystemExit", "KeyboardInterrupt", "Stop", "RecursionError", "Broken",
          "GeneratorExit"]  # fmt: skip


@pytest.fixture(scope="module", params=["isolated", "in process"])
def runner(request):
    if request.param == "in process":
        yield InProcessRunner()
    else:
        with IsolatedRunner(1) as isolated:
            yield isolated


def items(texts):
    return [
        RewardCall(Problem(f"p{i}", "?", "1", "math"), Completion((1,), text, "stop", 0), "?")
        for i, text in enumerate(texts)
    ]


@pytest.mark.parametrize("function", ["reward", "batched"])
@pytest.mark.parametrize("error", ERRORS)
def test_a_fault_of_that_response(tmp_path, runner, error, function):
    path = tmp_path / "mine.py"
    path.write_text(DEEDS.replace("ERROR", error))
    texts = [text for kind in KINDS for text in ("harmless", kind)]
    outcomes = runner.run(load_reward(f"{path}:{function}"), items(texts))
    for text, outcome in zip(texts, outcomes, strict=True):
        if text == "harmless":
            assert isinstance(outcome, Verdict) and outcome.score == 1.0
        else:
            assert isinstance(outcome, ScoringFailure) and outcome.kind == "exception", text


LISTS = {
    "raises on its way": "def batched(completions, **c):\n    yield 1.0\n    raise ValueError\n",
    "no iterator": "class L:\n    def __iter__(self):\n        raise KeyError\n"
    "def batched(completions, **c):\n    return L()\n",
    "its class": "class L:\n    @property\n    def __class__(self):\n        raise SystemExit\n"
    "def batched(completions, **c):\n    return L()\n",
    "its log": "class L:\n    def __str__(self):\n        raise KeyError\n"
    "def batched(completions, log_extra, **c):\n    log_extra('x', [L()] * len(completions))\n"
    "    return [1.0] * len(completions)\n",
    "its log's number": "def batched(completions, log_extra, **c):\n"
    "    log_extra('x', [10**400] * len(completions))\n    return [1.0] * len(completions)\n",
}


@pytest.mark.parametrize("text", LISTS.values(), ids=LISTS)
def test_a_list_that_cannot_be_read(tmp_path, runner, text):
    (tmp_path / "mine.py").write_text(text)
    outcomes = runner.run(load_reward(f"{tmp_path / 'mine.py'}:batched"), items("ab"))
    assert [getattr(outcome, "kind", None) for outcome in outcomes] == ["exception"] * 2


def test_through_trl(tmp_path):
    (tmp_path / "mine.py").write_text(DEEDS.replace("ERROR", "ValueError"))
    judge = trl_reward(f"{tmp_path / 'mine.py'}:batched", answer=None, isolate=False)
    texts = ["harmless", *KINDS, "harmless"]
    assert judge(["?"] * len(texts), texts) == [1.0, *[None] * len(KINDS), 1.0]
