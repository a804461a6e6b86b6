"""Two processes, with a copy of the model each or with half of it, against one.

The launches are real (accelerate, gloo); what each process does stands in processes.py.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import processes
import pytest
import torch
from accelerate import Accelerator

LAUNCHES = ("two_processes_cpu.yaml", "two_processes_fsdp2_cpu.yaml")
Results = dict[str, list[dict[str, Any]]]


def alone(way: str, policy: processes.Policy, steps: range) -> dict[str, Any]:
    figures = [processes.take_step(policy, step, num_processes=1, rank=0) for step in steps]
    return {"figures": figures, "weights": processes.whole_weights(policy)}


@pytest.fixture(scope="module")
def one(tmp_path_factory: Any) -> tuple[Path, dict[str, dict[str, Any]]]:
    """A folder with the checkpoints that one process wrote, and what it found."""
    folder, accelerator = tmp_path_factory.mktemp("one"), Accelerator(cpu=True)
    found = {}
    for way in processes.WAYS:
        policy = processes.policy_of(way, accelerator)
        before = alone(way, policy, range(2))
        if way in ("full", "lora"):
            processes.save(policy, folder / "one" / way, accelerator)
        found[way] = alone(way, policy, range(2, 3))
        found[way]["figures"] = before["figures"] + found[way]["figures"]
    return folder, found


@pytest.fixture(scope="module", params=LAUNCHES)
def many(request: Any, one: Any, tmp_path_factory: Any, repository: Path) -> tuple[Path, Results]:
    """A folder with the checkpoints that two processes wrote, and what each of them found."""
    folder = tmp_path_factory.mktemp("many")
    shutil.copytree(one[0], folder, dirs_exist_ok=True)
    config = repository / "recipes" / "accelerate" / request.param
    places = [repository, *(repository / "tests" / place for place in ("", "parity"))]
    done = subprocess.run(
        [sys.executable, "-m", "accelerate.commands.launch", "--quiet", "--config_file", config,
         repository / "tests" / "parity" / "processes.py", folder],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, places))},
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    return folder, {
        way: [torch.load(folder / f"{way}-{rank}.pt") for rank in range(2)]
        for way in processes.WAYS
    }


def assert_weights_close(found: dict[str, Any], expected: dict[str, Any], atol: float) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=atol, msg=name)


def assert_close(found: Any, expected: Any, rtol: float = 1e-4) -> None:
    torch.testing.assert_close(
        torch.tensor(found), torch.tensor(expected), rtol=rtol, atol=rtol / 100
    )


@pytest.mark.parametrize("way", processes.WAYS)
def test_two_processes_take_the_steps_of_one(one: Any, many: Any, way: str) -> None:
    expected, (first, second) = one[1][way], many[1][way]
    assert first["figures"] == second["figures"], "all processes know the same figures"
    assert all(torch.equal(t, second["weights"][n]) for n, t in first["weights"].items())
    if way == "bfloat16":  # roundings add up: after one update they have grown past any bound
        assert_close(first["figures"][0][0], expected["figures"][0][0], rtol=1e-2)
    else:
        assert_close(first["figures"], expected["figures"])
        assert_weights_close(first["weights"], expected["weights"], atol=2e-5)


@pytest.mark.parametrize("way", ["full", "lora"])
def test_a_checkpoint_goes_on_under_another_number_of_processes(
    one: Any, many: Any, way: str
) -> None:
    expected, (first, _) = one[1][way], many[1][way]
    assert_close(first["one"], expected["figures"][2])  # written by one, read by two
    assert_weights_close(first["one weights"], expected["weights"], atol=2e-5)
    policy = processes.restored(way, many[0] / "many" / way, Accelerator(cpu=True))
    back = alone(way, policy, range(2, 3))  # written by two, read by one
    assert_close(back["figures"], expected["figures"][2:])
    assert_weights_close(back["weights"], expected["weights"], atol=2e-5)


@pytest.mark.parametrize("way", processes.WAYS)
def test_as_many_processes_go_on_bit_by_bit(many: Any, way: str) -> None:
    for found in many[1][way]:
        assert found["many"] == found["figures"][2]
        for name, tensor in found["weights"].items():
            assert torch.equal(found["many weights"][name], tensor)


def test_a_sampler_gets_the_full_tensors(many: Any) -> None:
    for found in many[1]["full"]:
        assert found.get("synced exactly", True)
    model = many[0] / "many" / "full" / "step-2" / "model" / "config.json"
    assert '"DeepseekV3ForCausalLM"' in model.read_text()
