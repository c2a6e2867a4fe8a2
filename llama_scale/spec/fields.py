"""Questions about the models themselves: which keys a mapping takes, where paths may stand."""

from __future__ import annotations

import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

EACH = "*"
"""Stands for any index or key in a path pattern."""


def key_of(name: str, field: FieldInfo) -> str:
    """Return a field's name in YAML (``global_`` is written ``global``)."""
    return field.alias or name


def models_of(annotation: Any) -> tuple[type[BaseModel], ...]:
    """Return the models that an annotation allows: all members of a union, the item type of a tuple not included."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return models_of(get_args(annotation)[0])
    if origin in (Union, types.UnionType):
        return tuple(model for part in get_args(annotation) for model in models_of(part))
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return (annotation,)
    return ()


def item_of(annotation: Any) -> Any:
    """Return the annotation of a tuple's items (None for what is no tuple)."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return item_of(get_args(annotation)[0])
    if origin in (Union, types.UnionType):
        return next((item for part in get_args(annotation) if (item := item_of(part)) is not None), None)
    return get_args(annotation)[0] if origin is tuple else None


def literals_of(annotation: Any) -> tuple[Any, ...]:
    """Return the values that an annotation lists by Literal."""
    origin = get_origin(annotation)
    if origin is Literal:
        return get_args(annotation)
    if origin is Annotated:
        return literals_of(get_args(annotation)[0])
    if origin in (Union, types.UnionType):
        return tuple(value for part in get_args(annotation) for value in literals_of(part))
    return ()


def kinds_of(model: type[BaseModel]) -> tuple[str, ...]:
    """Return the values of a model's ``kind``; empty if it has none."""
    field = model.model_fields.get("kind")
    return literals_of(field.annotation) if field else ()


@dataclass(frozen=True, slots=True)
class Spot:
    """What the spec's models say about one place of a document."""

    annotation: Any

    def models(self, value: object) -> tuple[type[BaseModel], ...]:
        """Return the models the value can be: one if its ``kind`` says so."""
        candidates = models_of(self.annotation)
        kind = value.get("kind") if isinstance(value, Mapping) else None
        chosen = tuple(model for model in candidates if kind in kinds_of(model))
        return chosen or candidates

    def below(self, part: str | int, value: object) -> Spot | None:
        """Return the place below a key or an index; None where the models have nothing to say (plugin options)."""
        if isinstance(part, int):
            item = item_of(self.annotation)
            return Spot(item) if item is not None else None
        for model in self.models(value):
            for name, field in model.model_fields.items():
                if key_of(name, field) == part:
                    return Spot(field.annotation)
        return None


def spot_at(root: type[BaseModel], path: Sequence[str | int], data: object) -> Spot | None:
    """Follow a path of a document through the models."""
    spot: Spot | None = Spot(root)
    for part in path:
        if spot is None:
            return None
        spot = spot.below(part, data)
        if isinstance(part, str):
            data = data.get(part) if isinstance(data, Mapping) else None
        else:
            data = data[part] if isinstance(data, list) and part < len(data) else None
    return spot


def keys_at(root: type[BaseModel], path: Sequence[str | int], data: object, here: object) -> tuple[str, ...]:
    """Return the keys that the mapping ``here`` at ``path`` may have."""
    spot = spot_at(root, path, data)
    models = spot.models(here) if spot else ()
    return tuple(dict.fromkeys(key_of(n, f) for model in models for n, f in model.model_fields.items()))


@cache
def path_patterns(root: type[BaseModel]) -> frozenset[tuple[str, ...]]:
    """Return where a document may hold file paths; ``*`` stands for an index."""
    return frozenset(_walk_paths(root, ()))


def _walk_paths(model: type[BaseModel], prefix: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    for name, field in model.model_fields.items():
        here = (*prefix, key_of(name, field))
        if _is_path(field):
            yield here
        item = item_of(field.annotation)
        if any(isinstance(part, FieldInfo) and _has_path_mark(part.json_schema_extra) for part in _metadata(item)):
            yield (*here, EACH)
        for below in models_of(field.annotation):
            yield from _walk_paths(below, here)
        for below in models_of(item) if item is not None else ():
            yield from _walk_paths(below, (*here, EACH))


def _is_path(field: FieldInfo) -> bool:
    return _has_path_mark(field.json_schema_extra) or any(
        isinstance(part, FieldInfo) and _has_path_mark(part.json_schema_extra) for part in _metadata(field.annotation)
    )


def _metadata(annotation: Any) -> Iterator[Any]:
    if get_origin(annotation) is Annotated:
        yield from get_args(annotation)[1:]
    elif get_origin(annotation) in (Union, types.UnionType):
        for part in get_args(annotation):
            yield from _metadata(part)


def _has_path_mark(extra: object) -> bool:
    return isinstance(extra, Mapping) and extra.get("x-path") is True
