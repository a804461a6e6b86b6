"""The curriculum: shares from pass rates by hand, levels by source and by key, what is refused."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from accelerate import Accelerator

from r1lab.config.recipe import (
    CurriculumSettings,
    OptimizerSettings,
    ProblemSettings,
    RewardSettings,
    SamplingRecipe,
    SourceSettings,
    TrainRecipe,
)
from r1lab.grpo.policy import Policy
from r1lab.grpo.step import rl_step
from r1lab.problems.curriculum import LEVEL, Curriculum
from r1lab.problems.mixture import ProblemMixture, ReplayedProblems, ShuffledProblems
from r1lab.problems.registry import load_training
from r1lab.prompts import TEMPLATES
from r1lab.rollout.hf_sampler import TransformersSampler
from r1lab.rollout.source import RolloutSource
from r1lab.types import Problem, RecipeError
from r1lab.verify import Verifiers


class Endless:
    """Problem i of a kind; its `size` goes 2, 3, 4, 2, 3, 4, ..."""

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def __getitem__(self, index: int) -> Problem:
        return Problem(f"{self.kind}-{index}", "", "", "math", "", {"size": 2 + index % 3})

    def __iter__(self):
        raise AssertionError("read by index")


def curriculum(weights: Sequence[float] = (1, 1), **settings: Any) -> Curriculum:
    names = [f"kind{i}" for i in range(len(weights))]
    mixture = ProblemMixture([Endless(name) for name in names], weights, 0, names)
    return Curriculum(mixture, CurriculumSettings(**settings))


def test_shares_by_hand() -> None:
    levels = curriculum(weights=(1, 3), min_share=0.1)
    assert levels.shares == pytest.approx([0.1 + 0.8 * 0.25, 0.1 + 0.8 * 0.75])  # p = 1/2 for both
    figures = levels.observe([(1, 8), (7, 8)])
    assert figures == {
        "level_pass/kind0": 0.125, "level_share/kind0": pytest.approx(0.3),
        "level_pass/kind1": 0.875, "level_share/kind1": pytest.approx(0.7),
    }  # fmt: skip
    assert levels.pass_rates() == pytest.approx([0.2, 0.8])
    assert levels.shares == pytest.approx([0.3, 0.7])  # as far from 1/2 on either side
    levels.observe([(0, 0), (7, 8)])
    assert levels.pass_rates() == pytest.approx([2 / 10, 15 / 18])
    q = 1 * 0.2 * 0.8 / (1 * 0.2 * 0.8 + 3 * (15 / 18) * (3 / 18))
    assert levels.shares == pytest.approx([0.1 + 0.8 * q, 0.9 - 0.8 * q])


def test_a_level_that_was_not_asked_has_no_rate_and_counts_as_half() -> None:
    levels = curriculum()
    assert levels.observe([(0, 0), (0, 64)])["level_pass/kind0"] is None
    assert levels.pass_rates()[0] == 0.5
    assert levels.shares[0] > 0.85


@pytest.mark.parametrize("target", [0.2, 0.5, 0.7])
def test_the_share_is_highest_at_the_target(target: float) -> None:
    rates = [i / 10 for i in range(1, 10)]
    levels = curriculum(weights=[1] * len(rates), target=target, min_share=0)
    # So many answers that the two which are added do not matter.
    levels.observe([(rate * 1e9, 1e9) for rate in rates])
    best = max(range(len(rates)), key=levels.shares.__getitem__)
    assert rates[best] == target
    assert levels.shares[: best + 1] == sorted(levels.shares[: best + 1])
    assert levels.shares[best:] == sorted(levels.shares[best:], reverse=True)


def test_no_level_is_lost_from_sight_and_the_window_forgets() -> None:
    levels = curriculum(weights=(1, 1, 1), min_share=0.05, window=2)
    levels.observe([(0, 10_000), (10_000, 10_000), (50, 100)])
    assert levels.shares == pytest.approx([0.05, 0.05, 0.9], abs=0.01)
    for _ in range(2):
        levels.observe([(0, 0)] * 3)
    assert levels.shares == pytest.approx([1 / 3] * 3)


def test_every_stretch_has_each_level_by_its_share() -> None:
    levels = curriculum(weights=(1, 2, 5), min_share=0.0)
    for start, stride, num in ((0, 1, 64), (1000, 1, 32), (7, 2, 32), (5, 4, 100)):
        asked = Counter(levels.level_at(start + stride * i) for i in range(num))
        for level, share in enumerate(levels.shares):
            assert abs(asked[level] - share * num) <= 3, (start, stride, level)


def test_processes_ask_together_what_one_asks_and_nothing_twice() -> None:
    levels = curriculum(weights=(1, 2))
    one = [levels[i].id for i in range(64)]
    assert len(set(one)) == 64
    other = curriculum(weights=(1, 2))  # as another process has it
    assert [other[i].id for rank in range(2) for i in range(rank, 64, 2)] == one[::2] + one[1::2]
    assert {levels[i].metadata[LEVEL] for i in range(64)} == {"kind0", "kind1"}


def test_it_goes_on_with_what_was_counted() -> None:
    levels = curriculum(window=3)
    for step in range(5):
        levels.observe([(step, 16), (16 - 2 * step, 16)])
    buffer = io.BytesIO()
    state = levels.state_dict()
    torch.save(state, buffer)
    expected = levels.shares
    levels.observe([(16, 16), (8, 16)])
    buffer.seek(0)
    restored = curriculum(window=3)
    restored.load_state_dict(torch.load(buffer, weights_only=True))
    assert restored.shares == expected != levels.shares  # the state is no view of what moves on
    restored.observe([(16, 16), (8, 16)])
    assert restored.shares == levels.shares
    with pytest.raises(RecipeError, match="began with the levels kind0, kind1 and now there are"):
        curriculum(weights=(1, 1, 1)).load_state_dict(state)


def test_answers_are_counted_by_the_level_that_they_came_from() -> None:
    levels = curriculum()
    problems = [levels[i] for i in range(8)]
    expected = [[0.0, 0.0], [0.0, 0.0]]
    for i, problem in enumerate(problems):
        level = int(problem.metadata[LEVEL][-1])
        expected[level][0] += i % 2
        expected[level][1] += 2
    counted = levels.count([(problem, [i % 2 == 1, False]) for i, problem in enumerate(problems)])
    assert [list(pair) for pair in counted] == expected


def test_levels_by_a_key_of_an_endless_stream() -> None:
    mixture = ProblemMixture([Endless("a"), Endless("b")], [1, 1])
    levels = Curriculum(mixture, CurriculumSettings(by="size"))
    assert levels.names == ["2", "3", "4"]
    assert levels.shares == pytest.approx([1 / 3] * 3, abs=0.01)
    problems = [levels[i] for i in range(60)]
    assert all(str(p.metadata["size"]) == p.metadata[LEVEL] for p in problems)
    assert len({problem.id for problem in problems}) == 60


def test_levels_by_a_key_of_a_table() -> None:
    rows = [
        Problem(str(i), "", "", "math", "", {"level": level})
        for i, level in enumerate([10] * 6 + [9] * 3 + ["hard"])
    ]
    mixture = ProblemMixture([ShuffledProblems(rows, 0)], [1], 0, ["table"])
    levels = Curriculum(mixture, CurriculumSettings(by="level", min_share=0))
    assert levels.names == ["9", "10", "hard"]  # by size, words last
    assert levels.shares == pytest.approx([0.3, 0.6, 0.1])
    assert {levels[i].id for i in range(100)} == {row.id for row in rows}


def test_a_level_that_no_longer_comes_is_told(monkeypatch) -> None:
    monkeypatch.setattr("r1lab.problems.curriculum._MOST_PASSED_OVER", 50)
    once = [Problem(str(i), "", "", "math", "", {"rare": i == 3}) for i in range(2000)]
    mixture = ProblemMixture([ReplayedProblems(once, "once")], [1])
    levels = Curriculum(mixture, CurriculumSettings(by="rare"))
    with pytest.raises(
        RecipeError, match="no rare True among 50 problems in a row, after 1 of them"
    ):
        for index in range(100):
            levels[index]


@pytest.mark.parametrize(
    ("sources", "settings", "message"),
    [
        (["boxes"], {}, "'source' makes one level only .boxes.; a curriculum needs two"),
        (["boxes"], {"by": "colour"}, r"has no 'colour' in its metadata .it has: moves, start."),
        (["boxes", "parity"], {"min_share": 0.6}, r"min_share: 0.6 for each of 2 levels .* 1 / 2"),
    ],
)
def test_what_is_no_curriculum_is_refused(sources, settings, message) -> None:
    problems = ProblemSettings(
        sources=tuple(SourceSettings(source=name) for name in sources),
        curriculum=CurriculumSettings(**settings),
    )
    with pytest.raises(RecipeError, match=f"problems.curriculum.*{message}"):
        load_training(problems)


def test_without_a_curriculum_the_mixture_is_what_it_was() -> None:
    problems = ProblemSettings(sources=(SourceSettings(source="boxes"),))
    assert isinstance(load_training(problems), ProblemMixture)


def test_entries_of_one_source_are_told_apart(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from r1lab.types import Problem\n"
        "def load(split):\n"
        "    return [Problem('0', 'q', 'a', 'math')]\n"
    )
    entries = ["boxes", "boxes", f"{tmp_path}/mine.py:load"]
    problems = ProblemSettings(
        sources=tuple(SourceSettings(source=name) for name in entries),
        curriculum=CurriculumSettings(),
    )
    levels = load_training(problems)
    assert isinstance(levels, Curriculum) and levels.names == ["boxes.0", "boxes.1", "mine"]


TASK = """
from r1lab.types import Problem

def load(split, *, kind):
    return [Problem(f"{kind}{i}", f"w{i} w{i + 1}", kind, "none") for i in range(20)]

def reward(problem, completion):
    return float(problem.answer == "easy" or sum(completion.token_ids) % 2)
"""


def test_steps_move_the_shares_and_a_restored_run_takes_the_same_ones(tmp_path: Path) -> None:
    """Real steps: a level that is always solved is asked less, and resuming changes nothing."""
    task = tmp_path / "task.py"
    task.write_text(TASK)
    recipe = TrainRecipe(
        name="levels", template="plain",
        problems=ProblemSettings(
            sources=tuple(
                SourceSettings(source=str(task), options={"kind": kind}) for kind in ("easy", "odd")
            ),
            curriculum=CurriculumSettings(window=2),
        ),
        rewards=(RewardSettings(reward=str(task), isolate=False),),
        sampling=SamplingRecipe(questions_per_step=8, group_size=2, max_tokens=4),
        optimizer=OptimizerSettings(learning_rate=1e-3),
    )  # fmt: skip
    torch.manual_seed(0)
    model = tiny.LlamaForCausalLM(tiny.llama_config(hidden_size=32, num_hidden_layers=1))
    folder, template = tiny.save(model, tmp_path / "model"), TEMPLATES["plain"]
    verifiers = Verifiers(recipe.rewards, template=template)

    def pieces() -> tuple[Policy, RolloutSource]:
        policy = Policy(
            tiny.LlamaForCausalLM.from_pretrained(folder), optimizer=recipe.optimizer,
            total_updates=4, temperature=1.0, accelerator=Accelerator(cpu=True),
        )  # fmt: skip
        sampler = TransformersSampler(folder, tiny.tokenizer(), dtype="float32")
        source = RolloutSource(
            load_training(recipe.problems), sampler, tiny.tokenizer(), template, recipe.sampling
        )
        return policy, source

    policy, source = pieces()
    source.start(policy)
    metrics = [rl_step(policy, source, verifiers, recipe).metrics for _ in range(2)]
    buffer = io.BytesIO()
    torch.save((policy.state_dict(), source.state_dict()), buffer)
    metrics += [rl_step(policy, source, verifiers, recipe).metrics for _ in range(2)]
    assert [m["level_pass/task.0"] for m in metrics] == [1.0] * 4
    shares = [m["level_share/task.0"] for m in metrics]
    assert shares[0] == 0.5 and all(share < 0.4 for share in shares[1:])

    buffer.seek(0)
    saved_policy, saved_source = torch.load(buffer, weights_only=True)
    policy, source = pieces()
    policy.load_state_dict(saved_policy)
    source.load_state_dict(saved_source)
    source.start(policy)
    assert [rl_step(policy, source, verifiers, recipe).metrics for _ in range(2)] == metrics[2:]
