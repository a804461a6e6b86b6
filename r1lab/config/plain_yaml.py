"""YAML with the plain types of YAML 1.2: text, numbers, true and false, null, lists, mappings.

Those of YAML 1.1, which PyYAML reads, surprise: here `3e-4` is a number, `010` is ten, `no` and
`on` are text, `2026-01-31` is text. A key given twice is refused, and so is what would grow without
end when it is written out. Nothing here imports torch.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import yaml

# A document with more values is no recipe, but a bomb made of aliases (or a data set).
_MAX_VALUES = 10**5

Place = tuple[str | int, ...]


class YamlFault(ValueError):
    """Text that is no plain YAML; `line` (from 1) is where, None where there is no telling."""

    def __init__(self, message: str, line: int | None = None) -> None:
        super().__init__(message)
        self.line = line


def parse(text: str) -> Any:
    """The value that a text stands for; raises YamlFault."""
    try:
        value = yaml.load(text, Loader=_YamlLoader)
    except RecursionError:
        raise YamlFault("not YAML: it is nested too deeply") from None
    except yaml.MarkedYAMLError as error:
        raise _worded(error, text) from None
    except yaml.YAMLError as error:
        raise YamlFault(f"not YAML: {' '.join(str(error).split())}") from None
    # An alias inside its own anchor has no end, and aliases of aliases grow without measure.
    below, num = [value], 0
    while below:
        entry, num = below.pop(), num + 1
        if num > _MAX_VALUES:
            raise YamlFault("its anchors and aliases (&x, *x) stand for too much")
        if isinstance(entry, dict | list):
            below.extend(entry.values() if isinstance(entry, dict) else entry)
    return value


def find(text: str, place: Sequence[str | int]) -> tuple[int, int]:
    """How many parts of a place stand in a text that parses, and the line of the last of these."""
    node: yaml.Node | None = yaml.compose(text, Loader=_YamlLoader)
    depth, line = 0, 1
    for part in place:
        if isinstance(node, yaml.MappingNode):
            pairs = [(name, value) for name, value in node.value if name.value == part]
        elif isinstance(node, yaml.SequenceNode) and str(part).isdecimal():
            pairs = [(value, value) for value in node.value[int(part) :][:1]]
        else:
            break
        if not pairs:
            break
        name, node = pairs[0]
        depth, line = depth + 1, name.start_mark.line + 1
    return depth, line


class _YamlLoader(yaml.SafeLoader):
    """Safe YAML with the scalars of YAML 1.2's core schema, and no key twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        lines: dict[Any, int] = {}
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            line = key_node.start_mark.line + 1
            if not isinstance(key, str):
                raise YamlFault(f"the key {key!r} is not text; put it in quotes", line)
            if key in lines:
                raise YamlFault(f"{key}: given twice (first in line {lines[key]})", line)
            lines[key] = line
        mapping: dict[Any, Any] = super().construct_mapping(node, deep=deep)
        return mapping


def _number(_: _YamlLoader, node: yaml.ScalarNode) -> int | float:
    text = node.value.replace("_", "").lower()
    try:
        if not node.tag.endswith(":int"):
            return float(text.replace(".inf", "inf"))
        return int(text, 16 if "0x" in text else 10)
    except ValueError:
        raise YamlFault(f"{text[:40]!r} is no number that can be", _line(node)) from None


def _truth(_: _YamlLoader, node: yaml.ScalarNode) -> bool:
    if node.value.lower() not in ("true", "false"):
        raise YamlFault(f"{node.value[:40]!r} is not true or false", _line(node))
    return bool(node.value.lower() == "true")


def _line(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1


def _worded(error: yaml.MarkedYAMLError, text: str) -> YamlFault:
    line = error.problem_mark.line + 1 if error.problem_mark else None
    whole = str(error.problem).startswith("but ")  # the second half of a sentence
    told = f"not YAML: {error.context}, {error.problem}" if whole else f"not YAML: {error.problem}"
    if line is not None and any("\t" in each for each in text.split("\n")[line - 1 :][:1]):
        told += "; YAML is indented with spaces, not with tabs"
    return YamlFault(told, line)


def _fill(loader: Any) -> None:
    """Give the loader the core schema's types, and no others: no dates, sets or bytes."""
    loader.yaml_implicit_resolvers, loader.yaml_constructors = {}, {}
    number = r"[-+]?(?:\.[0-9]+|[0-9][0-9_]*(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf)"
    for name, pattern, first, make in (
        ("null", "~|null|Null|NULL|", ["~", "n", "N", ""], yaml.SafeLoader.construct_yaml_null),
        ("bool", "true|True|TRUE|false|False|FALSE", list("tTfF"), _truth),
        ("int", "[-+]?(?:[0-9][0-9_]*|0x[0-9a-fA-F]+)", list("-+0123456789"), _number),
        ("float", number, list("-+.0123456789"), _number),
        ("str", None, None, yaml.SafeLoader.construct_yaml_str),
        ("seq", None, None, yaml.SafeLoader.construct_yaml_seq),
        ("map", None, None, yaml.SafeLoader.construct_yaml_map),
    ):
        tag = f"tag:yaml.org,2002:{name}"
        loader.add_constructor(tag, make)
        if pattern is not None:
            loader.add_implicit_resolver(tag, re.compile(f"^(?:{pattern})$"), first)
    loader.add_constructor(None, yaml.SafeLoader.construct_undefined)


_fill(_YamlLoader)
