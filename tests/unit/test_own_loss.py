"""A loss of the user's own: found by `file.py:function`, held to its contract, refused in words."""

from __future__ import annotations

import pytest
import torch
from records import scored_group

from r1lab.config.reading import load_recipe
from r1lab.grpo.advantage import group_advantages
from r1lab.grpo.loss import find_loss, policy_loss
from r1lab.types import R1labError, RecipeError

REINFORCE = """
from r1lab.grpo.loss import Loss
def term(log_ratio, advantages, logp, options):
    return -log_ratio.exp() * advantages
def loss():
    return Loss(term, level="token", aggregation="sequence_mean")
def other():
    return 3
def total():
    return Loss(lambda *given: term(*given).sum(), level="token", aggregation="token_mean")
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(REINFORCE)
    return path


def loss_of(name: str, logp: torch.Tensor) -> torch.Tensor:
    old, advantages = torch.tensor([-1.0, -2.0, -0.5]), torch.tensor([1.0, -2.0])
    value, _ = policy_loss(
        logp, old, advantages, torch.tensor([2, 1]), loss=name, denominator=2.0
    )  # fmt: skip
    return value


def test_it_is_averaged_as_it_says_and_differentiated(file):
    logp = torch.tensor([-0.9, -2.3, -0.5], requires_grad=True)
    value = loss_of(str(file), logp)
    w = [2.718281828459045**x for x in (0.1, -0.3, 0.0)]
    # sequence_mean: each token over its sequence's length, the sum over two sequences
    assert value.item() == pytest.approx((-(w[0] + w[1]) / 2 + 2 * w[2]) / 2, rel=1e-6)
    value.backward()
    expected = [-w[0] / 4, -w[1] / 4, w[2]]
    assert logp.grad.tolist() == pytest.approx(expected, rel=1e-6)


def test_without_a_clip_it_is_the_clipped_one_within_the_clip(file):
    logp = torch.tensor([-0.95, -2.05, -0.5])
    assert loss_of(str(file), logp).item() == pytest.approx(loss_of("grpo", logp).item())


def test_what_it_must_return_is_told(file):
    with pytest.raises(RecipeError, match=r"algorithm.loss: .* returned int, not an .*Loss"):
        find_loss(f"{file}:other")
    with pytest.raises(RecipeError, match="returns a Loss"):
        find_loss(f"{file}:term")
    with pytest.raises(RecipeError, match="did you mean 'term'"):
        find_loss(f"{file}:tem")
    with pytest.raises(R1labError, match="one term per token"):
        loss_of(f"{file}:total", torch.zeros(3))


ADVANTAGE = """
def advantage(groups, total):
    (count,) = total([float(sum(map(len, groups)))])
    return [[score / count for score in scores] for scores in groups]
def short(groups, total):
    return [scores[1:] for scores in groups]
def infinite(groups, total):
    return [[float("inf")] * len(scores) for scores in groups]
"""


def test_an_advantage_of_ones_own_is_found_beside_the_recipe_and_checked(tmp_path):
    (tmp_path / "mine.py").write_text(ADVANTAGE)
    (tmp_path / "r.yaml").write_text("extends: quickstart\nalgorithm: {advantage: mine.py}\n")
    name = load_recipe(tmp_path / "r.yaml").algorithm.advantage
    assert name == str(tmp_path / "mine.py")
    groups = [scored_group(scores=[1.0, 0.0]), scored_group(scores=[2.0, 1.0])]
    assert group_advantages(groups, name) == [[0.25, 0.0], [0.5, 0.25]]
    # The sums are over the processes of a launch: two that hold the same, here.
    both = group_advantages(groups, name, total=lambda sums: [2 * value for value in sums])
    assert both == [[0.125, 0.0], [0.25, 0.125]]
    for function in ("short", "infinite", "missing"):
        with pytest.raises(RecipeError, match=r"algorithm\.advantage"):
            group_advantages(groups, f"{name}:{function}")
    with pytest.raises(RecipeError, match=r"algorithm\.advantage"):
        load_recipe("quickstart", [("algorithm.advantage", "std")])


def test_a_recipe_names_the_file_beside_it(file, tmp_path):
    (tmp_path / "r.yaml").write_text("extends: quickstart\nalgorithm: {loss: mine.py}\n")
    recipe = load_recipe(tmp_path / "r.yaml")
    assert recipe.algorithm.loss == str(file.resolve())
    assert find_loss(recipe.algorithm.loss).aggregation == "sequence_mean"
