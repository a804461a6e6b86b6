"""Answers that hang, blow up or try to run code: what a verifier has to survive.

Every string is written here by hand or built by a rule; none is ever evaluated. The families are
those reported of public checkers: towers of powers and factorials (which ignore SIGALRM inside C
code), nesting that overflows a recursive parser, sheer size, patterns that make a regular
expression backtrack, characters that break an encoder, and text that `eval`, `sympify` or
`parse_expr` would run.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

# The value that some of them have after all: no gold answer is likely to be equal to it.
_INNER = "7919"

Family = Literal["power", "nesting", "size", "pattern", "character", "code"]


@dataclass(frozen=True, slots=True)
class HostileItem:
    """One hostile answer: what a model would write as its answer, tags not included.

    `gold` is the answer to judge it against where a reward has no problem of its own at hand; the
    hostile answer is wrong for it, so a score above 0 is a mistake too. Items of the family `code`
    write the canary file when some part of the text is executed.
    """

    name: str
    family: Family
    answer: str
    gold: str = "42"


def hostile_items(canary: str | Path = "r1lab-canary") -> list[HostileItem]:
    """All hostile items (some 250), always in the same order.

    `canary` is a file that must not exist before and must not exist afterwards. To make a response
    of an item, put `answer` into the template's answer tags, bare and within \\boxed{}.
    """
    groups: tuple[tuple[Family, dict[str, str]], ...] = (
        ("power", _powers()),
        ("nesting", _nesting()),
        ("size", _sizes()),
        ("pattern", _patterns()),
        ("character", _characters()),
        ("code", _code(str(canary))),
    )
    items = [
        HostileItem(name, family, answer)
        for family, answers in groups
        for name, answer in answers.items()
    ]
    # The same bombs where the gold answer invites a checker to compute or to compare with them.
    golds = {
        "fraction": r"\frac{1}{3}",
        "power": "9^{81}",
        "set": r"\{1, 2, 3\}",
        "interval": "[0, 1)",
    }
    for kind, gold in golds.items():
        items += [
            HostileItem(f"{name}, gold is a {kind}", "power", answer, gold)
            for name, answer in _powers().items()
        ]
    return items


def _powers() -> dict[str, str]:
    """Small text, astronomic value."""
    return {
        "tower of 9": "9^{9^{9}}",
        "tower of 5": "5^{5^{5^{5}}}",
        "tower in Python": "9**9**9**9",
        "tower with carets": "9^9^9^9",
        "tower in a fraction": r"\frac{9^{9^{9}}}{9^{9^{9}} - 1}",
        "tower under a root": r"\sqrt[3]{7^{7^{7^{7}}}}",
        "tower in a logarithm": r"\log_{2}\left(3^{3^{3^{3}}}\right)",
        "tower in a sine": r"\sin\left(10^{10^{10}}\right)",
        "negative tower": "10^{-10^{10}}",
        "long exponent": f"2^{{{'9' * 400}}}",
        "huge integer": "10^{10000000}",
        "huge difference": "10^{5000000} - 10^{5000000} + 7919",
        "huge modulus": r"7^{10^{9}} \bmod 1000",
        "factorial": "100000000!",
        "factorial of a factorial": "((30!)!)!",
        "double factorials": "9" + "!" * 40,
        "binomial": r"\binom{1000000000}{500000000}",
        "nested binomial": r"\binom{\binom{1000}{500}}{2}",
        "long sum": r"\sum_{n=1}^{10^{12}} \frac{1}{n^2}",
        "long product": r"\prod_{n=1}^{10^{9}} n",
        "hard integral": r"\int_0^1 \frac{x^{x^{x}} \sin(x^{77})}{\ln(1+x^{99})} dx",
        "limit": r"\lim_{x \to 0} \frac{\sin^{9999}(x)}{x^{9999}}",
        "expansion": "(x + y + z + w)^{5000}",
        "expansion of a product": "".join(f"(x+{n})" for n in range(2000)),
        "polynomial of high degree": "x^{99999999} - 1 = 0",
        "scientific notation": "1e999999999",
        "scientific notation in LaTeX": r"1 \times 10^{999999999}",
        "percentage of a tower": r"9^{9^{9}}\%",
        "base of a tower": "11_{9^{9^{9}}}",
    }


def _nesting() -> dict[str, str]:
    depth = 3000
    return {
        "parentheses": "(" * depth + _INNER + ")" * depth,
        "open parentheses": "(" * (10 * depth),
        "braces": "{" * depth + _INNER + "}" * depth,
        "brackets": "[" * depth + _INNER + "]" * depth,
        "left and right": r"\left(" * depth + _INNER + r"\right)" * depth,
        "fractions": r"\frac{1}{" * depth + _INNER + "}" * depth,
        "roots": r"\sqrt{" * depth + _INNER + "}" * depth,
        "powers": "2^{" * depth + _INNER + "}" * depth,
        "boxes": r"\boxed{" * depth + _INNER + "}" * depth,
        "open boxes": r"\boxed{" * (3 * depth),
        "absolute values": "|" * depth + _INNER + "|" * depth,
        "functions": r"\sin(" * depth + _INNER + ")" * depth,
        "minus signs": "-" * (5 * depth) + _INNER,
        "matrices": r"\begin{pmatrix}" * 500 + _INNER + r"\end{pmatrix}" * 500,
        "sets": r"\{" * depth + _INNER + r"\}" * depth,
        "text": r"\text{" * depth + "a" + "}" * depth,
        "answer tags": "<answer>" * depth + _INNER,
        "think tags": "<think></think>" * depth,
    }


def _sizes() -> dict[str, str]:
    return {
        "40,000 letters": "a" * 40_000,
        "a million digits": "7" * 1_000_000,
        "long decimal": "0." + "142857" * 20_000,
        "long repeating decimal": r"0.\overline{" + "142857" * 5_000 + "}",
        "long sum of ones": "+".join("1" for _ in range(20_000)),
        "long product of names": "*".join(f"x_{{{n}}}" for n in range(5_000)),
        "long list": ", ".join(str(n) for n in range(30_000)),
        "long set": r"\{" + ", ".join(str(n) for n in range(10_000)) + r"\}",
        "long matrix": r"\begin{pmatrix}" + r" \\ ".join("1 & 2 & 3" for _ in range(5_000))
        + r"\end{pmatrix}",
        "many equations": " = ".join(str(n) for n in range(10_000)),
        "many boxes": "".join(rf"\boxed{{{n}}}" for n in range(43, 5_000)),
        "many dollars": "$" * 40_000,
        "many answers": "".join(f"<answer>{n}</answer>" for n in range(43, 5_000)),
        "many unions": r" \cup ".join(f"({n}, {n + 1})" for n in range(5_000)),
        "many conjunctions": " or ".join(f"x = {n}" for n in range(43, 5_000)),
        "many variables": " + ".join(rf"\alpha_{{{n}}}^{{{n}}}" for n in range(2_000)),
    }  # fmt: skip


def _patterns() -> dict[str, str]:
    """For regular expressions with nested or adjacent quantifiers."""
    length = 30_000
    return {
        "spaces": "1" + " " * length + "x",
        "tabs and newlines": "\t\n" * length + "x",
        "thousands": "1" + ",000" * (length // 4) + ",",
        "digits and commas": "1," * length,
        "digits and spaces": "1 " * length,
        "zeros": "0" * length + "x",
        "points": "." * length,
        "decimals": "1." * length,
        "slashes": "1/" * length,
        "signs": "+-" * length + _INNER,
        "words": "and or " * (length // 7),
        "unclosed command": r"\frac" * (length // 5),
        "half tags": "<answer" * (length // 7),
        "close tags": "</think>" * (length // 8),
        "backslashes": "\\" * length,
        "braces apart": "{}" * length,
        "percent signs": "5" + "%" * length,
        "units": "5" + " cm" * (length // 3),
        "equals": "x=" * length,
        "nearly a number": "1" * 5_000 + "e" + "1" * 5_000 + "e",
    }


def _characters() -> dict[str, str]:
    return {
        "empty box": r"\boxed{}",
        "zero byte": "79\x0019",
        "control characters": "".join(chr(n) for n in range(32)),
        "lone surrogate": "\ud800",
        "byte order mark": "\ufeff\ufffe",
        "right to left": "\u202e9197\u202c",
        "zero width": "\u200b".join(_INNER),
        "combining marks": _INNER + "\u0335" * 5_000,
        "other digits": "\u0667\u096f\u0661\u09ef",
        "superscript digits": "9" + "\u2079" * 50,
        "circled digits": "\u2466\u2468\u2460\u2468",
        "vulgar fraction": _INNER + "\u215b",
        "roman numeral": "\u2160\u216f",
        "infinity": r"\infty - \infty",
        "not a number": "nan",
        "overflow": "inf",
        "division by zero": r"\frac{1}{0}",
        "zero over zero": "0/0",
        "zero to zero": "0^0 / 0",
        "tangent at its pole": r"\tan(\pi/2)",
        "logarithm of zero": r"\log(0)",
        "base one": "111_{1}",
        "base zero": "1_{0}",
        "negative base": "1_{-2}",
        "unclosed box": r"\boxed{7919",
        "ANSI escape": "\x1b[2J\x1b[31m7919",
        "HTML": "<script>alert(1)</script><img src=x onerror=alert(1)>",
    }


def _code(canary: str) -> dict[str, str]:
    """Text that writes the canary where something executes it."""
    write = f"open({canary!r}, 'w').write('x')"
    shell = f"touch {canary}"
    return {
        "write": write,
        "import": f"__import__('os').system({shell!r})",
        "import in LaTeX": rf"\boxed{{__import__('os').system({shell!r})}}",
        "import in operatorname": rf"\operatorname{{__import__}}('os').system({shell!r})",
        "import in a power": f"2**__import__('os').system({shell!r})",
        "import after a number": f"7919 + __import__('os').system({shell!r})",
        "eval": f'eval("{write}")',
        "exec": f'exec("{write}")',
        "lambda": f"(lambda: {write})()",
        "comprehension": f"[{write} for _ in (1,)]",
        "walrus": f"(y := {write})",
        "f-string": f"f'{{{write}}}'",
        "subclasses": "().__class__.__base__.__subclasses__()",
        "globals": f"Symbol.__init__.__globals__['__builtins__']['eval'](\"{write}\")",
        "sympify": f'sympify("{write}")',
        "parse_expr": f'parse_expr("{write}")',
        "lambdify": f'lambdify((), "{write}")()',
        "attribute": f"x.__class__.__mro__[-1].__subclasses__() or {write}",
        "format": "{0.__class__.__init__.__globals__}",
        "template": f"{{{{ {write} }}}}",
        "semicolon": f"; {shell}",
        "substitution": f"$({shell})",
        "backticks": f"`{shell}`",
        "pipe": f"7919 | {shell}",
        "newline": f"7919\n{shell}\n",
        "write18": rf"\immediate\write18{{{shell}}}",
        "input": r"\input{/etc/passwd}",
        "pickle": f"cos\nsystem\n(S'{shell}'\ntR.",
        "YAML": f"!!python/object/apply:os.system ['{shell}']",
        "JSON": f'{{"py/reduce": [{{"py/function": "os.system"}}, ["{shell}"]]}}',
        "decorator": f"@exec\n@input\nclass X: {write}",
    }
