"""Estimators against brute force, intervals against simulation, and a whole evaluation."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from records import COMPACT, completion, problem

from r1lab.config.recipe import EvaluationSettings, RewardSettings
from r1lab.evaluate import (
    Asked,
    Estimate,
    across_seeds,
    bootstrap,
    compare,
    evaluate,
    judge,
    maj_at_k,
    pass_at_k,
)
from r1lab.evaluate.answer_clusters import answer_groups
from r1lab.evaluate.compare import across_runs
from r1lab.evaluate.intervals import student_quantile
from r1lab.prompts import Template
from r1lab.types import (
    Completion,
    R1labError,
    Rollout,
    SamplingSettings,
    ScoredGroup,
    ScoringFailure,
    Verdict,
)
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
        ([], 0.0),
    ],
)
def test_maj_at_k(answers: list[str | None], expected: float) -> None:
    correct = [answer == "1" for answer in answers]
    for order in itertools.permutations(range(len(answers))):
        result = maj_at_k([answers[i] for i in order], [correct[i] for i in order])
        assert result == pytest.approx(expected)


def group_of(gold: str, answers: Sequence[str | None], correct: Sequence[bool]) -> list[int | None]:
    """The groups of answers to a problem that the maths checker judges."""
    texts = ["so </think> nothing" if a is None else says(a) for a in answers]
    outcomes = [
        Verdict(float(right), "no answer" if answer is None else "", {"accuracy": float(right)})
        for answer, right in zip(answers, correct, strict=True)
    ]
    asked = Rollout(
        problem(answer=gold, verifier="math"), (1,), tuple(completion(text) for text in texts)
    )
    verifiers = Verifiers([RewardSettings(reward="problem")], template=COMPACT)
    (groups,) = answer_groups([ScoredGroup(asked, tuple(outcomes))], verifiers)
    return groups


def test_answers_are_grouped_as_the_verifier_sees_them() -> None:
    answers = ["1/2", "2", None, "0.5", "2.0", "\\frac{4}{2}", "3", "3 "]
    correct = [True, False, False, True, False, False, False, False]
    groups = group_of("1/2", answers, correct)
    assert groups == [0, 1, None, 0, 1, 1, 2, 2]
    assert maj_at_k(groups, correct) == 0.0  # as strings, 1/2 and 2 would be tied with 3
    assert maj_at_k(answers, correct) == pytest.approx(2 / 7)  # seven strings, one vote each


def test_a_verifier_that_computes_groups_wrong_answers_by_text() -> None:
    game = problem(verifier="countdown", answer="3 + 4", metadata={"numbers": [3, 4], "target": 7})
    texts = ["4 + 3", "3 + 4", "4 - 3", "4  -  3", "3 - 4"]
    right = [True, True, False, False, False]
    outcomes = tuple(Verdict(float(r), "", {"accuracy": float(r)}) for r in right)
    asked = Rollout(game, (1,), tuple(completion(says(text)) for text in texts))
    verifiers = Verifiers([RewardSettings(reward="problem")], template=COMPACT)
    assert answer_groups([ScoredGroup(asked, outcomes)], verifiers) == [[0, 0, 1, 1, 2]]


# ------------------------------------------------------------------------------- intervals


def mean_interval(values: Sequence[float], seed: int = 0) -> Estimate:
    column = np.asarray(values, dtype=np.float64)[:, None]
    (estimate,) = bootstrap(column, np.ones_like(column), seed=seed, shares=[True])
    assert estimate is not None
    return estimate


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


def test_all_wrong_is_not_certainly_zero() -> None:
    none_right = mean_interval([0.0] * 30)
    assert (none_right.value, none_right.low) == (0.0, 0.0)
    assert none_right.high == pytest.approx(1 - 0.025 ** (1 / 30))  # Clopper and Pearson
    all_right = mean_interval([1.0] * 30)
    assert all_right.low == pytest.approx(1 - none_right.high)


@pytest.mark.parametrize(
    ("chance", "freedom", "expected"),
    [(0.975, 1, 12.7062), (0.975, 2, 4.30265), (0.975, 29, 2.04523), (0.05, 10, -1.81246)],
)
def test_students_quantiles_are_those_of_the_tables(
    chance: float, freedom: float, expected: float
) -> None:
    assert student_quantile(chance, freedom) == pytest.approx(expected, rel=1e-5)


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


# ------------------------------------------------------------------------------ comparison


def result(shares: Sequence[float], k: int = 4, suite: str = "sums") -> dict[str, Any]:
    """A result as it stands in a file: each problem with this share of k samples right."""
    problems = [
        {
            "id": f"p{i}", "question": f"{i} + 1", "majority": float(share > 0.5),
            "samples": [{"correct": j < round(share * k), "length": 10 + i} for j in range(k)],
        }
        for i, share in enumerate(shares)
    ]  # fmt: skip
    return {"suite": suite, "k": k, "problems": problems}


def test_pairing_sees_what_two_intervals_side_by_side_do_not() -> None:
    draw = np.random.default_rng(0)
    base = draw.choice([0.0, 0.25, 0.5, 0.75], size=60)
    better = base + 0.25 * (draw.random(60) < 0.5)
    by_figure = {d.figure: d for d in compare([result(base)], [result(better)])}
    gain = by_figure["pass_at_1"]
    assert gain.value == pytest.approx(better.mean() - base.mean())
    assert 0 < gain.low < gain.value < gain.high
    assert gain.p_value < 1e-3
    assert mean_interval(list(base)).high > mean_interval(list(better)).low
    assert by_figure["length"].value == 0
    assert str(gain).count("[") == 1 and "p = " in str(gain)


def test_no_difference_is_none() -> None:
    draw = np.random.default_rng(1)
    one, two = (draw.choice([0.0, 0.5, 1.0], size=50) for _ in range(2))
    (gap, *_) = compare([result(one)], [result(two)])
    assert gap.low < 0 < gap.high and gap.p_value > 0.05
    same = compare([result(one)], [result(one)])[0]
    assert (same.value, same.p_value) == (0.0, 1.0)
    assert same.low < 0 < same.high  # that they never differ is not certain either


@pytest.mark.parametrize("second", [[0.5], []])
def test_a_difference_without_an_interval_is_refused(second: list[float]) -> None:
    with pytest.raises(R1labError, match=r"interval|each side"):
        compare([result([0.5, 1.0])], [result(second)] if second else [])


def test_problems_are_matched_by_what_they_ask() -> None:
    other = result([0.5, 1.0, 0.0])
    for row in other["problems"]:
        row["question"] += " ?"
    with pytest.raises(R1labError, match="0 problems"):
        compare([result([0.5, 1.0, 0.0])], [other])


def test_few_runs_make_wide_intervals() -> None:
    draw = np.random.default_rng(2)
    problems = draw.beta(2, 2, size=100)
    runs = [np.clip(problems + shift, 0, 1) for shift in (-0.1, 0.0, 0.12)]
    one = across_seeds([result(list(run), k=100) for run in runs])
    alone = mean_interval(list(runs[1]))
    assert one.high - one.low > alone.high - alone.low
    with pytest.raises(R1labError, match="two results"):
        across_seeds([result([0.5, 0.5])])
    values = np.array([[0.5, 0.7], [0.5, 0.7]])
    assert across_runs(values).value == pytest.approx(0.6)
    gap = compare([result(list(r), k=100) for r in runs], [result(list(r), k=100) for r in runs])
    assert gap[0].num_runs == (3, 3) and gap[0].value == pytest.approx(0) and gap[0].p_value > 0.9


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
    assert sampler.calls[0][1] == SamplingSettings(4, 1.0, 1.0, 20, seed=7)
    assert sampler.calls[1][1].temperature == 0

    overall = result.overall
    assert (overall.num_problems, overall.num_samples, overall.num_faults) == (2, 8, 1)
    value = {name: getattr(overall, name).value for name in (
        "pass_at_1", "cons_at_k", "format", "length", "length_right", "length_wrong",
        "truncated", "unanswered", "unparsable", "reward",
    )}  # fmt: skip
    assert value["pass_at_1"] == pytest.approx((2 / 4 + 1 / 4) / 2)  # the fault counts as wrong
    assert value["cons_at_k"] == pytest.approx((1 + 0) / 2)
    assert value["reward"] == pytest.approx((2 / 4 + 1 / 4) / 2)
    assert value["format"] == pytest.approx((3 / 4 + 1) / 2)
    assert value["truncated"] == value["unanswered"] == pytest.approx(1 / 8)
    assert value["unparsable"] == pytest.approx(1 / 8)
    assert value["length_right"] == pytest.approx((5 + 5 + 7) / 3)
    assert value["length_wrong"] == pytest.approx((5 + 4 + 5 + 5 + 5) / 5)
    assert overall.pass_at_k["1"] == overall.pass_at_1
    assert overall.pass_at_k["2"].value == pytest.approx((5 / 6 + 1 / 2) / 2)
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
    assert (faulted["correct"], faulted["score"]) == (False, None)
    assert "OSError: gone" in faulted["fault"]
    assert plain["overall"]["fault_share"] == 0.5
    assert plain["overall"]["pass_at_1"] is None  # too many faults for a figure
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
        ScoredGroup(
            groups[0], (Verdict(1.0, parts={"exact": 1.0}), Verdict(0.0, parts={"exact": 0.0}))
        ),
        ScoredGroup(groups[1], (Verdict(None), Verdict(0.1, parts={"format": 0.1}))),
    )
    result = judge(
        Asked(scored), verifiers, template=COMPACT, max_tokens=20,
        settings=EvaluationSettings(num_samples=2),
    )  # fmt: skip
    assert result.overall.num_problems == 1
    assert result.overall.num_faults == 0
    assert result.overall.pass_at_1 is not None
    assert result.overall.pass_at_1.value == 0.5


@pytest.mark.parametrize(("num_faults", "has_figures"), [(3, True), (4, False)])
def test_faulted_samples_count_as_wrong_up_to_a_share(
    verifiers: Verifiers, num_faults: int, has_figures: bool
) -> None:
    right, lost = Verdict(1.0, parts={"exact": 1.0}), Verdict(-1.0, parts={"exact": 0.0})
    outcomes = [*[ScoringFailure("timeout")] * num_faults, lost, *[right] * (14 - num_faults)]
    rollout = Rollout(problem(0), (1,), tuple(completion(says("1")) for _ in outcomes))
    settings = EvaluationSettings(num_samples=15)
    result = judge(
        Asked((ScoredGroup(rollout, tuple(outcomes)),)), verifiers, template=COMPACT,
        settings=settings, max_tokens=20,
    )  # fmt: skip
    overall = result.overall
    assert overall.fault_share == result.headline()["faulted"] == num_faults / 15
    assert overall.format is not None
    judged = (overall.pass_at_1, overall.cons_at_k, overall.reward, overall.length_wrong)
    assert all(figure is not None for figure in judged) == bool(overall.pass_at_k) == has_figures
    other = json.loads(json.dumps(result.as_dict()))
    other["problems"] *= 2
    other["problems"][1] = {**other["problems"][1], "id": "another"}
    told = {difference.figure: difference.first for difference in compare([other], [other])}
    if has_figures:
        assert [overall.pass_at_1.value, told["pass_at_1"]] == pytest.approx([11 / 15] * 2)
        assert overall.pass_at_k["8"].value == 1.0
        # a fault pays no more than the worst response that was judged
        assert overall.reward.value == pytest.approx((11 - 1 - 3) / 15)
    else:
        assert set(told) == {"length"}


def test_the_answers_of_faulted_samples_vote_as_wrong_ones() -> None:
    right = Verdict(1.0, "", {"accuracy": 1.0})
    asked = Rollout(
        problem(answer="1", verifier="math"), (1,),
        tuple(completion(says(text)) for text in ("1", "x", "x", "y", "no answer")),
    )  # fmt: skip
    outcomes = (
        right,
        ScoringFailure("timeout"),
        ScoringFailure("timeout"),
        ScoringFailure("timeout"),
        ScoringFailure("timeout"),
    )
    verifiers = Verifiers([RewardSettings(reward="problem")], template=COMPACT)
    (groups,) = answer_groups([ScoredGroup(asked, outcomes)], verifiers)
    assert groups[1] == groups[2] and len(set(groups)) == 4
    assert maj_at_k(groups, [group == 0 for group in groups]) == 0.0


def test_different_problems_of_one_id_are_refused(verifiers: Verifiers) -> None:
    with pytest.raises(R1labError, match="two problems have the id 'p0'"):
        evaluate(
            ScriptedSampler([]), [problem(0), problem(0, question="2 + 2")], verifiers,
            encode=encode, template=COMPACT, settings=SETTINGS, max_tokens=20,
        )  # fmt: skip


def test_each_process_of_a_launch_draws_its_own_samples(
    verifiers: Verifiers, monkeypatch: pytest.MonkeyPatch
) -> None:
    seeds = []
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        sampler = ScriptedSampler([[says("1")] * 4])
        evaluate(
            sampler, [problem(0)], verifiers, encode=encode, template=COMPACT, settings=SETTINGS,
            max_tokens=20,
        )  # fmt: skip
        seeds.append(sampler.calls[0][1].seed)
    assert seeds[0] == SETTINGS.seed != seeds[1]
