"""Does each step of a chain of equalities follow from the one before, up to the answer?

The work is read as statements (lines, or parts between commas and semicolons), each a chain
`a = b = c`. A statement about numbers holds when all its members are equal, exactly. A statement
with an unknown is an equation, and must say what the equation before it says: it has the same
solution. Where the problem's metadata holds `expression` or `equation` (or the coefficients of a
linear one, as `r1lab.data.derivations` gives them), the chain has to start from it, so that
`9 = 9` is no derivation of 9.

The work is the answer part where that holds an equals sign, else the thinking: this reward looks at
the work, and at nothing but the work. `wait` takes the member before it back, `check` is passed
over, as in the small base's corpus.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping
from typing import Any

from r1lab.rewards.math.equal import agree, scalars_agree
from r1lab.rewards.math.grammar import Node, Unreadable
from r1lab.rewards.math.parser import parse
from r1lab.rewards.math.settle import Contradiction, settle
from r1lab.rewards.math.tree import names_of
from r1lab.types import Completion, Problem, Verdict

_LONGEST = 4000  # characters
_MOST_STEPS = 100
_SEPARATORS = re.compile(
    r"[\n;,]|\\\\|(?:=>|\\Rightarrow|\\implies|\bso\b|\bthen\b|\bhence\b|\bcheck\b)"
)
_CUES = re.compile(
    r"\b(?:let me see|I think|maybe|therefore|we get)\b|[$&]|\\(?:begin|end)\{\w+\*?\}"
)


def reward(problem: Problem, completion: Completion) -> Verdict:
    """1.0 where the steps hold and end in the gold answer, else 0.0 with the first bad step.

    `parts` has `steps`, the share of the steps that hold.
    """
    work = completion.answer or ""
    if "=" not in work:
        work = completion.thinking or ""
    if "=" not in work:
        return Verdict(0.0, "no chain of equalities")
    if len(work) > _LONGEST:
        return Verdict(0.0, f"longer than {_LONGEST} characters")
    if completion.answer is None:
        return Verdict(0.0, "no answer")
    right, total, fault, last = check(work, problem.metadata)
    parts = {"steps": right / total if total else 0.0}
    if fault:
        return Verdict(0.0, fault, parts)
    if not (last is not None and _agrees(problem.answer, last)):
        return Verdict(0.0, "does not end in the right answer", parts)
    final = completion.answer.rpartition("=")[2]
    try:
        if not _agrees(problem.answer, parse(final)):
            return Verdict(0.0, "the answer is not the right one", parts)
    except Unreadable as error:
        return Verdict(0.0, f"the answer: {error}", parts)
    return Verdict(1.0, f"{total} steps, each follows", parts)


def check(work: str, metadata: Mapping[str, Any]) -> tuple[int, int, str, Node | None]:
    """(steps that hold, steps, what is wrong with the first that does not, the last member)."""
    right = total = 0
    fault = ""
    last: Node | None = None
    try:
        start = before = _start(metadata)
        first = True
        for statement in _statements(work):
            for holds, shown in _steps(statement, before, first=first):
                total += 1
                right += holds
                if not holds:
                    fault = fault or f"does not follow: {shown:.80}"
            before = _equation(statement) or before
            first, last = False, statement[-1]
        if start is not None and start.kind == "rel" and before is start:
            fault = fault or "no equation for the unknown"
    except (Unreadable, Contradiction) as error:
        return right, max(total, 1), fault or f"not readable: {error}", None
    return right, total, fault or ("" if total else "no step"), last


def _start(metadata: Mapping[str, Any]) -> Node | None:
    """What the chain has to start from, as far as the problem says."""
    if "equation" in metadata:
        return parse(str(metadata["equation"]))
    if {"factor", "added", "right"} <= metadata.keys():
        return parse("{factor} x + {added} = {right}".format(**metadata))
    return parse(str(metadata["expression"])) if "expression" in metadata else None


def _statements(work: str) -> list[list[Node]]:
    """Members of each chain; a statement that begins with `=` goes on with the one before."""
    found: list[list[Node]] = []
    num_members = 0
    for part in _SEPARATORS.split(_CUES.sub(" ", work)):
        texts = [text.strip() for text in re.split(r"(?<![<>!])=", part)]
        if not any(texts):
            continue
        if len(texts) == 1 and not found and not _readable(texts[0]):
            continue  # words before the work
        if part.split()[0] == "wait" and found:
            found.pop()  # the statement before is taken back as a whole
        chain = found.pop() if texts[0] == "" and found else []
        for text in texts:
            if not text:
                continue
            kept, *corrections = re.split(r"\bwait\b", text)
            if kept.strip():
                chain.append(parse(kept))
            for correction in corrections:
                if chain:
                    chain.pop()
                if correction.strip():
                    chain.append(parse(correction))
            num_members += 1
        if num_members > _MOST_STEPS:
            raise Unreadable(f"more than {_MOST_STEPS} steps")
        if chain:
            found.append(chain)
    return found


def _readable(text: str) -> bool:
    try:
        parse(text)
    except Unreadable:
        return False
    return not re.search(r"[A-Za-z]{3}", text)


def _steps(chain: list[Node], before: Node | None, *, first: bool) -> list[tuple[bool, str]]:
    """(whether it holds, how it reads) of each link of a chain."""
    found = []
    unknown = [member for member in chain if names_of(member)]
    if first and before is not None and before.kind != "rel" and chain[0] != before:
        return [(False, "the chain does not start from the problem")]
    for one, two in itertools.pairwise(chain):
        known = not names_of(one) and not names_of(two)
        if known or len(unknown) == len(chain):
            found.append((scalars_agree(one, two), "a link between members"))
    equation = _equation(chain)
    if equation is not None and before is not None and before.kind == "rel":
        found.append((_same_equation(before, equation), "an equation with another solution"))
    return found


def _equation(chain: list[Node]) -> Node | None:
    """The equation that a chain with an unknown states; None for a chain of numbers."""
    if len(chain) < 2 or not names_of(chain[0]) or names_of(chain[-1]) == names_of(chain[0]):
        return None
    return Node("rel", (chain[0], chain[-1]), ("=",))


def _same_equation(one: Node, two: Node) -> bool:
    return agree(settle(one, scalars_agree), settle(two, scalars_agree))


def _agrees(gold: str, node: Node) -> bool:
    try:
        return agree(settle(parse(gold), scalars_agree), settle(node, scalars_agree))
    except (Unreadable, Contradiction):
        return False
