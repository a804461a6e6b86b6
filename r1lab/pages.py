"""Finds the documentation page about an error, to append to its message.

The page is chosen by the recipe key in the message, else by the words in it. Nothing here imports
torch.
"""

from __future__ import annotations

import re

_KEYS_PAGE = "docs/reference/recipe.md"
_BY_SECTION = {
    "algorithm": "docs/algorithms.md",
    "checkpoints": "docs/reliability.md",
    "evaluation": "docs/evaluation.md",
    "max_fault_share": "docs/rewards.md",
    "problems": "docs/rewards.md",
    "resume": "docs/reliability.md",
    "reward_workers": "docs/rewards.md",
    "rewards": "docs/rewards.md",
    "watch": "docs/reliability.md",
    **dict.fromkeys(
        (
            "model",
            "name",
            "optimizer",
            "output",
            "sampling",
            "seed",
            "steps",
            "template",
            "tracking",
        ),
        _KEYS_PAGE,
    ),
}
_BY_WORDS = (
    (r"unknown key|^no recipe |extends: ", _KEYS_PAGE),
    (r"accelerate launch|processes; take|--num_processes", "docs/processes.md"),
    (r"KL\(sampler", "docs/exact-weights.md"),
    (r"no suite|--suite|--budgets|--grader", "docs/evaluation.md"),
    (r"--gpus|estimate", "docs/scaling.md"),
    (r"no reward is called|[Rr]ewards? |verifier", "docs/rewards.md"),
    (r"resume|checkpoint|--force|the disk|out of memory", "docs/reliability.md"),
    (r"not installed here", "README.md"),
)
_KEY = re.compile(r"(?:^|: |--)([a-z_]+)((?:\.\w+)*)(?=: | needs | has )")


def page_for(message: str) -> str | None:
    """Return the page about this error, relative to the checkout; None if there is none."""
    first, *rest = _BY_WORDS
    if re.search(first[0], message):
        return first[1]
    for key in _KEY.finditer(message):
        if key[1] in _BY_SECTION:
            return _BY_SECTION[key[1]]
    return next((page for pattern, page in rest if re.search(pattern, message)), None)


def with_page(message: str) -> str:
    """Append the page in brackets to the message, unless it already names one."""
    page = page_for(message)
    return message if page is None or "docs/" in message else f"{message} ({page})"
