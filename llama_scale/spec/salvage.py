"""Keep what is good of a document with structural faults, so that every rule whose inputs are valid still runs.

A faulty value is absent from its section's view; a rule that comes to read it stops there. A key that nobody knows may
be a misspelt one, so the field that it resembles is absent too (all fields left out, if it resembles none): a rule must
not complain about a default that the user meant to replace.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Annotated, Any

from pydantic import BaseModel, Field, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from llama_scale.errors import Problem
from llama_scale.spec.base import PathContext
from llama_scale.spec.fields import Spot, item_of, key_of
from llama_scale.spec.run import RunSpec
from llama_scale.spec.view import Absent, View

_Path = tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class _Fault:
    """A problem's path below the place that is looked at."""

    path: _Path
    unknown_key: bool


def salvage(
    data: Mapping[str, Any], problems: Sequence[Problem], *, context: PathContext | None = None
) -> dict[str, Any]:
    """Return the sections of a document: models of those without faults, views of what is good of the others.

    Args:
        data: The document; numbers as ``structure`` sees them.
        problems: Its structural problems.
        context: As for ``structure.check_structure``.

    Returns:
        Section name -> model or view; sections of which nothing can be told are left out, those that the document
        leaves out and that have a default are in it.
    """
    faults = [_Fault(problem.path, problem.code == "unknown-key") for problem in problems]
    return vars(_view(RunSpec, data, faults, context))


def _view(
    model: type[BaseModel], data: Mapping[str, Any], faults: Sequence[_Fault], context: PathContext | None
) -> View:
    names = {key_of(name, field): name for name, field in model.model_fields.items()}
    doubtful = _meant(
        [str(f.path[0]) for f in faults if f.unknown_key and len(f.path) == 1], names.keys() - data.keys()
    )
    fields: dict[str, Any] = {}
    for key, name in names.items():
        field = model.model_fields[name]
        below = _below(faults, key)
        try:
            if key in data:
                fields[name] = _value(field, data[key], below, context)
            elif not below and key not in doubtful and not field.is_required():
                fields[name] = field.get_default(call_default_factory=True)
        except Absent:
            continue
    return View(absent=names.values(), **fields)


def _meant(unknown: Sequence[str], left_out: set[str]) -> set[str]:
    """Return the fields that unknown keys may stand for."""
    meant: set[str] = set()
    for key in unknown:
        near = get_close_matches(key.lower(), left_out, n=1, cutoff=0.6)
        meant |= set(near) if near else left_out
    return meant


def _value(field: FieldInfo, value: Any, faults: Sequence[_Fault], context: PathContext | None) -> Any:
    """Return the model or view of one value.

    Raises:
        Absent: nothing is to be had from it.
    """
    if not faults:
        try:
            return _adapter(field).validate_json(json.dumps(value), context=context, by_alias=True, by_name=False)
        except ValidationError as error:  # a fault whose problem stands elsewhere
            raise Absent from error
    return _faulty(field.annotation, value, faults, context)


def _adapter(field: FieldInfo) -> TypeAdapter[Any]:
    """Return what checks a field's value, with the field's constraints and its discriminator."""
    parts: list[Any] = [*field.metadata]
    if field.discriminator is not None:
        parts.append(Field(discriminator=field.discriminator))
    annotation: Any = Annotated[(field.annotation, *parts)] if parts else field.annotation
    return TypeAdapter(annotation)


def _faulty(annotation: Any, value: Any, faults: Sequence[_Fault], context: PathContext | None) -> Any:
    if any(not fault.path for fault in faults):
        raise Absent
    if isinstance(value, list):
        item = item_of(annotation)
        if item is None:
            raise Absent
        parts = enumerate(value)
        return tuple(
            _value(FieldInfo.from_annotation(item), part, _below(faults, index), context) for index, part in parts
        )
    models = Spot(annotation).models(value)
    if not isinstance(value, dict) or len(models) != 1:
        raise Absent
    return _view(models[0], value, faults, context)


def _below(faults: Sequence[_Fault], part: str | int) -> list[_Fault]:
    return [_Fault(fault.path[1:], fault.unknown_key) for fault in faults if fault.path[:1] == (part,)]
