"""For the benchmark of verifiers: the same answer spelled another way."""

from __future__ import annotations

import random
import re

_FRACTION = re.compile(r"\\[dt]?frac\{(\d+)\}\{(\d+)\}")
_INTEGER = re.compile(r"-?\d{1,12}")
_ROOT = re.compile(r"(?<![\d\w}])(\d)\\sqrt\{(\d+)\}")
_TERMS = re.compile(r"[a-z0-9^{}]+(?: ?[+] ?[a-z0-9^{}]+)+")


def respelled(gold: str, rng: random.Random) -> str | None:
    """An answer equal to a MATH answer and written unlike it; None where no rule fits."""
    if re.search(r"\d,\d{3}|\\!|\{,\}", gold):  # thousands: their commas are no list's
        bare = re.sub(r"\\!\s?|[{}]", "", gold)
        plain = re.fullmatch(r"\d{1,3}(,\d{3})+", bare) is not None
        return bare.replace(",", "") if plain else None
    ways = [way for way in (_integer, _fractions, _order, _root, _dressing) if way(gold, rng)]
    if not ways:
        return None
    spelled = rng.choice(ways)(gold, rng)
    return spelled if spelled != gold else None


def _integer(gold: str, rng: random.Random) -> str | None:
    if not _INTEGER.fullmatch(gold):
        return None
    value, factor = int(gold), rng.randint(2, 9)
    return rng.choice(
        [
            f"{value}.0", f"\\frac{{{value * factor}}}{{{factor}}}", f"x = {value}",
            f"{value - factor} + {factor}", f"{value}.00", f"{factor} \\cdot {value} / {factor}",
        ]
    )  # fmt: skip


def _fractions(gold: str, rng: random.Random) -> str | None:
    """Decimals for fractions where they end, a slash or larger terms where they do not."""

    if re.search(r"\d\\[dt]?frac", gold):  # mixed numbers
        return gold.replace("\\frac", "\\dfrac")

    def other(found: re.Match[str]) -> str:
        above, below = int(found[1]), int(found[2])
        if below and 10**6 * above % below == 0 and rng.random() < 0.6:
            whole = _FRACTION.fullmatch(gold.lstrip("-"))
            decimal = f"{above / below:.6f}".rstrip("0").rstrip(".")
            return decimal if whole else f"({decimal})"
        factor = rng.randint(2, 9)
        if rng.random() < 0.5:
            return f"\\dfrac{{{above * factor}}}{{{below * factor}}}"
        return f"({above}/{below})"

    spelled = _FRACTION.sub(other, gold)
    return spelled if spelled != gold else None


def _order(gold: str, rng: random.Random) -> str | None:
    """Another order: of the members of a list without brackets, of the terms of a sum."""
    if re.fullmatch(r"[^(){}\[\]]+,[^(){}\[\]]+", gold) and "{" not in gold:
        parts = [part.strip() for part in gold.split(",")]
        return ", ".join(parts[::-1]) if all(parts) else None
    if _TERMS.fullmatch(gold):
        return " + ".join(part.strip() for part in gold.split("+")[::-1])
    return None


def _root(gold: str, rng: random.Random) -> str | None:
    spelled = _ROOT.sub(lambda m: f"\\sqrt{{{int(m[1]) ** 2 * int(m[2])}}}", gold)
    return spelled if spelled != gold else None


def _dressing(gold: str, rng: random.Random) -> str | None:
    """Other LaTeX for the same formula."""
    spelled = gold
    for plain, dressed in (
        ("\\left", ""), ("\\right", ""), ("\\frac", "\\dfrac"), ("\\cdot", "\\times"),
        ("^2", "^{2}"), ("\\pi", "{\\pi}"), ("\\le ", "\\leq "), (",", ",\\ "),
    ):  # fmt: skip
        if rng.random() < 0.7:
            spelled = spelled.replace(plain, dressed)
    return spelled if spelled != gold and "text" not in gold else None
