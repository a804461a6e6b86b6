"""The papers' figures: each value checked against what the papers' text says of it."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest

from r1lab.config.reading import load_recipe
from r1lab.report.paper import (
    R1_ZERO_CAP_RAISED_AT,
    R1_ZERO_REFERENCE_EVERY,
    R1_ZERO_STEPS,
    cap_raised_share,
    paper_curves,
    paper_folder,
    paper_table,
)
from r1lab.types import R1labError


@pytest.mark.parametrize("curve", paper_curves().values(), ids=lambda curve: curve.name)
def test_a_curve_is_whole(curve):
    assert len(curve.steps) == len(curve.values) == len(curve.shares) > 20
    assert all(a < b for a, b in pairwise(curve.steps))
    assert 0 <= curve.shares[0] < curve.shares[-1] < 1  # v1 draws no more than four fifths
    assert min(curve.values) > 0 and (curve.unit == "tokens" or max(curve.values) < 1)
    assert "paper" in curve.label and "arXiv" in curve.source


def test_accuracy_rises_from_15_6_to_71_per_cent_and_votes_to_86_7():
    """arXiv 2501.12948 v1 says these three figures in words too."""
    curves = paper_curves()
    once, voted = curves["r1_zero_pass_at_1"], curves["r1_zero_cons_at_16"]
    assert (once.values[0], once.values[-1]) == pytest.approx((0.156, 0.71))
    assert max(voted.values) == pytest.approx(0.867)
    assert once.steps == voted.steps
    assert all(a < b for a, b in zip(once.values, voted.values, strict=True))


def test_length_grows_from_hundreds_to_thousands_of_tokens():
    length = paper_curves()["r1_zero_length"]
    assert length.values[0] < 1000 and length.values[-1] > 9000 and length.unit == "tokens"


def test_the_cap_rises_at_79_per_cent():
    assert round(cap_raised_share(), 2) == 0.79
    for curve in paper_curves().values():
        assert curve.total_steps == R1_ZERO_STEPS
        assert curve.shares[-1] > cap_raised_share()  # every curve reaches the raise


def test_the_recipe_of_r1_zero_has_its_schedule_in_rollouts():
    """A step of the paper is an update; a step of a recipe is a rollout of 16 updates."""
    recipe = load_recipe("reproduce/gpu/deepseek_v3")
    updates = recipe.algorithm.updates_per_step
    assert recipe.steps * updates == R1_ZERO_STEPS
    assert recipe.algorithm.reference_every * updates == R1_ZERO_REFERENCE_EVERY
    raised = recipe.sampling.cap_raise
    assert raised is not None and raised.after_step == R1_ZERO_CAP_RAISED_AT // updates
    assert recipe.sampling.questions_per_step * recipe.sampling.group_size == 8192


def test_shares_are_of_the_whole_run():
    curve = replace(paper_curves()["r1_zero_length"], steps=(0, 5200), values=(1.0, 2.0))
    assert curve.shares == (0.0, 0.5)


def test_every_file_is_named_with_its_source_and_has_whole_rows():
    readme = (paper_folder() / "README.md").read_text()
    files = sorted(path.name for path in paper_folder().glob("*.csv"))
    assert files
    for file in files:
        assert f"`{file}`" in readme
        rows = paper_table(file)
        assert rows and all(None not in row and None not in row.values() for row in rows)


def test_costs_add_up():
    """Hours are rounded to thousands in the papers; dollars are two an hour."""
    hours = {row["what"]: int(row["gpu_hours"]) for row in paper_table("costs.csv")}
    for total, parts in (("DeepSeek-V3 total", "DeepSeek-V3"), ("R1 total", "R1")):
        of_it = [num for what, num in hours.items() if what.startswith(parts) and what != total]
        assert sum(of_it) == hours[total]
    for row in paper_table("costs.csv"):
        assert int(row["usd_at_2_per_hour"]) == 2 * int(row["gpu_hours"])


def test_a_file_that_is_not_there():
    with pytest.raises(R1labError, match=r"there are costs\.csv"):
        paper_table("none.csv")
