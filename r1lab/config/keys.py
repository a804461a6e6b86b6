"""Lists every key of a recipe with its type, default and description, read from the schema.

Used by `r1lab train --keys`, docs/reference/recipe.md (scripts/write_reference.py) and shell
completion. Nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import UnionType
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from r1lab.config.errors import section_in, show

_BOUNDS = {"ge": "from {}", "gt": "above {}", "le": "to {}", "lt": "below {}"}


class KeyRow(NamedTuple):
    """One key: dotted, with the default as a recipe would write it (`required`: there is none)."""

    key: str
    default: str
    type: str
    meaning: str


def describe(schema: type[BaseModel], prefix: str = "") -> list[KeyRow]:
    """A row for each key that a recipe can have; `name.0.key` is a key of a list's entries."""
    rows = []
    for name, field in schema.model_fields.items():
        section = section_in(field.annotation)
        key = f"{prefix}{name}"
        in_list = get_origin(field.annotation) is tuple
        if section is None or in_list or field.default is None:
            rows.append(KeyRow(key, _default(field), type_words(field), field.description or ""))
        if section is not None:
            rows.extend(describe(section, f"{key}.0." if in_list else f"{key}."))
    return rows


def type_words(field: FieldInfo) -> str:
    """`whole number from 2`, `token, sequence or null`, `list of sections`."""
    if field.examples:
        return ", ".join(map(str, field.examples))
    words = _words(field.annotation)
    bounds = " ".join(dict.fromkeys(_bounds([*_inner(field.annotation), *field.metadata])))
    if not bounds or "number" not in words:
        return words
    kind, null, _ = words.partition(" or null")
    return f"{kind} {bounds}{null}"


def _words(annotation: Any) -> str:
    simple = {bool: "true or false", int: "whole number", float: "number", str: "text"}
    if annotation in simple:
        return simple[annotation]
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "section"
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return ", ".join(map(str, arguments))
    if origin is Annotated:
        return _words(arguments[0])
    if origin in (Union, UnionType):
        plain = [_words(argument) for argument in arguments if argument is not type(None)]
        return " or ".join(plain) + (" or null" if type(None) in arguments else "")
    if origin is tuple:
        inner = _words(arguments[0])
        return "list of sections" if inner == "section" else f"list of {inner}"
    return "mapping"


def _inner(annotation: Any) -> list[Any]:
    """The constraints inside an annotation: those of `Positive` in `Positive | None`."""
    found: list[Any] = []
    if get_origin(annotation) is Annotated:
        for constraint in annotation.__metadata__:
            found.extend(constraint.metadata if isinstance(constraint, FieldInfo) else [constraint])
    if get_origin(annotation) in (Union, UnionType):
        for argument in get_args(annotation):
            found.extend(_inner(argument))
    return found


def _bounds(metadata: list[Any]) -> Iterator[str]:
    for name, words in _BOUNDS.items():
        for constraint in metadata:
            bound = getattr(constraint, name, None)
            if bound is not None and abs(bound) < 10**9:  # more is against slips of the keyboard
                yield words.format(f"{bound:,}" if isinstance(bound, int) else f"{bound:g}")


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    return show(plain(field.get_default(call_default_factory=True)))


def plain(value: Any) -> Any:
    """A section or a tuple as the mappings and lists of a recipe."""
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if isinstance(value, tuple | list):
        return [plain(entry) for entry in value]
    return value
