"""What every section of a recipe is made of: its checks, and types that keys share. No torch."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from r1lab.precision import settled

# Counts end where numbers stop being possible: a slip of the keyboard is refused here, and not by
# a library that counts in 32 bits.
_MOST = 10**9
Positive = Annotated[int, Field(gt=0, le=_MOST)]
NonNegative = Annotated[int, Field(ge=0, le=_MOST)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]  # what numpy's generators take


def _nameable(text: str) -> str:
    if not text.strip() or not text.isprintable():
        raise ValueError(f"{text!r} names nothing; write a name, or leave the key out")
    return text


# Something that names a file, a folder, a function, ...: one line with something on it.
Name = Annotated[str, AfterValidator(_nameable)]
# What a run is called: also the name of its folder, so neither `.` nor `..` nor a hidden one.
RunName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-][A-Za-z0-9._-]*$", max_length=100)]


def _address(text: str) -> str:
    if not re.fullmatch(r"https?://[^/\s@?#]+/?", text):
        raise ValueError(f"{text!r} is not the address of a server; write http://HOST:PORT")
    return text.rstrip("/")


ServerUrl = Annotated[str, AfterValidator(_address)]

# What weights are computed in; `auto` is settled when a recipe is read, and never leaves it.
Dtype = Annotated[
    Literal["auto", "bfloat16", "float32"],
    AfterValidator(settled),
]


class Section(BaseModel):
    """A part of a recipe: no unknown keys, nothing changed after the check.

    Values are of the type that YAML gave them: a number in quotes is text, `true` is no number.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _as_written(cls, value: Any, info: ValidationInfo) -> Any:
        kinds = _kinds(cls.model_fields[info.field_name or ""].annotation)
        scalars = (bool, str) if {int, float} & kinds else (int, float, str)
        if kinds and str not in kinds and type(value) in scalars and type(value) not in kinds:
            raise PydanticCustomError("scalar", f"Input should be {_words(kinds, value)}")
        return value


def _kinds(annotation: Any) -> set[type]:
    """The plain types that a key takes; empty where it takes a section or a container."""
    if annotation in (int, float, bool, str):
        return {annotation}
    if annotation is type(None):
        return set()
    if getattr(annotation, "__origin__", None) is Literal:
        return {type(choice) for choice in get_args(annotation)}
    parts = get_args(annotation)
    if not parts or getattr(annotation, "__origin__", None) in (tuple, dict):
        return set()
    if hasattr(annotation, "__metadata__"):
        parts = parts[:1]
    return set().union(*map(_kinds, parts))


def _words(kinds: set[type], value: Any) -> Any:
    if kinds == {bool}:
        return "true or false"
    quoted = isinstance(value, str) and re.fullmatch(r"[-+]?\.?[0-9][0-9._eE+-]*", value)
    return ("a number" if float in kinds else "a whole number") + (
        "; take the quotes away" if quoted else ""
    )
