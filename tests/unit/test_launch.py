"""What a launch asks for: read, refused where it cannot be had, and shared out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from r1lab.config.recipe import TrainRecipe
from r1lab.grpo.distributed import equalize_microbatches
from r1lab.launch import check_launch, cpu_processes, idle_cores
from r1lab.model.shard import Parts, joined, parts_of
from r1lab.rollout.source import redistribute_state
from r1lab.types import RecipeError

LAUNCHERS = Path(__file__).parents[2] / "recipes" / "accelerate"


def recipe(**changes: Any) -> TrainRecipe:
    sources = {"sources": [{"source": "boxes"}]}
    return TrainRecipe.model_validate({"name": "x", "problems": sources, **changes})


def environment(config: dict[str, Any]) -> dict[str, str]:
    """What `accelerate launch` sets for a configuration with FSDP."""
    fsdp = config.get("fsdp_config", {})
    return {
        "ACCELERATE_USE_FSDP": str(config["distributed_type"] == "FSDP").lower(),
        **{key.upper(): str(value).lower() for key, value in fsdp.items()},
    }


@pytest.mark.parametrize("path", sorted(LAUNCHERS.glob("*.yaml")), ids=lambda path: path.name)
def test_what_ships_is_taken(path: Path) -> None:
    config = yaml.safe_load(path.read_text())
    world = config["num_processes"]
    settings = {"questions_per_step": 2 * world, "group_size": 4}
    check_launch(recipe(sampling=settings), world, environment(config))


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"ACCELERATE_USE_DEEPSPEED": "true"}, "DeepSpeed .*FSDP2 shards as ZeRO-3 does"),
        ({"ACCELERATE_USE_MEGATRON_LM": "true"}, "Megatron-LM"),
        ({"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "1"}, "fsdp_version: 1 .*only 2"),
        ({"ACCELERATE_USE_FSDP": "1", "FSDP_OFFLOAD_PARAMS": "true"}, "fsdp_offload_params: true"),
    ],
)  # fmt: skip
def test_a_launch_that_cannot_be_had_is_refused(variables: dict[str, str], said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        check_launch(recipe(), 2, variables)


@pytest.mark.parametrize(
    ("changes", "world", "said"),
    [
        ({"sampling": {"questions_per_step": 4}}, 8, "questions_per_step: 4 .* 8 processes"),
        ({"sampling": {"questions_per_step": 4}}, 3, "multiple of 3"),
        ({"evaluation": {"num_problems": 1}}, 2, "evaluation.num_problems: 1 .* 2 processes"),
    ],
)
def test_a_process_without_a_share_is_refused(
    changes: dict[str, Any], world: int, said: str
) -> None:
    with pytest.raises(RecipeError, match=said):
        check_launch(recipe(**changes), world, {})


@pytest.mark.parametrize(
    ("cores", "prompts", "held_out", "processes"),
    [(1, 32, 240, 1), (2, 32, 240, 2), (3, 32, 240, 2), (7, 32, 240, 4), (64, 32, 240, 8),
     (3, 9, 240, 3), (4, 7, 240, 1), (4, 32, 1, 1)],
)  # fmt: skip
def test_processes_are_chosen_by_cores_and_share_prompts_evenly(
    cores: int, prompts: int, held_out: int, processes: int
) -> None:
    settings = recipe(
        sampling={"questions_per_step": prompts}, evaluation={"num_problems": held_out}
    )
    assert cpu_processes(settings, cores) == processes
    check_launch(settings, processes, {})


def test_idle_cores_are_named_with_the_command_that_uses_them() -> None:
    settings = recipe(sampling={"questions_per_step": 32})
    hint = idle_cores(settings, 1, 4, {})
    assert hint is not None and "--num_processes 4" in hint
    assert idle_cores(settings, 1, 4, {"OMP_NUM_THREADS": "4"}) == hint
    assert idle_cores(settings, 2, 4, {"OMP_NUM_THREADS": "2"}) is None
    assert idle_cores(settings, 2, 4, {"OMP_NUM_THREADS": "1"}) is not None
    assert idle_cores(settings, 1, 1, {}) is None


def test_four_bits_are_not_sharded() -> None:
    lora = recipe(model={"lora": {"rank": 4, "four_bit": True}})
    with pytest.raises(RecipeError, match="four_bit"):
        check_launch(lora, 2, {"ACCELERATE_USE_FSDP": "true"})


def test_the_stream_goes_on_in_another_number_of_processes() -> None:
    saved: list[dict[str, Any]] = [
        {"position": 8, "waiting": ["a", "b"], "guard": {}},
        {"position": 14, "waiting": ["c"], "guard": {}},
    ]
    assert redistribute_state(saved, 1, 2) is saved[1]  # as many: each its own
    dealt = [redistribute_state(saved, rank, 4) for rank in range(4)]
    # After the furthest, at a place that is the first process's.
    assert [state["position"] for state in dealt] == [16] * 4
    assert [state["waiting"] for state in dealt] == [["a"], ["b"], ["c"], []]


def test_who_has_fewer_passes_waits_in_step() -> None:
    others = iter([1, 1, 1, 0])  # another process's passes, by turn

    def total(tensor: torch.Tensor) -> torch.Tensor:
        return tensor + next(others)

    assert list(equalize_microbatches("a", total)) == ["a", None, None]
    assert list(equalize_microbatches("ab", None)) == ["a", "b"]


def test_parts_are_read_by_rows_across_their_seams() -> None:
    rows = torch.arange(14).view(7, 2)
    parts = Parts((rows[:3], rows[3:6], rows[6:]))
    for first in range(7):
        for last in range(first, 8):
            assert torch.equal(parts.rows(first, last), rows[first:last])


def test_a_state_without_shards_is_the_first_ones() -> None:
    state = {"step": 3, "masters": [torch.ones(2)], "rates": (0.1, 0.2)}
    again = joined([parts_of(state), parts_of(state)])
    assert again["step"] == 3 and again["rates"] == (0.1, 0.2)
    assert torch.equal(again["masters"][0], torch.ones(2))
