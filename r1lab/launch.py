"""What a launcher asks of this process, and how many processes suit a CPU. No torch here.

How a model is divided over processes is the launch's choice and not the recipe's: `accelerate
launch` with an FSDP configuration shards it, any other keeps a whole copy in each process.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Mapping, Sequence

from r1lab.config.recipe import TrainRecipe
from r1lab.types import RecipeError

_FSDP2 = "recipes/accelerate/fsdp2.yaml"
_CPU_PROCESSES = "accelerate/two_processes_cpu.yaml"
# A process holds the model, an engine and its cache: 1.6 GiB with the shipped base.
_MOST_CPU_PROCESSES = 8
# What an FSDP configuration may ask for beside sharding, and the one value that is had here.
_FSDP_SETTINGS = {
    "FSDP_VERSION": ("fsdp_version", "2", "torch's fully_shard is what is called"),
    "FSDP_RESHARD_AFTER_FORWARD": (
        "fsdp_reshard_after_forward", "true", "layers are given up after each pass",
    ),
    "FSDP_OFFLOAD_PARAMS": (
        "fsdp_offload_params", "false", "shards stay on the device that trains them",
    ),
    "FSDP_ACTIVATION_CHECKPOINTING": (
        "fsdp_activation_checkpointing", "false",
        "lower algorithm.tokens_per_microbatch where activations do not fit",
    ),
    "FSDP_CPU_RAM_EFFICIENT_LOADING": (
        "fsdp_cpu_ram_efficient_loading", "false", "every process reads the base itself",
    ),
}  # fmt: skip
_OTHER_ENGINES = {
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "a parallelism configuration",
}


def process_rank() -> int:
    """This process among those that a launcher started (0 without one)."""
    return int(os.environ.get("RANK", "0"))


def num_processes() -> int:
    """How many processes a launcher started (1 without one)."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def wants_shards(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether the launch asks for a model in shards; with one process there is nothing to part."""
    return num_processes() > 1 and _is_on(environment, "ACCELERATE_USE_FSDP")


def check_launch(
    recipe: TrainRecipe, world: int, environment: Mapping[str, str] = os.environ
) -> None:
    """Refuse a launch of `world` processes that this recipe cannot run on; raises RecipeError."""
    for name, engine in _OTHER_ENGINES.items():
        if _is_on(environment, name):
            raise RecipeError(
                f"accelerate launch: {engine} owns the optimiser and the gradients, which are the "
                "step's own here, and is not supported; FSDP2 shards as ZeRO-3 does: "
                f"--config_file {_FSDP2}"
            )
    if _is_on(environment, "ACCELERATE_USE_FSDP"):
        _check_fsdp(recipe, environment)
    _check_shares(recipe, world)


def cpu_processes(recipe: TrainRecipe, cores: int) -> int:
    """How many processes of one thread train this recipe fastest on `cores` cores of a CPU.

    A small model leaves a second thread idle, so processes beat threads (docs/experiments.md). Each
    takes the same number of prompts of a step, and some held-out problems.
    """
    most = min(cores, _MOST_CPU_PROCESSES, recipe.evaluation.num_problems)
    prompts = recipe.sampling.questions_per_step
    return max(count for count in range(1, max(most, 1) + 1) if prompts % count == 0)


def idle_cores(
    recipe: TrainRecipe, world: int, cores: int, environment: Mapping[str, str] = os.environ
) -> str | None:
    """What to say where `world` processes leave cores of a CPU idle; None where they do not.

    One process counts as one core whatever its threads: a small model keeps no second thread busy.
    """
    threads = environment.get("OMP_NUM_THREADS", "1") if world > 1 else "1"
    better = cpu_processes(recipe, cores)
    if better <= world * (int(threads) if threads.isdigit() else 1):
        return None
    return (
        f"{world} of {cores} cores in use; {better} processes are faster: OMP_NUM_THREADS=1 "
        f"accelerate launch --config_file recipes/{_CPU_PROCESSES} --num_processes {better} "
        "-m r1lab train RECIPE"
    )


def run_on_cpu(processes: int, arguments: Sequence[str]) -> int:
    """Run `r1lab ARGUMENTS` in so many processes on this machine's CPU; return the exit code.

    What torchrun does, called directly: a failure or a signal ends in the run's own exit code and
    message, without torchrun's traceback after it.
    """
    os.environ["ACCELERATE_USE_CPU"] = "true"
    logging.getLogger("torch.distributed.elastic").setLevel(logging.ERROR)
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    config = LaunchConfig(
        min_nodes=1, max_nodes=1, nproc_per_node=processes, run_id="r1lab",
        rdzv_backend="c10d", rdzv_endpoint="localhost:0", max_restarts=0,
    )  # fmt: skip
    try:
        elastic_launch(config, sys.executable)("-m", "r1lab", *arguments)
    except ChildFailedError as error:
        codes = [failure.exitcode for failure in error.failures.values()]
        return next((code for code in codes if code > 0), 1)
    except SignalException:
        return 0  # the run has saved its state and said so, as one process does
    return 0


def _check_fsdp(recipe: TrainRecipe, environment: Mapping[str, str]) -> None:
    for name, (key, only, why) in _FSDP_SETTINGS.items():
        value = environment.get(name, only).lower()
        if value != only:
            raise RecipeError(
                f"accelerate launch: {key}: {value} is not possible, only {only} is ({why}); see "
                f"{_FSDP2}"
            )
    if recipe.model.lora is not None and recipe.model.lora.four_bit:
        raise RecipeError(
            "model.lora.four_bit: four-bit weights cannot be sharded; set it to false, or launch "
            "without FSDP"
        )


def _check_shares(recipe: TrainRecipe, world: int) -> None:
    """Every process must have questions of each step, and held-out problems, to ask."""
    questions, held_out = recipe.sampling.questions_per_step, recipe.evaluation.num_problems
    for key, count in (
        ("sampling.questions_per_step", questions), ("evaluation.num_problems", held_out),
    ):  # fmt: skip
        if count < world:
            raise RecipeError(
                f"{key}: {count} cannot be shared by {world} processes; take {world} or more, or "
                "launch fewer (--num_processes)"
            )
    if questions % world:
        raise RecipeError(
            f"sampling.questions_per_step: {questions} cannot be shared evenly by {world} "
            f"processes; take a multiple of {world}"
        )


def _is_on(environment: Mapping[str, str], name: str) -> bool:
    return environment.get(name, "false").lower() in ("true", "1")
