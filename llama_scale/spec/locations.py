"""Where pydantic's findings stand in the document itself.

pydantic puts the tags of unions between keys: ``engine.megatron.zero``, or ``layers.LastLayers.last`` for a field that
takes one of several forms. Here they are dropped, and of a field with several forms only what concerns the form that
was written is kept.
"""

from __future__ import annotations

import types
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel

from llama_scale.spec.fields import Spot, kinds_of, models_of

_MISMATCHES = frozenset(
    {
        "literal_error",
        "int_type",
        "float_type",
        "bool_type",
        "string_type",
        "tuple_type",
        "dict_type",
        "model_type",
        "model_attributes_type",
    }
)
"""Findings that say only that a value has another form than this one."""

NO_FORM = "no_form"
"""Type of the finding that a value has none of the forms that its field takes."""

BAD_KEY = "bad_key"
"""Type of the finding that a key of a mapping with free keys is not one of those that it takes."""
_KEY = "[key]"
"""What pydantic puts behind the key that such a finding is about."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Located:
    """One finding of pydantic.

    Args:
        kind: pydantic's type of error, NO_FORM or BAD_KEY.
        path: Path in the document.
        value: What the document has there.
        error: The finding as pydantic gives it.
    """

    kind: str
    path: tuple[str | int, ...]
    value: Any
    error: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Walk:
    """A finding on the way from the top of the document to its place."""

    error: Mapping[str, Any]
    rest: tuple[str | int, ...]
    value: Any
    spot: Spot | None
    path: tuple[str | int, ...] = ()
    forms: Mapping[tuple[str | int, ...], str | int] = field(default_factory=dict)
    """Path of a field with several forms -> the form that the finding is about."""


def locate(errors: Iterable[Mapping[str, Any]], root: type[BaseModel], data: Any) -> list[Located]:
    """Return the findings with their places in a document of the model ``root``."""
    walks = [_to_the_end(_Walk(error=e, rest=tuple(e["loc"]), value=data, spot=Spot(root))) for e in errors]
    hopeless, wrong_forms = _judge_forms(walks)
    found: dict[tuple[Any, ...], Located] = {}
    for walk in walks:
        told = next((path for path in walk.forms if path in hopeless), None)
        if told is not None:
            value = _at(data, told)
            found.setdefault((told,), Located(kind=NO_FORM, path=told, value=value, error=walk.error))
        elif not any((path, form) in wrong_forms for path, form in walk.forms.items()):
            kind, path, value = walk.error["type"], walk.path, walk.value
            if path[-1:] == (_KEY,):
                kind, path, value = BAD_KEY, path[:-1], path[-2]
            located = Located(kind=kind, path=path, value=value, error=walk.error)
            found.setdefault((walk.path, kind, walk.error["msg"]), located)
    return list(found.values())


def _to_the_end(walk: _Walk) -> _Walk:
    while walk.rest:
        part, annotation = walk.rest[0], walk.spot.annotation if walk.spot else None
        models = models_of(annotation)
        tagged = len(models) > 1 and any(part in kinds_of(model) for model in models)
        if tagged:
            chosen = next(model for model in models if part in kinds_of(model))
            walk = replace(walk, rest=walk.rest[1:], spot=Spot(chosen))
        elif _forms(annotation) > 1 and walk.path not in walk.forms:
            walk = replace(walk, rest=walk.rest[1:], forms={**walk.forms, walk.path: part})
        else:
            walk = _step(walk, part)
    return walk


def _step(walk: _Walk, part: str | int) -> _Walk:
    return replace(
        walk,
        rest=walk.rest[1:],
        path=(*walk.path, part),
        value=_at(walk.value, (part,)),
        spot=walk.spot.below(part, walk.value) if walk.spot else None,
    )


def _at(value: Any, path: Sequence[str | int]) -> Any:
    for part in path:
        if isinstance(value, dict):
            value = value.get(part)
        elif isinstance(value, list) and isinstance(part, int) and part < len(value):
            value = value[part]
        else:
            return None
    return value


def _forms(annotation: Any) -> int:
    """Count the members of a union that are not None; 1 for what is no union."""
    if get_origin(annotation) is Annotated:
        return _forms(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        return sum(part is not types.NoneType for part in get_args(annotation))
    return 1


_Path = tuple[str | int, ...]


def _judge_forms(walks: Sequence[_Walk]) -> tuple[set[_Path], set[tuple[_Path, str | int]]]:
    """Return the fields whose value has none of the forms, and the forms that a value was not meant to have."""
    forms: dict[_Path, dict[str | int, bool]] = {}
    for walk in walks:
        for path, form in walk.forms.items():
            mismatch = walk.path == path and walk.error["type"] in _MISMATCHES
            forms.setdefault(path, {}).setdefault(form, False)
            forms[path][form] |= mismatch
    hopeless = {path for path, mismatches in forms.items() if all(mismatches.values())}
    wrong = {(path, form) for path, mismatches in forms.items() for form, wrong in mismatches.items() if wrong}
    return hopeless, wrong
