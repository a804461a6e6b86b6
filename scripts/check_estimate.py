"""Hold `r1lab estimate` against reality: measured memory here, and the published figures.

    python scripts/check_estimate.py --smollm2 FOLDER      all of it, about ten minutes on two cores
    python scripts/check_estimate.py --published           the public figures alone, in a second
    python scripts/check_estimate.py --only nano_full      one of the measured cases

Memory is that of a real short run of the trainer (load, sample with vLLM, three updates or more,
sync, checkpoint), in a process of its own: the peak of its resident size (VmHWM) over what it was
when Python had started. malloc is told to give large blocks back, so that the resident size follows
what is in use. Worker processes of rewards are not counted, here or in the estimate. `beyond` is
the same without the libraries: the estimate's constant on one side, and on the other the rise of a
run with a model of next to no size and hardly any cache, which is measured first and has no part in
the other cases. FOLDER is what scripts/fetch_smollm2.py makes. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from estimate_published import published_rows

from r1lab.config.reading import load_recipe
from r1lab.config.recipe import TrainRecipe
from r1lab.estimate.constants import CPU_RUNTIME
from r1lab.estimate.hardware import Cluster, this_cpu
from r1lab.estimate.recipe import estimate_recipe

MIB = 2**20
HERE = Path(__file__).resolve()

# Rewards that differ between any two responses, so that every group carries gradient.
REWARD = """
def reward(problem, completion):
    return float(sum(map(ord, completion.text)) % 97)
"""
COMMON = """
name: case
steps: 2
model: {{path: {path}, lora: {lora}}}
template: compact
problems: {{sources: [{{source: boxes}}], check_gold: 0}}
rewards: [{{reward: "{reward}:reward"}}]
sampling: {sampling}
algorithm: {{tokens_per_microbatch: {micro}}}
evaluation: {{every: 0, num_problems: 2, num_samples: 2, greedy: false}}
checkpoints: {{every: 0}}
tracking: {{trackers: []}}
"""


@dataclass(frozen=True, slots=True)
class Case:
    """A run to be measured. The cache is small enough to be filled."""

    path: str
    lora: str = "null"
    questions: int = 32
    group: int = 16
    max_tokens: int = 128
    micro: int = 4096
    cache: float = 0.25

    def recipe(self, folder: Path) -> TrainRecipe:
        """The case as a recipe that writes below `folder`."""
        (folder / "reward.py").write_text(REWARD)
        sampling = {
            "questions_per_step": self.questions, "group_size": self.group,
            "max_tokens": self.max_tokens, "max_model_len": self.max_tokens + 128,
            "kv_cache_gib": self.cache,
        }  # fmt: skip
        text = COMMON.format(
            path=self.path, lora=self.lora, reward=folder / "reward.py", micro=self.micro,
            sampling=json.dumps(sampling),
        )  # fmt: skip
        (folder / "case.yaml").write_text(text)
        return load_recipe(folder / "case.yaml", schema=TrainRecipe)


def cases(smollm2: str) -> dict[str, Case]:
    """The four of the check."""
    small = {"questions": 4, "group": 4, "max_tokens": 64, "micro": 512, "cache": 0.0625}
    lora = "{rank: 16}"
    return {
        "nano_full": Case("nano"),
        "nano_lora": Case("nano", lora),
        "smollm2_full": Case(smollm2, **small),
        "smollm2_lora": Case(smollm2, lora, **small),
    }


def main() -> None:
    options = parse()
    if options.measure:
        print(json.dumps(measure(Path(options.measure))))
        return
    rows = published_rows()
    result: dict[str, Any] = {"published": rows}
    for row in rows:
        print(f"{row['what']:52} {row['estimate']:>12,.4g} {row['published']:>12,.4g} "
              f"{row['ratio']:6.2f}  {row['unit']}")  # fmt: skip
    if not options.published:
        result["memory"] = dict(measured(options))
        errors = [abs(row["ratio"] - 1) for row in result["memory"].values()]
        result["worst_memory_error"] = max(errors, default=None)
    print(json.dumps(result))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--smollm2", metavar="FOLDER", help="of scripts/fetch_smollm2.py")
    parser.add_argument("--published", action="store_true", help="no measurement of memory")
    parser.add_argument("--only", nargs="+", metavar="CASE")
    parser.add_argument("--measure", metavar="RECIPE", help=argparse.SUPPRESS)
    options = parser.parse_args()
    known = cases("")
    for name in options.only or ():
        if name not in known:
            parser.error(f"{name!r} is none of {', '.join(known)}")
    if not (options.smollm2 or options.published or options.only or options.measure):
        parser.error("give --smollm2 FOLDER, or --published, or --only nano_full nano_lora")
    return options


def measured(options: argparse.Namespace) -> Iterator[tuple[str, dict[str, float]]]:
    """Each case's estimate beside its measurement, in MiB."""
    chosen = cases(options.smollm2 or "")
    libraries = {}
    for name in options.only or chosen:
        with tempfile.TemporaryDirectory() as folder:
            base = Path(folder)
            kind = "lora" if chosen[name].lora != "null" else "full"
            if kind not in libraries:
                empty = empty_model(base / "empty")
                case = Case(str(empty), chosen[name].lora, 2, 2, 4, 64, 0.001)
                libraries[kind] = child(case, base)
            recipe = chosen[name].recipe(base)
            found = estimate_recipe(recipe, Cluster(this_cpu(), 1)).memory.peak / MIB
            rise = child(chosen[name], base)
        row = {
            "estimate": found, "measured": rise, "ratio": found / rise,
            "estimate_beyond": found - CPU_RUNTIME / MIB,
            "measured_beyond": rise - libraries[kind],
            "ratio_beyond": (found - CPU_RUNTIME / MIB) / (rise - libraries[kind]),
            "libraries_measured": libraries[kind],
        }  # fmt: skip
        print(name, json.dumps({key: round(value, 3) for key, value in row.items()}), flush=True)
        yield name, row


def empty_model(folder: Path) -> Path:
    """A Llama of a few thousand parameters with the shipped base's tokenizer."""
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    from r1lab.model.load import shipped_models

    tokenizer = AutoTokenizer.from_pretrained(shipped_models()["nano"])
    config = LlamaConfig(
        vocab_size=144, hidden_size=32, intermediate_size=32, num_hidden_layers=1,
        num_attention_heads=1, num_key_value_heads=1, max_position_embeddings=512,
        pad_token_id=0, bos_token_id=None, eos_token_id=1,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def child(case: Case, folder: Path) -> float:
    """The case run and measured in a process of its own: MiB."""
    shutil.rmtree(folder / "runs", ignore_errors=True)
    case.recipe(folder)
    environment = {
        **os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536",
        "HF_HUB_OFFLINE": "1", "VLLM_LOGGING_LEVEL": "ERROR",
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, str(HERE), "--measure", str(folder / "case.yaml")],
        env=environment, capture_output=True, text=True, cwd=folder,
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(f"the run of {case} failed:\n{done.stderr[-3000:]}")
    return float(json.loads(done.stdout.strip().splitlines()[-1])["rise_mib"])


def measure(path: Path) -> dict[str, float]:
    """In the child: run the recipe; the peak of the resident size over its beginning."""
    from r1lab.grpo.trainer import train

    train(load_recipe(path, schema=TrainRecipe))
    return {"rise_mib": (status("VmHWM") - START) / 1024}


def status(name: str) -> int:
    """KiB of this process, as the kernel counts them."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1])
    raise KeyError(name)


# This script and what it imports (no torch) are there already; the libraries are not.
START = status("VmRSS")

if __name__ == "__main__":
    main()
