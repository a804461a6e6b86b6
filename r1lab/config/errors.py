"""Turns a pydantic ValidationError of a recipe into one line: place, key, value, what is allowed.

Nothing here imports torch.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from r1lab.hints import nearest

Key = tuple[str | int, ...]


def explain(error: ValidationError, schema: type[BaseModel], where: Callable[[Key], str]) -> str:
    """Return one line for the first error, with the number of further errors.

    `where` returns the file and line, or the option, that gave a key its value.
    """
    found = error.errors(include_url=False)
    # pydantic counts a list without its faulty entries: what is wrong is the entry.
    inside = {fault["loc"][:depth] for fault in found for depth in range(len(fault["loc"]))}
    faults = [fault for fault in found if fault["loc"] not in inside or not fault["loc"]]
    # A misspelt key tells more than the required key that is missing because of it.
    first = min(faults, key=lambda fault: fault["type"] != "extra_forbidden")
    key: Key = tuple(first["loc"])
    message = _message(first, schema)
    if key:
        message = f"{'.'.join(map(str, key))}: {message}"
    elif named := re.match(r"([a-z0-9_.]+):", message):  # a check across keys names one itself
        key = tuple(named[1].split("."))
    more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
    return f"{where(key)}: {message}{more}"


def _message(fault: ErrorDetails, schema: type[BaseModel]) -> str:
    """What is wrong with the value, what is allowed, and the nearest match."""
    kind, value, context = fault["type"], show(fault["input"]), fault.get("ctx", {})
    key = fault["loc"]
    section: type[BaseModel] | None = schema
    for part in key[:-1]:
        section = section_below(section, part)
    fields = section.model_fields if section else {}
    field = fields.get(str(key[-1])) if key else None
    meaning = f" ({field.description})" if field and field.description else ""
    if kind == "extra_forbidden":
        return (
            f"unknown key (value {value}){nearest(str(key[-1]), fields)}; "
            f"allowed here: {', '.join(fields)}"
        )
    if kind == "missing":
        return f"missing, and it has no default{meaning}"
    if kind == "literal_error":
        allowed = re.findall(r"'([^']*)'", str(context.get("expected", "")))
        return f"{value} is not one of {', '.join(allowed)}{nearest(str(fault['input']), allowed)}"
    if kind == "value_error":
        message = str(context.get("error", fault["msg"]))
        choice = re.search(r"'([^']*)' is not one of (.+)$", message)
        return message + (nearest(choice[1], choice[2].split(", ")) if choice else "")
    return f"{value} {_RULES.get(kind) or _soften(fault['msg'])}{meaning}"


_RULES = {
    "bool_parsing": "must be true or false",
    "bool_type": "must be true or false",
    "dict_type": "must be a mapping of keys to values",
    "float_parsing": "must be a number",
    "finite_number": "must be a finite number",
    "float_type": "must be a number",
    "int_from_float": "must be a whole number",
    "int_parsing": "must be a whole number",
    "int_parsing_size": "must be a whole number of a reasonable size",
    "int_type": "must be a whole number",
    "model_type": "must be a section, with keys of its own",
    "string_type": "must be text; put it in quotes",
    "too_short": "must have at least one entry",
    "tuple_type": "must be a list",
}


def _soften(message: str) -> str:
    """pydantic's 'Input should be greater than or equal to 2' as 'must be at least 2'."""
    _, should, rule = message.partition(" should ")
    rule = rule.replace("greater than or equal to", "at least").replace(
        "less than or equal to", "at most"
    )
    return f"must {rule}" if should else f"is refused: {message}"


def section_below(section: type[BaseModel] | None, part: str | int) -> type[BaseModel] | None:
    """The section that a key of this one holds; an index into a list of sections is skipped."""
    if section is None or isinstance(part, int) or part.isdecimal():
        return section
    field = section.model_fields.get(part)
    return section_in(field.annotation) if field else None


def section_in(annotation: Any) -> type[BaseModel] | None:
    """The section inside an annotation: Section, Section | None, tuple[Section, ...]."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if get_origin(annotation) in (Union, UnionType, tuple, list, Annotated):
        for argument in get_args(annotation):
            found = section_in(argument)
            if found is not None:
                return found
    return None


def show(value: Any) -> str:
    """A value as a recipe would have it, cut to fit a line."""
    if isinstance(value, BaseModel):
        value = value.model_dump(mode="json")
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
