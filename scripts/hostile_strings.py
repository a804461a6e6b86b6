"""For the benchmark of verifiers: strings that parsers choke on, and who is left running."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path

_PIECES = (
    "9", "^", "{", "}", "(", ")", "!", "\\frac", "\\sqrt", "\\binom{9}{3}", "\\sum_{k=1}^{9^9}",
    "\\int", "\\boxed{", "\\text{", "10^{10^{10}}", "9^{9^{9}}", "100000000!", "x", "+", "-", "/",
    "*", ",", ";", "=", "<", "\\in", "\\cup", "[", "]", "\\{", "\\}", "|", "_", "$", "%", "\\left(",
    "\\begin{pmatrix}", "\\\\", "&", "\\end{pmatrix}", "0.", "\\overline{3}", "e", "i", "\\pi",
    "\\infty", "\\pm", "\\log", "\\sin", "and", "or", " ", "\n", "\x00", "\u202e", "٣", "𝟗",
    "\ud83d", "999999999999", "1e999", "</think>", "<answer>", "answer is", "0/0",
    "\\lim_{x \\to 0}", "cm",
)  # fmt: skip


def own_rewards() -> list[str]:
    """The shipped rewards that judge by themselves, not by a package of others."""
    from r1lab.problems.registry import shipped

    return [name for name in shipped("reward") if name not in ("math_verify", "reasoning_gym")]


def hostile_strings(num: int, canary: str) -> Iterator[str]:
    """Strings of pieces that parsers choke on, repeated and nested, some of them code."""
    rng = random.Random(1)
    code = (
        f"__import__('os').system('touch {canary}')", f"open({canary!r}, 'w')",
        f"exec(\"open({canary!r}, 'w')\")", f"(lambda: open({canary!r}, 'w'))()",
    )  # fmt: skip
    for _ in range(num):
        kind = rng.random()
        if kind < 0.6:
            yield "".join(rng.choice(_PIECES) for _ in range(rng.randint(1, 60)))
        elif kind < 0.75:
            yield rng.choice(_PIECES) * rng.randint(10, 3000)
        elif kind < 0.9:
            left, right = rng.choice(
                [("(", ")"), ("\\frac{1}{", "}"), ("\\sqrt{", "}"), ("9^{", "}"), ("f(", ")"),
                 ("\\{", "\\}"), ("|", "|"), ("\\text{", "}"), ("\\boxed{", "}"), ("[", ")")]
            )  # fmt: skip
            depth = rng.randint(1, 2000) if rng.random() < 0.5 else rng.randint(1, 45)
            yield left * depth + rng.choice(_PIECES) + right * depth
        else:
            yield rng.choice(_PIECES) + rng.choice(code) + rng.choice(_PIECES)


def children() -> set[int]:
    """Processes that descend from this one."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        parents[int(stat.parent.name)] = int(fields[1])
    found = {os.getpid()}
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return found - {os.getpid()}
