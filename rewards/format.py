"""The format reward of DeepSeek-R1-Zero (arXiv 2501.12948, section 2.2.2): form alone, 1 or 0.

Well-formed, as `r1lab.prompts` defines it: one thinking part opened and closed, then one answer
part, nothing after it, read over the template's prefix and the completion together. An empty
thinking part is well-formed, because the reward must not pay for length.
"""

from __future__ import annotations

from r1lab.prompts import TAGS, read_response
from r1lab.types import Completion, Problem, Verdict


def reward(problem: Problem, completion: Completion, *, forbid_empty: bool = False) -> Verdict:
    """1.0 for a well-formed response, else 0.0; `forbid_empty` also asks for some thinking."""
    whole = completion.prefix + completion.text
    response = read_response(whole)
    if completion.finish_reason == "length":
        return Verdict(0.0, "cut at the length limit")
    if not response.well_formed:
        counts = ", ".join(f"{whole.count(tag)} {tag}" for tag in TAGS)
        return Verdict(0.0, f"not one thinking part and then one answer part ({counts})")
    if forbid_empty and not response.thinking:
        return Verdict(0.0, "empty thinking")
    return Verdict(1.0, "well-formed")
