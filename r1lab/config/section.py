"""The base class of recipe sections and the types that keys share. Does not import torch."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from r1lab.precision import settled

# Upper bound on counts: refuses typing mistakes here, before a library that counts in 32 bits
# overflows.
_MOST = 10**9
Positive = Annotated[int, Field(gt=0, le=_MOST)]
NonNegative = Annotated[int, Field(ge=0, le=_MOST)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]  # what numpy's generators take


def _nameable(text: str) -> str:
    if not text.strip() or not text.isprintable():
        raise ValueError(f"{text!r} is empty or not printable; give a name or remove the key")
    return text


# The name of a file, folder, function, ...: one non-empty line.
Name = Annotated[str, AfterValidator(_nameable)]
# The name of a run is also its folder's name, so `.`, `..` and hidden names are refused.
RunName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-][A-Za-z0-9._-]*$", max_length=100)]


def _address(text: str) -> str:
    if not re.fullmatch(r"https?://[^/\s@?#]+/?", text):
        raise ValueError(f"{text!r} is not a server address; write http://HOST:PORT")
    return text.rstrip("/")


ServerUrl = Annotated[str, AfterValidator(_address)]

# The dtype of computation. `auto` is resolved when the recipe is read, so code never sees it.
Dtype = Annotated[
    Literal["auto", "bfloat16", "float32"],
    AfterValidator(settled),
]


class Section(BaseModel):
    """A section of a recipe: refuses unknown keys and is frozen after validation.

    Values keep the type that YAML gave them: a quoted number is text, `true` is not a number.
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
    """Return the scalar types that a key accepts; empty for a section or a container."""
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
        "; remove the quotes" if quoted else ""
    )
