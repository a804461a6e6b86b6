"""Coverage-guided fuzzing of the shipped rewards with atheris (pip install atheris; not required).

    python scripts/fuzz_atheris.py [--seconds 300] [--rewards math countdown ...]

Atheris bends its input towards branches that it has not seen. A reward that raises, takes longer
than two seconds for one answer or grows beyond 2 GiB ends the run; so does a canary file, which an
executed answer writes. The last line is JSON; the answer that did it, if any, stands in `found`.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ANSWER_SECONDS, MEMORY_MIB = 2, 2048
OPTIONS = {"length": {"max_tokens": 1000, "buffer": 100}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=int, default=300)
    parser.add_argument("--rewards", nargs="*")
    parser.add_argument("--inside", metavar="FOLDER", help=argparse.SUPPRESS)
    options = parser.parse_args()
    from hostile_strings import own_rewards

    rewards = options.rewards or own_rewards()
    if options.inside:
        fuzz(rewards, options.seconds, Path(options.inside))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        done = subprocess.run(
            [
                *(sys.executable, __file__, "--seconds", str(options.seconds)),
                *("--inside", name, "--rewards", *rewards),
            ],
            stderr=subprocess.PIPE, text=True, errors="replace", cwd=name,
        )  # fmt: skip
        runs = re.findall(r"stat::number_of_executed_units:\s*(\d+)", done.stderr)
        covered = re.findall(r"cov: (\d+)", done.stderr)
        found = [path.read_bytes().decode(errors="replace") for path in folder.glob("found-*")]
        executed = (folder / "canary").exists()
    if done.returncode != 0:
        print(done.stderr[-3000:])
    print(
        json.dumps({
            "rewards": rewards,
            "seconds": options.seconds,
            "answers": int(runs[-1]) if runs else None,
            "branches": int(covered[-1]) if covered else None,
            "ended_early": done.returncode != 0,
            "found": found,
            "executed": executed,
        })
    )  # fmt: skip


def fuzz(names: list[str], seconds: int, folder: Path) -> None:
    """In a process of its own, which libFuzzer ends."""
    import atheris

    with atheris.instrument_imports(include=["r1lab"]):
        from r1lab.config.recipe import SourceSettings
        from r1lab.problems.registry import load_problems
        from r1lab.prompts import TEMPLATES
        from r1lab.verify import load_reward
        from r1lab.verify.check import respond
        from r1lab.verify.hostile import hostile_items

        rewards = [(load_reward(name, OPTIONS.get(name)), OPTIONS.get(name, {})) for name in names]
        functions = [(reward.function(), options) for reward, options in rewards]
    sources = {"boxes": "boxes", "division": "division", "derivation": "derivations"}
    sources["countdown"] = "countdown"
    problems = [
        load_problems(SourceSettings(source=sources.get(name, "arithmetic")), "test")[0]
        for name in names
    ]
    corpus = folder / "corpus"
    corpus.mkdir()
    for number, item in enumerate(hostile_items(folder / "canary")):
        if len(item.answer) <= 4096:
            data = item.answer.encode(errors="surrogatepass")
            (corpus / f"{number}").write_bytes(data)

    def judge(data: bytes) -> None:
        answer = data.decode("utf-8", errors="surrogateescape")
        response = respond(TEMPLATES["r1-zero"], answer)
        for (function, options), problem in zip(functions, problems, strict=True):
            function(problem=problem, completion=response, **options)

    atheris.Setup(
        [
            *(sys.argv[0], f"-max_total_time={seconds}", f"-timeout={ANSWER_SECONDS}"),
            *(f"-rss_limit_mb={MEMORY_MIB}", "-max_len=4096", "-print_final_stats=1"),
            *(f"-artifact_prefix={folder}/found-", str(corpus)),
        ],
        judge,
    )
    atheris.Fuzz()


if __name__ == "__main__":
    main()
