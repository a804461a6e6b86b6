"""Where the time of R1-Zero's step goes on clusters of up to thousands of GPUs: a simulated plan.

    python scripts/simulate_cluster.py                       DeepSeek-V3 on H800, three sizes
    python scripts/simulate_cluster.py --gpus H100 --counts 512 4096 --mean-tokens 9600
    python scripts/simulate_cluster.py --responses 32768     a larger rollout for a larger cluster

Nothing is measured: the rates are those of r1lab/estimate (public measurements, data sheets). One
step is R1-Zero's rollout with its 16 updates. `in turns` is all GPUs sampling, then all training;
`apart` gives a share of the GPUs to sampling and the rest to training, which go on at once one step
apart (asynchronous), with the share that ends first waiting; the best share is found by trying all
eighths. `sync` is the weights' way to the samplers over links of several speeds. The last line is
one JSON object.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from typing import Any

from r1lab.estimate.constants import OPEN_FRAMEWORKS, SYNC_UTILISATION
from r1lab.estimate.hardware import DEVICES, Cluster
from r1lab.estimate.plan import known_sizes
from r1lab.estimate.shape import ModelShape, shape_of
from r1lab.estimate.timing import step_time
from r1lab.estimate.workload import Workload

REPLICA = 32  # GPUs of one sampler: V3 in bfloat16 with room for its cache


def main() -> None:
    options = parse()
    shape = shape_of(known_sizes()["v3"], "v3")
    work = Workload(
        num_sequences=options.responses, group_size=16, prompt=200, mean=options.mean_tokens,
        longest=options.max_tokens, forwards=2, updates=16, gpu_share=0.8,
    )  # fmt: skip
    device = DEVICES[options.gpus.lower()]
    plans = [plan(shape, work, Cluster(device, count)) for count in options.counts]
    print(
        f"DeepSeek-V3, {work.num_sequences:,} responses of {work.mean:,.0f} tokens (at most "
        f"{work.longest:,}), 16 updates, {device.name}"
    )
    print(f"{'GPUs':>6} {'sampling':>9} {'scoring':>8} {'training':>9} {'sync':>6} {'in turns':>9} "
          f"{'apart':>8} {'share':>6} {'tokens/s/GPU':>13}")  # fmt: skip
    for row in plans:
        parts = row["parts"]
        print(
            f"{row['gpus']:6,} {parts['sampling']:8.0f}s {parts['scoring']:7.1f}s "
            f"{parts['training']:8.1f}s {parts['sync']:5.1f}s {row['in_turns']:8.0f}s "
            f"{row['apart']:7.0f}s {row['sampling_share']:6.1%} {row['tokens_per_gpu']:13.1f}"
        )
    syncs = sync_table(shape)
    print("\nweights of 671B to samplers of 32 GPUs, seconds")
    for row in syncs:
        print(f"  {row['link']:34} bfloat16 {row['bfloat16']:7.1f}   float8 {row['float8']:7.1f}")
    print(json.dumps({"plans": plans, "sync": syncs, "open_frameworks": OPEN_FRAMEWORKS}))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    names = [device.name for device in DEVICES.values()]
    parser.add_argument("--gpus", choices=names, default="H800")
    parser.add_argument("--counts", type=int, nargs="+", default=[512, 2048, 8192])
    parser.add_argument("--responses", type=int, default=8192, help="of a rollout (R1-Zero's)")
    parser.add_argument("--mean-tokens", type=float, default=5216, help="R1-Zero's at step 5,000")
    parser.add_argument("--max-tokens", type=int, default=32_768)
    options = parser.parse_args()
    if min(options.counts) < 2 * REPLICA:
        parser.error(f"--counts: at least {2 * REPLICA}, a sampler of {REPLICA} beside a trainer")
    return options


def plan(shape: ModelShape, work: Workload, cluster: Cluster) -> dict[str, Any]:
    """One size: all in turns, and the best division into two parts that work at once."""
    turns = step_time(shape, work, cluster, layout="megatron", replica=REPLICA)
    parts = {
        "sampling": turns.sampling, "scoring": turns.scoring, "training": turns.training,
        "sync": turns.sync,
    }  # fmt: skip
    divided = {}
    for eighths in range(1, 8):
        samplers = cluster.count * eighths // 8 // REPLICA * REPLICA
        if 0 < samplers < cluster.count:
            divided[samplers / cluster.count] = apart(shape, work, cluster, samplers)
    share = min(divided, key=lambda key: divided[key])
    return {
        "gpus": cluster.count, "parts": parts, "in_turns": turns.total, "apart": divided[share],
        "sampling_share": share,
        "tokens_per_gpu": work.num_sequences * work.mean / min(turns.total, divided[share])
        / cluster.count,
    }  # fmt: skip


def apart(shape: ModelShape, work: Workload, cluster: Cluster, samplers: int) -> float:
    """Seconds of a step where `samplers` GPUs sample while the others train on the last rollout."""
    sampling = step_time(
        shape, work, replace(cluster, count=samplers), layout="megatron", replica=REPLICA
    ).sampling  # fmt: skip
    training = step_time(
        shape, work, replace(cluster, count=cluster.count - samplers), layout="megatron",
        replica=REPLICA,
    )  # fmt: skip
    return max(sampling, training.scoring + training.training + training.fixed) + training.sync


def sync_table(shape: ModelShape) -> list[dict[str, Any]]:
    """Seconds for every GPU to receive its part of a sampler, all at once, by link."""
    links = {
        "400 Gb/s a GPU (InfiniBand, RoCE)": 50e9,
        "200 Gb/s a GPU": 25e9,
        "100 Gb/s a node of 8": 12.5e9 / 8,
        "25 Gb/s a node of 8 (cloud, shared)": 3.125e9 / 8,
    }
    return [
        {
            "link": name,
            "bfloat16": 2 * shape.parameters / REPLICA / (rate * SYNC_UTILISATION),
            "float8": shape.parameters / REPLICA / (rate * SYNC_UTILISATION),
        }
        for name, rate in links.items()
    ]


if __name__ == "__main__":
    main()
