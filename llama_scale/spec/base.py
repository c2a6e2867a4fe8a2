"""The common base of all spec sections: frozen, closed to unknown keys, documented field by field."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field


class Section(BaseModel):
    """Base of every section: unknown keys are errors, values are never coerced, instances are immutable."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, validate_default=True, populate_by_name=True)


def _no_nul(value: str) -> str:
    if "\x00" in value:
        raise ValueError("a path cannot hold a NUL byte")
    return value


PathStr = Annotated[
    str,
    Field(min_length=1, json_schema_extra={"x-path": True}),
    AfterValidator(_no_nul),
]
"""A path as text; `${env:NAME}` is replaced while loading. Relative paths are relative to the spec's folder."""

PositiveInt = Annotated[int, Field(gt=0)]
NonNegativeInt = Annotated[int, Field(ge=0)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegativeFloat = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Probability = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
"""A name that is safe in a folder name, a job name and an entry point."""


def is_absolute(path: str) -> bool:
    """Tell whether a spec path is absolute (specs are POSIX wherever they are validated)."""
    return PurePosixPath(path).is_absolute()
