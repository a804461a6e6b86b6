"""The value of a tree at a point: exact where it is rational, else to many digits.

Sizes are bounded before every power, factorial and binomial, so that no text is dear to evaluate.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from fractions import Fraction
from functools import lru_cache
from math import comb, factorial, gcd, lcm
from typing import Any

from mpmath import mp as _mp

from r1lab.rewards.math.grammar import Node, Unreadable

_MOST_BITS = 20_000  # of an exact value
_GAMMA_DIGITS = 200  # beyond them the gamma function takes seconds
_LARGEST_EXPONENT = 10_000

Value = Any  # Fraction, or a number of mpmath's


class Undefined(ValueError):
    """No value here: a division by zero, a logarithm of zero."""


@lru_cache(maxsize=8)
def context(digits: int) -> Any:
    """mpmath at so many digits, apart from everyone else's mpmath."""
    found = _mp.clone()
    found.dps = digits
    return found


def evaluate(node: Node, point: Mapping[str, Fraction], mp: Any) -> Value:
    """The value with the names at `point`. Raises Undefined, Unreadable for too large."""
    kind = node.kind
    if kind == "num":
        return node.value
    if kind == "add":
        total: Value = Fraction(0)
        for arg in node.args:
            total = _combine(total, evaluate(arg, point, mp), mp, add=True)
        return total
    if kind == "mul":
        total = Fraction(1)
        for arg in node.args:
            total = _combine(total, evaluate(arg, point, mp), mp, add=False)
        return total
    if kind == "inv":
        below = evaluate(node.args[0], point, mp)
        if below == 0 or (not isinstance(below, Fraction) and abs(below) < _tiny(mp)):
            raise Undefined("division by zero")
        return 1 / below
    if kind == "pow":
        return _power(evaluate(node.args[0], point, mp), evaluate(node.args[1], point, mp), mp)
    if kind == "sym":
        return _symbol(node.value, point, mp)
    if kind == "const":
        if node.value == "pi":
            return +mp.pi
        raise Undefined("infinity")
    if kind == "call":
        return _call(node.value, [evaluate(arg, point, mp) for arg in node.args], mp)
    if kind == "percent":
        return evaluate(node.args[0], point, mp) / 100
    if kind == "degree":
        return lift(evaluate(node.args[0], point, mp), mp) * mp.pi / 180
    if kind == "opaque":
        parts = [_fingerprint(evaluate(arg, point, mp), mp) for arg in node.args]
        return _hashed(f"{node.value}({','.join(parts)})")
    raise Unreadable(f"{kind} has no value")


def lift(value: Value, mp: Any) -> Value:
    """The value as a number of mpmath's."""
    return mp.mpf(value.numerator) / value.denominator if isinstance(value, Fraction) else value


def _combine(left: Value, right: Value, mp: Any, *, add: bool) -> Value:
    if isinstance(left, Fraction) and isinstance(right, Fraction):
        result = left + right if add else left * right
        if result.numerator.bit_length() + result.denominator.bit_length() > _MOST_BITS:
            raise Unreadable("a number beyond the limit")
        return result
    left, right = lift(left, mp), lift(right, mp)
    return left + right if add else left * right


def _tiny(mp: Any) -> Any:
    return mp.mpf(10) ** (-mp.dps * 2 // 3)


def _power(base: Value, exponent: Value, mp: Any) -> Value:
    if isinstance(exponent, Fraction):
        if abs(exponent) > _LARGEST_EXPONENT:
            raise Unreadable("an exponent beyond the limit")
        if isinstance(base, Fraction):
            exact = _exact_power(base, exponent)
            if exact is not None:
                return exact
    elif abs(exponent) > _LARGEST_EXPONENT:
        raise Unreadable("an exponent beyond the limit")
    if base == 0:
        if not isinstance(exponent, Fraction) or exponent <= 0:
            raise Undefined("a power of zero")
        return Fraction(0)
    if abs(lift(base, mp)) > mp.mpf(10) ** _LARGEST_EXPONENT:
        raise Unreadable("a number beyond the limit")
    return mp.power(lift(base, mp), lift(exponent, mp))


def _exact_power(base: Fraction, exponent: Fraction) -> Fraction | None:
    """base ** exponent where it is rational and that shows at once; None otherwise."""
    whole, root = exponent.numerator, exponent.denominator
    if base == 0 and exponent <= 0:
        raise Undefined("a power of zero")
    if root == 1:
        bits = max(base.numerator.bit_length(), base.denominator.bit_length())
        if bits * abs(whole) > _MOST_BITS:
            raise Unreadable("a power beyond the limit")
        return base**whole
    if base < 0 or root > 64:
        return None
    above, below = _root(base.numerator, root), _root(base.denominator, root)
    if above is None or below is None:
        return None
    return _exact_power(Fraction(above, below), Fraction(whole))


def _written_root(value: Value, degree: Value, mp: Any) -> Value:
    """A root under its sign: real where the degree is odd; a power is the principal one."""
    if degree == 0:
        raise Undefined("a root of degree zero")
    odd = isinstance(degree, Fraction) and degree.denominator == 1 and degree.numerator % 2 == 1
    if odd and not _is_complex(value) and value < 0:
        return -_power(-value, 1 / degree, mp)
    return _power(value, 1 / degree, mp)


def _root(value: int, degree: int) -> int | None:
    """The whole root of a whole number, None where there is none; by Newton's method."""
    if value < 2:
        return value
    guess = 1 << -(-value.bit_length() // degree)
    while True:
        better = ((degree - 1) * guess + value // guess ** (degree - 1)) // degree
        if better >= guess:
            return guess if guess**degree == value else None
        guess = better


def _symbol(name: str, point: Mapping[str, Fraction], mp: Any) -> Value:
    if name in point:
        return point[name]
    if name == "i":
        return mp.mpc(0, 1)
    if name == "e":
        return +mp.e
    raise Undefined(f"no value for {name}")


def _fingerprint(value: Value, mp: Any) -> str:
    value = lift(value, mp)
    return str(mp.nstr(value, 25))


def _hashed(text: str) -> Fraction:
    digest = hashlib.blake2b(text.encode(), digest_size=4).digest()
    return Fraction(int.from_bytes(digest, "big") + 1, 2**32)


_TRIGONOMETRY = {
    "sin": "sin", "cos": "cos", "tan": "tan", "cot": "cot", "sec": "sec", "csc": "csc",
    "arcsin": "asin", "arccos": "acos", "arctan": "atan", "asin": "asin", "acos": "acos",
    "atan": "atan", "sinh": "sinh", "cosh": "cosh", "tanh": "tanh", "exp": "exp",
}  # fmt: skip


def _call(name: str, values: list[Value], mp: Any) -> Value:
    if name in ("gcd", "lcm", "binom"):
        return _whole_function(name, values)
    if name in ("min", "max"):
        if any(_is_complex(value) for value in values):
            raise Undefined("no order")
        return min(values) if name == "min" else max(values)
    value = values[0]
    if name == "abs":
        return abs(value)
    if name == "root":
        return _written_root(value, values[1], mp)
    if name in ("floor", "ceil"):
        value = value if isinstance(value, Fraction) else getattr(mp, name)(value)
        whole = -(-value // 1) if name == "ceil" else value // 1
        return Fraction(int(whole))
    if name == "factorial":
        if not isinstance(value, Fraction) or abs(value) > 500:
            raise Unreadable("a factorial beyond the limit")
        if value.denominator == 1 and value >= 0:
            return Fraction(factorial(int(value)))
        if value.denominator == 1:
            raise Undefined("a factorial of a negative number")
        if mp.dps > _GAMMA_DIGITS:
            raise Unreadable("a factorial between whole numbers to more digits than it is worth")
        return mp.gamma(lift(value + 1, mp))
    most = _LARGEST_EXPONENT if name in ("exp", "sinh", "cosh") else 10**12
    if abs(value) > most and name not in ("log", "ln", "lg"):
        raise Unreadable("an argument beyond the limit")
    return _analytic(name, [lift(value, mp) for value in values], mp)


def _analytic(name: str, values: list[Value], mp: Any) -> Value:
    value = values[0]
    try:
        if name in ("log", "ln", "lg"):
            if value == 0:
                raise Undefined("a logarithm of zero")
            if name == "lg":
                return mp.log(value) / mp.log(10)
            return mp.log(value) / (mp.log(values[1]) if len(values) > 1 else 1)
        return getattr(mp, _TRIGONOMETRY[name])(value)
    except (ZeroDivisionError, ValueError, OverflowError) as error:
        raise Undefined(str(error)) from None


def _binomial(above: Fraction, below: int) -> Fraction:
    """Of any number over a small whole one: a (a - 1) ... / below!."""
    result = Fraction(1)
    for step in range(below):
        result *= (above - step) / Fraction(step + 1)
    return result


def _whole_function(name: str, values: list[Value]) -> Fraction:
    if name == "binom" and len(values) == 2 and all(isinstance(v, Fraction) for v in values):
        above, below = values
        if above.denominator != 1 and below.denominator == 1 and 0 <= below <= 20:
            return _binomial(above, int(below))
    if len(values) < 2 or any(
        not isinstance(value, Fraction) or value.denominator != 1 for value in values
    ):
        raise Undefined(f"{name} of what is not whole")
    whole = [int(value) for value in values]
    if name == "binom":
        above, below = whole
        if not 0 <= below <= above <= 2000:
            raise Unreadable("a binomial beyond the limit")
        return Fraction(comb(above, below))
    return Fraction(gcd(*whole) if name == "gcd" else lcm(*whole))


def _is_complex(value: Value) -> bool:
    return not isinstance(value, Fraction) and getattr(value, "imag", 0) != 0


def is_real(value: Value, mp: Any) -> bool:
    """Whether what is imaginary about the value is no more than rounding."""
    return not _is_complex(value) or abs(value.imag) <= _tiny(mp) * (1 + abs(value))
