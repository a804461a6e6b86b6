"""Is the answer equal to the gold one? Beyond numbers: fractions, radicals, sets, matrices, text.

The policy, with reasons, is docs/verifiers.md. Model text is hostile: it is refused by size, read
by the small grammar of `math_grammar` into a tree, and its numbers are exact fractions; nothing of
it is ever evaluated as code. What that grammar does not read is compared as text.
"""

from __future__ import annotations

import re
from fractions import Fraction
from functools import lru_cache

from r1lab.rewards.math.equal import same
from r1lab.rewards.math.grammar import LONGEST, Node, Unreadable, check_size, has, tidy
from r1lab.rewards.math.parser import parse
from r1lab.rewards.math.read import answer_part, read_answer
from r1lab.rewards.math.words import given_choice, gold_choice, words_of
from r1lab.types import Completion, Problem, Verdict

_PLAIN_NUMBER = re.compile(r"[+-]?(?:\d{1,100}(?:\.\d{0,100})?|\.\d{1,100})")
_PLAIN_FRACTION = re.compile(
    r"([+-]?)(?:\\[dt]?frac\{(-?\d{1,60})\}\{(\d{1,60})\}|(\d{1,60}) ?/ ?(\d{1,60}))"
)
_SPACES = re.compile(r"(?<!\d) | (?!\d)")
_WORDS = re.compile(r"\\(?:text\w*|mbox|mathrm|mathbf)\s*\{([^{}]*)\}")
_STOPS = re.compile(r"(?<=[A-Za-z])\.")
_DECIMAL_COMMA = re.compile(r"(-?\d+),(\d{1,2}|\d{4,})|(-?0),(\d+)")


def reward(problem: Problem, completion: Completion) -> Verdict:
    """1.0 where the answer equals the gold answer, else 0.0."""
    given = answer_part(completion)
    if given is None:
        return Verdict(0.0, "no answer")
    if not given.strip():
        return Verdict(0.0, "empty answer")
    if len(given) > LONGEST and "\\boxed" not in given[-LONGEST:]:
        return Verdict(0.0, f"longer than {LONGEST} characters")
    equal, reason = judge(problem.answer, given)
    return Verdict(float(equal), reason)


def judge(gold: str, given: str) -> tuple[bool, str]:
    """Whether an answer part equals a gold answer, with the reason."""
    if given.strip() == gold.strip() and "\\boxed" not in given:
        return True, "the same text"
    choice = gold_choice(gold)
    if choice is not None and (chosen := given_choice(given)) is not None:
        return chosen == choice, f"chose {chosen}"
    right, answer = read_answer(gold, gold=True), read_answer(given)
    if not answer:
        return False, "no answer"
    fast = settled_fast(right, answer)
    if fast is not None:
        return fast
    if len(given) < 2 * len(gold) + 50 and squashed(gold) == squashed(given):
        return True, "the same text"
    words = words_of(right), words_of(answer)
    if words[0] is not None or words[1] is not None:
        equal = words[0] == words[1]
        return equal, "the same words" if equal else "not the same words"
    return _judge_trees(right, answer)


def settled_fast(right: str, answer: str) -> tuple[bool, str] | None:
    """The verdict where both are plain numbers or the same text; None: it takes the grammar."""
    if right == answer:
        return True, "the same text"
    numbers = plain_number(right), plain_number(answer)
    if numbers[0] is not None and numbers[1] is not None:
        equal = numbers[0] == numbers[1]
        return equal, "the same number" if equal else "another number"
    return None


def plain_number(text: str) -> Fraction | None:
    """The value of a number or a fraction of whole numbers; None for anything else."""
    if _PLAIN_NUMBER.fullmatch(text):
        return Fraction(text if text[-1] != "." else text[:-1])
    if found := _PLAIN_FRACTION.fullmatch(text):
        sign, a, b, c, d = found.groups()
        below = int(b or d)
        return Fraction(int(a or c), below) * (-1 if sign == "-" else 1) if below else None
    return None


def _judge_trees(right: str, answer: str) -> tuple[bool, str]:
    try:
        check_size(answer)
        gold = _gold_tree(right)
        if gold is None:
            return False, "not the text of the gold answer, which is no formula"
        given = parse(answer)
        if has(given, "opaque") and _unevaluated(given) and not _unevaluated(gold):
            return False, "left a sum, an integral or a limit undone"
        if same(gold, given) or _decimal_comma(right, answer):
            return True, "equal"
    except Unreadable as error:
        if _decimal_comma(right, answer):
            return True, "equal"
        return False, f"not readable: {error}"
    except RecursionError:
        return False, "nested too deeply"
    return False, "not equal"


@lru_cache(maxsize=1024)
def _gold_tree(text: str) -> Node | None:
    """The gold answer's tree: a group of completions shares it."""
    try:
        return parse(text)
    except Unreadable:
        return None


def _unevaluated(node: Node) -> bool:
    own = node.kind == "opaque" and str(node.value)[:3] in ("sum", "int", "pro", "lim", "iin")
    return own or any(_unevaluated(arg) for arg in node.args)


def _decimal_comma(right: str, answer: str) -> bool:
    """2,74 for 2.74: read so only where the other side is written with a point."""
    for one, two in ((right, answer), (answer, right)):
        found = _DECIMAL_COMMA.fullmatch(one)
        number = plain_number(two) if found and "." in two else None
        if found and number is not None:
            whole, part = (found[1], found[2]) if found[1] else (found[3], found[4])
            return number == Fraction(f"{whole}.{part}")
    return False


def squashed(text: str) -> str:
    """The text without spaces and dressing, for what no grammar reads."""
    # A space between two digits stays: 2 0 is not 20. So do braces: 2^{n+1} is not 2^n+1.
    plain = _WORDS.sub(r"\1", text)
    return _STOPS.sub("", _SPACES.sub("", tidy(plain))).rstrip(".,")
