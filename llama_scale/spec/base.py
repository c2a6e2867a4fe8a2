"""The common base of all spec sections: frozen, closed to unknown keys, documented field by field."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from posixpath import normpath
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationInfo


class Section(BaseModel):
    """Base of every section: unknown keys are errors, values are never coerced, instances are immutable."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, validate_default=True, populate_by_name=True)


NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
PATH_PATTERN = r"^[^\x00]+$"
ENV_TOKEN = re.compile(r"\$\{env:([^}]*)\}")
_ENV_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


@dataclass(frozen=True, slots=True, kw_only=True)
class PathContext:
    """Give paths of a spec their meaning: the folder that relative ones start at, and the environment."""

    folder: str
    env: Mapping[str, str]

    def resolve(self, path: str) -> str:
        """Return ``path`` with ``${env:NAME}`` replaced, absolute and without ``.`` and ``..``.

        Raises:
            ValueError: an unset or malformed variable, a path that starts with ``~``.
        """
        text = self.expand(path)
        if text.startswith("~"):
            raise ValueError(f"{path!r} starts with ~, which only a shell expands; write ${{env:HOME}} instead")
        return normpath(PurePosixPath(self.folder, text))

    def expand(self, path: str) -> str:
        """Return ``path`` with ``${env:NAME}`` replaced, relative if it is.

        Raises:
            ValueError: an unset or malformed variable.
        """
        text = ENV_TOKEN.sub(self._variable, path)
        if "${" in text and "${" in path:
            raise ValueError(f"{path!r} holds a ${{...}} that is not ${{env:NAME}}; write ${{env:NAME}}")
        return text

    def _variable(self, match: re.Match[str]) -> str:
        name = match.group(1)
        if not _ENV_NAME.fullmatch(name):
            raise ValueError(f"{match.group(0)} does not name an environment variable; write ${{env:NAME}}")
        value = self.env.get(name, "")
        if not value:
            state = "is empty" if name in self.env else "is not set"
            raise ValueError(f"environment variable {name} {state}; set it: export {name}=...")
        return value


def _resolve_path(value: str, info: ValidationInfo) -> str:
    return info.context.resolve(value) if isinstance(info.context, PathContext) else value


PathStr = Annotated[
    str,
    Field(pattern=PATH_PATTERN, json_schema_extra={"x-path": True}),
    AfterValidator(_resolve_path),
]
"""A path as text. While a file is loaded, ``${env:NAME}`` is replaced and a relative path made absolute from the
spec's folder (``PathContext``); values built in Python stay as they are."""

MAX_INT = 2**63 - 1
"""Largest integer of a spec: engines, checkpoints and token files count in int64."""

PositiveInt = Annotated[int, Field(gt=0, le=MAX_INT)]
NonNegativeInt = Annotated[int, Field(ge=0, le=MAX_INT)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegativeFloat = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Probability = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Name = Annotated[str, Field(pattern=NAME_PATTERN)]
"""A name that is safe in a folder name, a job name and an entry point."""


def is_absolute(path: str) -> bool:
    """Tell whether a spec path is absolute (specs are POSIX wherever they are validated)."""
    return PurePosixPath(path).is_absolute()
