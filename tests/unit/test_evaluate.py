"""Estimators against brute force, intervals against simulation, and a whole evaluation."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from records import COMPACT, completion, problem

from r1lab.evaluate import Asked, bootstrap, evaluate, judge, maj_at_k, pass_at_k
from r1lab.evaluate.intervals import mean_interval
from r1lab.prompts import Template
from r1lab.recipe import EvaluationSettings, RewardSettings
from r1lab.types import Completion, Fault, R1labError, Rollout, SamplingSettings, Scored, Verdict
from r1lab.verify import Verifiers

# ------------------------------------------------------------------------------ estimators


@pytest.mark.parametrize("n", range(1, 8))
def test_pass_at_k_equals_brute_force(n: int) -> None:
    for c, k in itertools.product(range(n + 1), range(1, n + 1)):
        subsets = list(itertools.combinations([i < c for i in range(n)], k))
        expected = sum(any(subset) for subset in subsets) / len(subsets)
        assert pass_at_k(n, c, k) == pytest.approx(expected, abs=1e-12)


def test_pass_at_k_of_many_samples() -> None:
    assert pass_at_k(10_000, 1, 5_000) == pytest.approx(0.5)
    assert pass_at_k(200, 200, 1) == 1.0


@pytest.mark.parametrize(("n", "c", "k"), [(4, 2, 5), (4, 2, 0), (4, 5, 1), (4, -1, 1), (0, 0, 1)])
def test_pass_at_k_refuses_nonsense(n: int, c: int, k: int) -> None:
    with pytest.raises(ValueError):
        pass_at_k(n, c, k)


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        (["1", "1", "2"], 1.0),
        (["2", "2", "1"], 0.0),
        (["1", "2"], 0.5),  # a tie: the expected value of a fair draw
        (["1", "2", "3"], 1 / 3),
        (["2", "3"], 0.0),
        (["1", None, None, None], 1.0),  # no answer never wins
        ([None, None], 0.0),
        (["1 ", " 1", "2"], 1.0),  # white space is no difference
        ([], 0.0),
    ],
)
def test_maj_at_k(answers: list[str | None], expected: float) -> None:
    correct = [answer is not None and answer.strip() == "1" for answer in answers]
    for order in itertools.permutations(range(len(answers))):
        result = maj_at_k([answers[i] for i in order], [correct[i] for i in order])
        assert result == pytest.approx(expected)


def test_maj_at_k_groups_by_what_it_is_told() -> None:
    answers, correct = ["1/2", "0.5", "2", "2", "0.50"], [True, True, False, False, True]
    assert maj_at_k(answers, correct) == 0.0
    assert maj_at_k(answers, correct, group_by=lambda a: {"1/2": 0.5}.get(a) or float(a)) == 1.0


# ------------------------------------------------------------------------------- intervals


def test_interval_covers_at_its_rate() -> None:
    generator = np.random.default_rng(0)
    chances = generator.beta(2, 3, size=(400, 80))  # 400 studies of 80 problems
    rates = generator.binomial(8, chances) / 8
    hits = 0
    for study in rates:
        estimate = mean_interval(list(study))
        assert estimate.low <= estimate.value <= estimate.high
        hits += estimate.low <= 0.4 <= estimate.high
    assert 0.92 <= hits / 400 <= 0.98


def test_samples_of_a_problem_stay_together() -> None:
    # 10 problems, all samples of one alike: 16 samples each say no more than one
    clustered = mean_interval([1.0] * 5 + [0.0] * 5)
    assert clustered.high - clustered.low > 0.5


def test_ratio_figures() -> None:
    num = np.array([[10.0, 0.0], [30.0, 0.0]])
    den = np.array([[1.0, 0.0], [3.0, 0.0]])
    ratio, nothing = bootstrap(num, den, seed=0)
    assert ratio is not None
    assert (ratio.value, ratio.low, ratio.high) == (10.0, 10.0, 10.0)
    assert nothing is None
    assert bootstrap(np.zeros((0, 2)), np.zeros((0, 2)), seed=0) == [None, None]


def test_same_seed_same_interval() -> None:
    draw = random.Random(1)
    values = [draw.random() for _ in range(30)]
    assert mean_interval(values, seed=3) == mean_interval(values, seed=3)
    assert mean_interval(values, seed=3) != mean_interval(values, seed=4)


# ------------------------------------------------------------------------- an evaluation


class ScriptedSampler:
    """Says what it was told to, and remembers what it was asked."""

    version, max_model_len = 3, 100

    def __init__(self, texts: Sequence[Sequence[str]], greedy: Sequence[str] = ()) -> None:
        self.texts, self.greedy = texts, greedy
        self.calls: list[tuple[list[tuple[int, ...]], SamplingSettings]] = []

    def generate(
        self, prompts: Sequence[tuple[int, ...]], settings: SamplingSettings, *, template: Template
    ) -> list[tuple[Completion, ...]]:
        self.calls.append((list(prompts), settings))
        if settings.temperature == 0:
            return [(self.completion(text),) for text in self.greedy]
        return [tuple(self.completion(text) for text in texts) for texts in self.texts]

    @staticmethod
    def completion(text: str) -> Completion:
        cut = text.endswith("...")
        return completion(text, range(len(text.split())), "length" if cut else "stop")


def says(answer: str, work: str = "so") -> str:
    return f"{work} </think> <answer> {answer} </answer>"


@pytest.fixture
def verifiers(tmp_path: Path) -> Verifiers:
    path = tmp_path / "exact.py"
    path.write_text(
        "def reward(problem, completion):\n"
        "    if 'crash' in completion.text: raise OSError('gone')\n"
        "    return float(completion.answer == problem.answer)\n"
    )
    return Verifiers([RewardSettings(reward=str(path))], template=COMPACT)


def encode(text: str) -> list[int]:
    return list(text.encode())


SETTINGS = EvaluationSettings(num_samples=4, seed=7)


def test_evaluate(verifiers: Verifiers) -> None:
    problems = [problem(0), problem(1, source="other"), problem(0)]  # p0 twice
    sampler = ScriptedSampler(
        [
            [says("1"), says("1"), says("2"), "on and on ..."],
            [says("2", "a b c"), says("3"), says("3"), says("crash")],
        ],
        greedy=[says("1"), says("3")],
    )
    result = evaluate(
        sampler, problems, verifiers, encode=encode, template=COMPACT, settings=SETTINGS,
        max_tokens=20, greedy=True, step=5,
    )  # fmt: skip
    prompts = [tuple(encode(COMPACT.prompt(p.question))) for p in problems[:2]]
    assert [call[0] for call in sampler.calls] == [prompts, prompts]
    assert sampler.calls[0][1] == SamplingSettings(4, 1.0, 1.0, 20, False, 7)
    assert sampler.calls[1][1].temperature == 0

    overall = result.overall
    assert (overall.num_problems, overall.num_samples, overall.num_faults) == (2, 8, 1)
    value = {name: getattr(overall, name).value for name in (
        "pass_at_1", "cons_at_k", "format", "length", "length_right", "length_wrong",
        "truncated", "unanswered", "reward",
    )}  # fmt: skip
    assert value["pass_at_1"] == pytest.approx((2 / 4 + 1 / 3) / 2)
    assert value["cons_at_k"] == pytest.approx((1 + 0) / 2)
    assert value["reward"] == pytest.approx((2 / 4 + 1 / 3) / 2)
    assert value["format"] == pytest.approx((3 / 4 + 1) / 2)
    assert value["truncated"] == value["unanswered"] == pytest.approx(1 / 8)
    assert value["length_right"] == pytest.approx((5 + 5 + 7) / 3)
    assert value["length_wrong"] == pytest.approx((5 + 4 + 5 + 5) / 4)
    assert overall.pass_at_k["1"] == overall.pass_at_1
    assert overall.pass_at_k["2"].value == pytest.approx((5 / 6 + 2 / 3) / 2)
    # pass@4 is known of the first problem only: the other has three judged samples
    assert overall.pass_at_k["4"].value == 1.0
    assert set(overall.pass_at_k) == {"1", "2", "4"}

    assert result.greedy is not None and result.greedy.pass_at_1 is not None
    assert result.greedy.pass_at_1.value == 0.5
    assert set(result.by_source) == {"sums", "other"}
    assert result.by_source["sums"].num_problems == 1
    assert (result.step, result.weight_version, result.k, result.seed) == (5, 0, 4, 7)
    headline = result.headline()
    assert headline["pass_at_1"] == value["pass_at_1"]
    assert headline["cons_at_4"] == 0.5
    assert headline["greedy"] == 0.5


def test_every_sample_is_kept(verifiers: Verifiers) -> None:
    sampler = ScriptedSampler([[says("1"), says("crash")]])
    result = evaluate(
        sampler, [problem(0)], verifiers, encode=encode, template=COMPACT,
        settings=EvaluationSettings(num_samples=2), max_tokens=20,
    )  # fmt: skip
    plain = json.loads(json.dumps(result.as_dict()))
    (asked,) = plain["problems"]
    assert (asked["question"], asked["answer"]) == ("0 + 1", "1")
    right, faulted = asked["samples"]
    assert right["text"] == says("1")
    assert (right["correct"], right["score"], right["parts"]) == (True, 1.0, {"exact": 1.0})
    assert (faulted["correct"], faulted["score"]) == (None, None)
    assert "OSError: gone" in faulted["fault"]
    assert plain["overall"]["pass_at_1"]["value"] == 1.0
    assert plain["greedy"] is None


def test_nothing_judged_is_no_zero(verifiers: Verifiers) -> None:
    sampler = ScriptedSampler([[says("crash")] * 2])
    with pytest.raises(R1labError, match=r"none of 2 samples could be judged: .*OSError: gone"):
        evaluate(
            sampler, [problem(0)], verifiers, encode=encode, template=COMPACT,
            settings=EvaluationSettings(num_samples=2), max_tokens=20,
        )  # fmt: skip


def test_a_problem_without_a_judged_sample_is_left_out(verifiers: Verifiers) -> None:
    groups = [
        Rollout(problem(i), (1,), (completion(says(str(i + 1))), completion(says("9"))))
        for i in range(2)
    ]
    scored = (
        Scored(groups[0], (Verdict(1.0, parts={"exact": 1.0}), Verdict(0.0, parts={"exact": 0.0}))),
        Scored(groups[1], (Fault("killed"), Verdict(0.1, parts={"format": 0.1}))),
    )
    result = judge(
        Asked(scored), verifiers, template=COMPACT, max_tokens=20,
        settings=EvaluationSettings(num_samples=2),
    )  # fmt: skip
    assert result.overall.num_problems == 1
    assert result.overall.num_faults == 1
    assert result.overall.pass_at_1 is not None
    assert result.overall.pass_at_1.value == 0.5
