"""Units behind a number: which may be left out, which convert, and which disagree."""

from __future__ import annotations

import re
from fractions import Fraction
from functools import lru_cache

# Name: (what it measures, its size in that measure's first unit). Short forms and plurals below.
_SIZES: dict[str, tuple[str, Fraction]] = {
    "meter": ("length", Fraction(1)), "kilometer": ("length", Fraction(1000)),
    "centimeter": ("length", Fraction(1, 100)), "millimeter": ("length", Fraction(1, 1000)),
    "inch": ("length", Fraction(254, 10_000)), "foot": ("length", Fraction(3048, 10_000)),
    "yard": ("length", Fraction(9144, 10_000)), "mile": ("length", Fraction(1_609_344, 1000)),
    "gram": ("mass", Fraction(1)), "kilogram": ("mass", Fraction(1000)),
    "milligram": ("mass", Fraction(1, 1000)), "pound": ("weight", Fraction(16)),
    "ounce": ("weight", Fraction(1)), "ton": ("tons", Fraction(1)),
    "second": ("time", Fraction(1)), "minute": ("time", Fraction(60)),
    "hour": ("time", Fraction(3600)), "day": ("time", Fraction(86_400)),
    "week": ("time", Fraction(604_800)), "month": ("months", Fraction(1)),
    "year": ("months", Fraction(12)), "liter": ("volume", Fraction(1)),
    "milliliter": ("volume", Fraction(1, 1000)), "dollar": ("money", Fraction(100)),
    "cent": ("money", Fraction(1)), "euro": ("euros", Fraction(1)),
    "degree": ("angle", Fraction(1)), "unit": ("", Fraction(1)),
}  # fmt: skip
_SHORT = {
    "m": "meter", "km": "kilometer", "cm": "centimeter", "mm": "millimeter", "in": "inch",
    "ft": "foot", "feet": "foot", "inches": "inch", "yd": "yard", "mi": "mile", "g": "gram",
    "kg": "kilogram", "mg": "milligram", "lb": "pound", "lbs": "pound", "oz": "ounce",
    "s": "second", "sec": "second", "min": "minute", "h": "hour", "hr": "hour", "hrs": "hour",
    "l": "liter", "L": "liter", "ml": "milliliter", "mL": "milliliter", 
    "metre": "meter", "kilometre": "kilometer", "centimetre": "centimeter", "litre": "liter",
    "millimetre": "millimeter", "deg": "degree", "USD": "dollar",
}  # fmt: skip
_SPEEDS = {"mph": "mile/hour", "kph": "kilometer/hour", "kmph": "kilometer/hour"}
LETTERS = frozenset("mgshL")
_PREFIXED = {"square": 2, "sq": 2, "cubic": 3, "cu": 3}


def is_unit(words: str) -> bool:
    """Whether the words name a unit that this module knows."""
    return read_unit(words, 1)[1] is not None


@lru_cache(maxsize=4096)
def read_unit(words: str, power: int) -> tuple[str, Fraction | None]:
    """(what is measured, the size of one); (the words themselves, None) where it is no known unit.

    `power` is the exponent written behind the words.
    """
    text = " ".join(words.replace(".", " ").split()).replace(" per ", "/")
    text = _SPEEDS.get(text, text)
    measures, size = [], Fraction(1)
    for place, part in enumerate(re.split(r"\s*/\s*", text)):
        found = _one(part)
        if found is None:
            return _plain(words), None
        measure, factor, own = found
        exponent = own * (power if place == 0 else 1) * (1 if place == 0 else -1)
        measures.append(f"{measure}^{exponent}" if measure else "")
        size *= factor**exponent
    return "".join(measures), size


def _one(part: str) -> tuple[str, Fraction, int] | None:
    words, exponent = part.split(), 1
    if words and words[0].lower() in _PREFIXED:
        exponent = _PREFIXED[words.pop(0).lower()]
    if len(words) != 1:
        return None
    name, _, power = words[0].partition("^")
    if power.isdigit() and len(power) == 1:
        exponent *= int(power)
    for spelled in (name, name.lower(), name.lower().removesuffix("s")):
        spelled = _SHORT.get(spelled, spelled)
        if "/" in spelled:
            above, _, below = spelled.partition("/")
            return f"{above}/{below}", Fraction(1), exponent
        if spelled in _SIZES:
            return (*_SIZES[spelled], exponent)
    return None


def _plain(words: str) -> str:
    found = re.findall(r"[a-z]+", words.lower())
    return " ".join(word.removesuffix("s") for word in found)


def conversion(one: tuple[str, int], two: tuple[str, int]) -> Fraction | None:
    """What a number in the second unit is multiplied by to be one in the first; None: they differ.

    Each unit is (words, exponent). A unit that names nothing ("units") agrees with all others.
    """
    measure_one, size_one = read_unit(*one)
    measure_two, size_two = read_unit(*two)
    if not measure_one or not measure_two:
        return Fraction(1)
    if measure_one != measure_two:
        return None
    if size_one is None or size_two is None:
        return Fraction(1) if size_one is size_two else None
    return size_two / size_one
