"""Loading rewards, calling both signatures, and what happens when one misbehaves."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from pathlib import Path
from textwrap import dedent

import pytest
from records import COMPACT, problem, rollout

from r1lab.config.recipe import RewardSettings
from r1lab.prompts import TEMPLATES
from r1lab.types import (
    Outcome,
    R1labError,
    RecipeError,
    Rollout,
    ScoredGroup,
    ScoringFailure,
    Verdict,
)
from r1lab.verify import (
    Reward,
    RewardCall,
    RewardError,
    TrainerState,
    Verifiers,
    call_reward,
    load_reward,
)
from r1lab.verify.check import respond
from r1lab.verify.verifiers import RESERVED_METRICS

RIGHT, WRONG = " so </think> <answer> 1 </answer>", " so </think> <answer> 9 </answer>"


@pytest.fixture
def write(tmp_path: Path):
    """Write a reward file and return its path."""

    def write(source: str, name: str = "mine.py") -> str:
        path = tmp_path / name
        path.write_text(dedent(source).lstrip())
        return str(path)

    return write


EXACT = """
    from r1lab.types import Verdict

    def reward(problem, completion, full=1.0):
        if completion.answer == problem.answer:
            return Verdict(full, "right")
        return Verdict(0.0, f"{completion.answer} is not {problem.answer}")
"""
TRL = """
    def reward(prompts, completions, completion_ids, answer, **columns):
        return [
            None if "skip" in completion else float(f"<answer> {gold} </answer>" in completion)
            for completion, gold in zip(completions, answer)
        ]
"""


def verifiers(*rewards: str | RewardSettings) -> Verifiers:
    settings = [RewardSettings(reward=r) if isinstance(r, str) else r for r in rewards]
    return Verifiers(settings, template=COMPACT)


def scores(scored: Sequence[ScoredGroup]) -> list[list[float | str | None]]:
    return [
        [o.score if isinstance(o, Verdict) else o.kind for o in group.outcomes] for group in scored
    ]


# ---------------------------------------------------------------------------- signatures


def test_both_signatures_judge_alike(write) -> None:
    rollouts = [rollout(0, RIGHT, WRONG), rollout(1, WRONG), rollout(0, RIGHT)]
    for source in (EXACT, TRL):
        reward = write(source, f"r{len(source)}.py")
        assert scores(verifiers(reward).score(rollouts)) == [[1.0, 0.0], [0.0], [1.0]]


def test_trl_columns(write, tmp_path: Path) -> None:
    path = write(
        """
        seen = {}

        def reward(completions, **columns):
            seen.update(columns, completions=completions)
            return [0] * len(completions)
        """
    )
    loaded = load_reward(path)
    first, second = problem(0, metadata={"level": 3}), problem(1, metadata={"unit": "cm"})
    groups = [rollout(0, RIGHT, WRONG), rollout(1, "x")]
    items = [
        RewardCall(p, c, COMPACT.prompt(p.question), TrainerState(7, 9))
        for p, group in zip((first, second), groups, strict=True)
        for c in group.completions
    ]
    call_reward(loaded, items)
    seen = loaded.function().__globals__["seen"]
    assert callable(seen.pop("log_extra")) and callable(seen.pop("log_metric"))
    assert seen == {
        "prompts": ["User: 0 + 1 Assistant: <think>"] * 2 + ["User: 1 + 1 Assistant: <think>"],
        "completions": [RIGHT, WRONG, "x"],
        "completion_ids": [[5, 6, 7]] * 3,
        "question": ["0 + 1", "0 + 1", "1 + 1"],
        "answer": ["1", "1", "2"],
        "level": [3, 3, None],
        "unit": [None, None, "cm"],
        "trainer_state": TrainerState(global_step=7, max_steps=9),
    }


def test_trl_async_and_named_columns_only(write) -> None:
    path = write(
        """
        async def reward(completions, answer):
            return [float(gold in text) for text, gold in zip(completions, answer)]
        """
    )
    assert scores(verifiers(path).score([rollout(0, RIGHT, WRONG)])) == [[1.0, 0.0]]


def test_missing_column_is_an_error(write) -> None:
    path = write("def reward(completions, anwser):\n    return [0.0] * len(completions)\n")
    with pytest.raises(RewardError, match=r"column 'anwser'.*did you mean 'answer'.*question"):
        verifiers(path).score([rollout(0, RIGHT)])


@pytest.mark.parametrize(
    ("signature", "message"),
    [
        ("text", "no signature of a reward"),
        ("problem, completions_", "no signature of a reward"),
        ("problem, completion, completions", "mixes two signatures"),
    ],
)
def test_signature_of_neither_kind(write, signature: str, message: str) -> None:
    path = write(f"\n\ndef reward({signature}):\n    return 0.0\n")
    with pytest.raises(
        RecipeError, match=rf"{message} .*mine.py, line \d\); write reward\(problem"
    ):
        load_reward(path)


def test_options(write) -> None:
    path = write(EXACT)
    two = RewardSettings(reward=path, options={"full": 2.0})
    assert scores(verifiers(two).score([rollout(0, RIGHT)])) == [[2.0]]
    with pytest.raises(RecipeError, match=r"options\.ful: unknown option.*did you mean 'full'"):
        load_reward(path, {"ful": 1})
    needs = write("def reward(problem, completion, *, scale):\n    return scale\n", "needs.py")
    with pytest.raises(RecipeError, match=r"options\.scale: missing"):
        load_reward(needs)


def test_a_reward_travels_to_another_process(write) -> None:
    loaded = load_reward(write(EXACT))
    assert pickle.loads(pickle.dumps(loaded)) == loaded
    assert loaded.style == "single"
    assert loaded.short_name == "mine"


# -------------------------------------------------------------------------- adding up


def test_weights_parts_and_reasons(write) -> None:
    exact = write(EXACT, "exact.py")
    short = write("def brief(problem, completion):\n    return 0.5\n", "lengths.py")
    both = verifiers(
        RewardSettings(reward=exact), RewardSettings(reward=f"{short}:brief", weight=0.2)
    )
    assert both.names == ("exact", "brief")
    assert both.accuracy == "exact"
    (scored,) = both.score([rollout(0, RIGHT, WRONG)])
    assert scored.outcomes == (
        Verdict(1.1, "exact: right", {"exact": 1.0, "brief": 0.5}),
        Verdict(0.1, "exact: 9 is not 1", {"exact": 0.0, "brief": 0.5}),
    )


def test_what_does_not_apply_is_left_out(write) -> None:
    exact, trl = write(EXACT, "exact.py"), write(TRL, "sometimes.py")
    (scored,) = verifiers(exact, trl).score([rollout(0, "skip" + RIGHT)])
    assert scored.outcomes == (Verdict(1.0, "exact: right", {"exact": 1.0}),)
    (scored,) = verifiers(trl).score([rollout(0, "skip")])
    assert scored.outcomes == (Verdict(None, "", {}),)


def test_a_verdicts_own_parts_keep_their_place(write) -> None:
    path = write(
        """
        from r1lab.types import Verdict
        def reward(problem, completion):
            return Verdict(0.5, parts={"steps": 2.0})
        """
    )
    (scored,) = verifiers(path, path).score([rollout(0, RIGHT)])
    (verdict,) = scored.outcomes
    assert isinstance(verdict, Verdict)
    assert verdict.parts == {"mine": 0.5, "mine.steps": 2.0, "mine_2": 0.5, "mine_2.steps": 2.0}


def test_problem_dispatches_on_the_problems_verifier(write) -> None:
    one = write("def reward(problem, completion):\n    return 1.0\n", "one.py")
    two = write("def reward(completions, **_):\n    return [2.0] * len(completions)\n", "two.py")
    mixed = [
        Rollout(problem(i, verifier=v), (1,), rollout(i, RIGHT, WRONG).completions)
        for i, v in enumerate([one, two, one])
    ]
    both = verifiers("problem")
    assert both.names == ("accuracy",)
    result = both.score(mixed)
    assert scores(result) == [[1.0, 1.0], [2.0, 2.0], [1.0, 1.0]]
    assert result[1].outcomes[0] == Verdict(2.0, "", {"accuracy": 2.0})
    assert [group.rollout for group in result] == mixed


def test_unknown_verifier_of_a_problem_names_it() -> None:
    unknown = Rollout(problem(0, verifier="boxs"), (1,), rollout(0, RIGHT).completions)
    with pytest.raises(R1labError, match=r"verifier 'boxs'"):
        verifiers("problem").score([unknown])


def test_nothing_to_score(write) -> None:
    empty = Rollout(problem(0), (1,), ())
    assert verifiers(write(TRL)).score([]) == []
    assert verifiers(write(TRL)).score([empty]) == [ScoredGroup(empty, ())]


# -------------------------------------------------------------------------- misbehaviour


def test_exception_is_a_fault_in_its_place(write) -> None:
    single = write(
        """
        def helper(text):
            return 1 / text.count("</think>")

        def reward(problem, completion):
            return helper(completion.text)
        """
    )
    (scored,) = verifiers(single).score([rollout(0, RIGHT, "no end", WRONG)])
    assert [type(outcome) for outcome in scored.outcomes] == [Verdict, ScoringFailure, Verdict]
    fault = scored.outcomes[1]
    assert isinstance(fault, ScoringFailure)
    assert fault.kind == "exception"
    assert fault.detail.startswith("mine: ZeroDivisionError: ")
    assert fault.detail.endswith("mine.py, line 2)")


def test_exception_in_a_batch_costs_only_those_that_raise(write) -> None:
    batched = write(
        """
        def reward(completions, **columns):
            return [1 / text.count("</think>") for text in completions]
        """
    )
    (scored,) = verifiers(batched).score([rollout(0, RIGHT, "no end", WRONG)])
    assert [type(outcome) for outcome in scored.outcomes] == [Verdict, ScoringFailure, Verdict]


def test_fault_in_one_reward_is_the_outcome(write) -> None:
    bad = write("def reward(problem, completion):\n    raise KeyError('x')\n", "bad.py")
    (scored,) = verifiers(write(EXACT), bad).score([rollout(0, RIGHT)])
    (fault,) = scored.outcomes
    assert isinstance(fault, ScoringFailure)
    assert fault.detail.startswith("bad: KeyError: 'x'")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("[0.0]", "returned 1 scores for 2 completions"),
        ("0.0", "returned float; return a list of 2 numbers"),
        ("{'a': 1}", "returned dict"),
        ("'01'", "returned str"),
        ("[0.0, float('nan')]", "returned nan for problem p0"),
        ("[0.0, float('inf')]", "returned inf for problem p0"),
        ("[0.0, '1.0']", r"returned '1.0' \(str\) for problem p0; a score is a number"),
    ],
)
def test_broken_contract_names_the_file_and_line(write, body: str, message: str) -> None:
    path = write(f"# a comment\ndef reward(completions, **_):\n    return {body}\n")
    with pytest.raises(RewardError, match=message) as error:
        verifiers(path).score([rollout(0, RIGHT, WRONG)])
    assert "reward (" in str(error.value)
    assert "mine.py, line 2)" in str(error.value)


@pytest.mark.parametrize(
    ("value", "score"), [("True", 1.0), ("1", 1.0), ("np.float32(0.5)", 0.5), ("None", None)]
)
def test_numbers_of_all_sorts(write, value: str, score: float | None) -> None:
    path = write(f"import numpy as np\ndef reward(problem, completion):\n    return {value}\n")
    assert scores(verifiers(path).score([rollout(0, RIGHT)])) == [[score]]


@pytest.mark.parametrize("score", ["float('nan')", "'1'", "float('inf')"])
@pytest.mark.parametrize("signature", ["problem, completion", "completions, **_"])
def test_a_verdict_that_cannot_be_is_no_quiet_fault(write, score: str, signature: str) -> None:
    verdict = f"Verdict({score})"
    returned = verdict if "problem" in signature else f"[{verdict} for _ in completions]"
    path = write(
        f"""
        from r1lab.types import Verdict

        def reward({signature}):
            return {returned}
        """
    )
    with pytest.raises(RewardError, match=r"mine.py, line 4\): a score is a finite number or None"):
        verifiers(path).score([rollout(0, RIGHT, WRONG)])


def test_figures_of_rewards_clash_with_no_other(write) -> None:
    judge = "def reward(problem, completion):\n    return 0.5\n"
    files = [write(judge, f"{name}.py") for name in ("length", "reward", "accuracy", "brevity")]
    several = verifiers(*files, "problem", files[0])
    assert several.names == (
        "length", "reward", "accuracy_2", "brevity", "accuracy", "length_2"
    )  # fmt: skip
    assert several.figures == (
        "length_reward", "reward_reward", "accuracy_2", "brevity", "accuracy", "length_2"
    )  # fmt: skip
    assert several.accuracy == "accuracy"
    assert not RESERVED_METRICS & set(several.figures)


# ----------------------------------------------------------------------------- runners


def test_a_runner_decides_where_rewards_run(write) -> None:
    class Refusing:
        """Stands for a wall that gives up on every second item."""

        def run(self, reward: Reward, items: Sequence[RewardCall]) -> list[Outcome]:
            done = call_reward(pickle.loads(pickle.dumps(reward)), items)
            return [
                ScoringFailure("timeout") if i % 2 else outcome for i, outcome in enumerate(done)
            ]

    walled = Verifiers([RewardSettings(reward=write(EXACT))], template=COMPACT, runner=Refusing())
    result = walled.score([rollout(0, RIGHT, WRONG), rollout(0, RIGHT)])
    assert scores(result) == [[1.0, "timeout"], [1.0]]


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_response_as_a_model_could_have_written_it_is_read_back(name: str) -> None:
    template = TEMPLATES[name]
    written = respond(template, r"\frac{1}{2}")
    assert written.answer == r"\frac{1}{2}"
    assert respond(template, None).answer is None
    assert template.prompt("1 + {1}?").count("1 + {1}?") == 1
