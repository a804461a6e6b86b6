"""What each process of a launch does for test_processes.py: the same steps on injected rollouts.

    accelerate launch --config_file ... tests/parity/processes.py FOLDER

FOLDER/one/WAY holds a checkpoint that one process wrote after two steps, for some ways. Each
process takes the same two steps with its share of the groups, writes FOLDER/many/WAY, and takes a
third; then that third step again from each of the two checkpoints. Figures and weights go to
FOLDER/WAY-RANK.pt.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tiny
import torch
from accelerate import Accelerator

from r1lab.config.recipe import AlgorithmSettings, LoraSettings, OptimizerSettings
from r1lab.grpo.advantage import group_advantages
from r1lab.grpo.batch import pack
from r1lab.grpo.checkpoint import load_states, newest_checkpoint, save_checkpoint
from r1lab.grpo.policy import Policy
from r1lab.launch import wants_shards
from r1lab.model.adapters import add_lora
from r1lab.model.shard import joined, parts_of, shard
from r1lab.model.weights import base_model, save_checkpoint_folder
from r1lab.rollout.hf_sampler import TransformersSampler
from r1lab.types import Completion, Problem, Rollout, ScoredGroup, Verdict

WAYS = ("full", "lora", "tied", "bfloat16")
# Passes without gradient (old log-probs, reference), two updates a step, the router bias moving.
ALGORITHM = AlgorithmSettings(
    kl_coefficient=0.1, reference_every=2, num_epochs=2, router_bias_speed=0.01,
    tokens_per_microbatch=80,
)  # fmt: skip
NO_ROUTER = ALGORITHM.model_copy(update={"router_bias_speed": 0.0})
# The groups of three steps by the process that has them, of two: even, all in one, one against
# three, as dynamic sampling may leave them.
SHARES = ((0, 1, 0, 1), (0, 0, 0, 0), (1, 0, 1, 1))


def policy_of(way: str, accelerator: Accelerator) -> Policy:
    """The same weights in every process; sharded where the launch asks for it."""
    torch.manual_seed(0)
    if way == "tied":
        model: Any = tiny.LlamaForCausalLM(tiny.llama_config(initializer_range=0.1))
    else:
        # Odd sizes: shards of unequal length.
        config = tiny.v3_config(
            hidden_size=49, intermediate_size=65, moe_intermediate_size=32, kv_lora_rank=31,
            n_routed_experts=5, initializer_range=0.2,
        )  # fmt: skip
        model = tiny.DeepseekV3ForCausalLM._from_config(config, experts_implementation="eager")
    if way == "bfloat16":
        model.to(torch.bfloat16)
    if way == "lora":
        model = add_lora(model, LoraSettings(rank=3))
    if wants_shards():
        shard(base_model(model), accelerator.device)
    # AdamW moves an entry whose gradient is all rounding as far as any other, up or down by chance:
    # a larger epsilon leaves such entries where they are.
    optimizer = OptimizerSettings(learning_rate=3e-3, warmup_steps=0, epsilon=1e-5)
    return Policy(
        model, optimizer=optimizer, total_updates=9, temperature=1.0, accelerator=accelerator,
        with_reference=True,
    )  # fmt: skip


def groups_of(step: int) -> list[ScoredGroup]:
    """Four groups of four made-up completions, with log-probs."""
    draw = torch.Generator().manual_seed(step)

    def tokens(least: int, most: int) -> tuple[int, ...]:
        length = int(torch.randint(least, most, (), generator=draw))
        return tuple(torch.randint(8, 128, (length,), generator=draw).tolist())

    groups = []
    for number in range(4):
        prompt = tokens(3, 6)
        completions = [
            Completion(ids, "", "stop", step, logprobs=(-4.0,) * len(ids))
            for ids in (tokens(3, 12) for _ in range(4))
        ]
        scores = tuple(Verdict(float(i % 2) + 0.1 * number) for i in range(4))
        question = Problem(f"p{number}", "made up", "1", "math", "made up")
        groups.append(ScoredGroup(Rollout(question, prompt, tuple(completions)), scores))
    return groups


def take_step(policy: Policy, step: int, *, num_processes: int, rank: int) -> list[list[float]]:
    """The figures of each update of a step, of which this process has its groups."""
    algorithm = NO_ROUTER if policy.model.config.model_type == "llama" else ALGORITHM
    owners = SHARES[step] if num_processes == 2 else (0,) * 4
    groups = [g for g, owner in zip(groups_of(step), owners, strict=True) if owner == rank]
    batch = pack(
        groups, group_advantages(groups, "mean_only"), loss="token_mean", max_tokens=12,
        version=policy.version, drop_zero_advantage=False,
        all_reduce_sum=policy.all_reduce_sum,
    )  # fmt: skip
    batch = policy.with_old_and_ref_logprobs(batch, algorithm)
    figures = []
    for _ in range(algorithm.num_epochs):
        stats = policy.forward_backward(batch, algorithm)
        update = policy.optimizer_step(router_bias_speed=algorithm.router_bias_speed)
        means = stats.means
        figures.append(
            [means["loss"], means["tokens"], means["kl_ref"], means["entropy"],
             stats.sync_kl or 0.0, update["grad_norm"]]
        )  # fmt: skip
    policy.advance_version(algorithm.reference_every)
    return figures


def whole_weights(policy: Policy) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in policy.checkpoint_weights()}


def save(policy: Policy, folder: Path, accelerator: Accelerator) -> None:
    owns = policy.is_sharded or accelerator.is_main_process
    save_checkpoint(
        folder, 2, {"policy": parts_of(policy.state_dict()) if owns else None}, keep=1,
        write_model=lambda to: save_checkpoint_folder(
            policy.model, tiny.tokenizer(), to, is_main=accelerator.is_main_process
        ),
        rank=accelerator.process_index, num_processes=accelerator.num_processes,
        wait=accelerator.wait_for_everyone,
    )  # fmt: skip


def restored(way: str, folder: Path, accelerator: Accelerator) -> Policy:
    found = newest_checkpoint(folder)
    assert found is not None and found.step == 2
    states = load_states(found.folder, found.num_processes)
    policy = policy_of(way, accelerator)
    policy.load_state_dict(joined([s["policy"] for s in states if s["policy"] is not None]))
    return policy


def synced_exactly(policy: Policy, folder: Path) -> bool:
    """Whether a sampler, built from the checkpoint's model, is given the full tensors bit by bit.

    The full tensors are those of the masters, gathered one by one.
    """
    sampler = TransformersSampler(folder / "model", tiny.tokenizer(), dtype="float32")
    sampler.sync(policy.checkpoint_weights(), policy.version)
    held = sampler._model.state_dict()
    full = {name: p.full_tensor() for name, p in policy.model.named_parameters()}
    return all(torch.equal(held[name].to(tensor), tensor) for name, tensor in full.items())


def run(way: str, folder: Path, accelerator: Accelerator, found: Callable[[Any], None]) -> None:
    where = {"num_processes": accelerator.num_processes, "rank": accelerator.process_index}
    policy = policy_of(way, accelerator)
    figures = [take_step(policy, step, **where) for step in range(2)]
    save(policy, folder / "many" / way, accelerator)
    figures.append(take_step(policy, 2, **where))
    result: dict[str, Any] = {"figures": figures, "weights": whole_weights(policy)}
    for name in ("one", "many"):
        if (folder / name / way).exists():
            again = restored(way, folder / name / way, accelerator)
            result[name] = take_step(again, 2, **where)
            result[f"{name} weights"] = whole_weights(again)
    if way == "full" and policy.is_sharded:
        result["synced exactly"] = synced_exactly(policy, folder / "many" / way / "step-2")
    found(result)


if __name__ == "__main__":
    place = Path(sys.argv[1])
    launched = Accelerator(cpu=True)
    for name in WAYS:
        target = place / f"{name}-{launched.process_index}.pt"
        run(name, place, launched, lambda result, to=target: torch.save(result, to))
    launched.end_training()
