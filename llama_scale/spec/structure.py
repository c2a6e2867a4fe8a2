"""The structural part of validation: does each value have the form its field asks for?

pydantic does the checking; here its findings become problems in the user's terms. A document is checked as JSON, the
form in which ``llama-scale schema`` describes it too: a list is an array, 3.0 is the integer 3, true is no number.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ValidationError

from llama_scale.errors import Problem
from llama_scale.spec.base import PathContext
from llama_scale.spec.fields import key_of, keys_at, kinds_of, literals_of, models_of, spot_at
from llama_scale.spec.locations import BAD_KEY, NO_FORM, Located, locate
from llama_scale.spec.nearby import either, suggest
from llama_scale.spec.patterns import PATTERN_RULES
from llama_scale.spec.run import RunSpec
from llama_scale.spec.scalars import parse_scalar
from llama_scale.spec.secret import looks_secret

_SHOWN = 60


def check_structure(
    data: Mapping[str, Any], *, context: PathContext | None = None
) -> tuple[RunSpec | None, list[Problem]]:
    """Return the spec that a document describes, or the problems of its form.

    Args:
        data: The document as plain data (``str`` keys, JSON values).
        context: Gives paths their meaning; None leaves them as they are written.
    """
    data = {key: integral(value) for key, value in data.items()}
    try:
        spec = RunSpec.model_validate_json(json.dumps(data), context=context, by_alias=True, by_name=False)
    except ValidationError as error:
        return None, translate(error, RunSpec, data)
    return spec, []


def translate(error: ValidationError, root: type[BaseModel], data: Mapping[str, Any]) -> list[Problem]:
    """Return pydantic's findings about a document of the model ``root`` in the user's terms."""
    found = [item for item in error.errors(include_url=False) if not _miscounted(item)]
    return [_translate(item, root, data) for item in locate(found, root, data)]


def _miscounted(error: Mapping[str, Any]) -> bool:
    """Tell whether pydantic calls a list too short only because it does not count the items that have faults."""
    return bool(error["type"] == "too_short" and len(error["input"]) >= error["ctx"]["min_length"])


def show(value: object) -> str:
    """Write a value as it stands in YAML, short, and never a secret."""
    if isinstance(value, str):
        if looks_secret(value):
            return "(hidden: it looks like a secret)"
        text = json.dumps(value, ensure_ascii=False).replace("\\\\", "\\")
        text = text[1:-1]
        return f"'{text}'" if len(text) <= _SHOWN - 2 else f"'{text[: _SHOWN - 5]}...'"
    if isinstance(value, Mapping):
        return "a mapping"
    if isinstance(value, list | tuple):
        return f"a list of {len(value)}"
    text = json.dumps(value)
    return text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "..."


def integral(value: Any) -> Any:
    """Make floats without a fraction integers, as JSON Schema sees them: ``tokens: 1e9`` is a whole number."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, list):
        return [integral(item) for item in value]
    if isinstance(value, dict):
        return {key: integral(item) for key, item in value.items()}
    return value


@dataclass(frozen=True, slots=True)
class _Finding:
    """One finding of pydantic with the document's own path and value."""

    kind: str
    path: tuple[str | int, ...]
    value: Any
    limits: Mapping[str, Any]
    text: str
    root: type[BaseModel]
    data: Mapping[str, Any]

    @property
    def key(self) -> str:
        return str(self.path[-1]) if self.path else ""

    def siblings(self) -> tuple[str, ...]:
        """Return the keys that the mapping around this value may have."""
        parent: Any = self.data
        for part in self.path[:-1]:
            parent = parent[part]
        return keys_at(self.root, self.path[:-1], self.data, parent)


def _translate(located: Located, root: type[BaseModel], data: Mapping[str, Any]) -> Problem:
    path, value, error = located.path, located.value, located.error
    if located.kind in ("union_tag_invalid", "union_tag_not_found"):
        path, value = (*path, "kind"), value.get("kind")
    finding = _Finding(located.kind, path, value, error.get("ctx", {}), error["msg"], root, data)
    rule = _RULES.get(finding.kind, _other)
    message, hint, code = rule(finding)
    return Problem(path=path, message=message, hint=hint, code=code)


_Told = tuple[str, str, str]
"""Message, hint and code of a problem."""


def _missing(finding: _Finding) -> _Told:
    last = finding.path[-1]
    if isinstance(last, int):
        return f"the list has only {last} items; another one is needed", "", "length"
    kinds = _kinds_around(finding) if last == "kind" else []
    if kinds:
        return (
            "the key 'kind' is missing: it tells which form the section has",
            f"write kind: {either(kinds)}",
            "missing",
        )
    meaning = _description(finding)
    return f"the required key {last!r} is missing", f"add it: {meaning}" if meaning else "add it", "missing"


def _bad_key(finding: _Finding) -> _Told:
    allowed = re.findall(r"'([^']*)'", str(finding.limits.get("expected", "")))
    parent = finding.path[-2] if len(finding.path) > 1 else "it"
    return f"{finding.key!r} is not a key that {parent!r} takes", suggest(finding.key, allowed), "unknown-key"


def _no_form(finding: _Finding) -> _Told:
    meaning = _description(finding)
    return f"{show(finding.value)} has none of the forms that {finding.key!r} takes", meaning, "type"


def _description(finding: _Finding) -> str:
    """Return the one line that the spec's reference gives to the field."""
    spot = spot_at(finding.root, finding.path[:-1], finding.data)
    parent: Any = finding.data
    for part in finding.path[:-1]:
        parent = parent[part]
    fields = (pair for model in (spot.models(parent) if spot else ()) for pair in model.model_fields.items())
    texts = (field.description for name, field in fields if key_of(name, field) == finding.key)
    return next((text for text in texts if text), "").rstrip(".")


def _kinds_around(finding: _Finding) -> list[str]:
    """Return the kinds that the section whose ``kind`` this is can have."""
    spot = spot_at(finding.root, finding.path[:-1], finding.data)
    return [kind for model in models_of(spot.annotation) for kind in kinds_of(model)] if spot else []


def _unknown_key(finding: _Finding) -> _Told:
    return f"unknown key {finding.key!r}", suggest(finding.key, finding.siblings()), "unknown-key"


def _bad_kind(finding: _Finding) -> _Told:
    kinds = _kinds_around(finding)
    return f"kind: {show(finding.value)} is not known here", _suggest_all(finding.value, kinds), "unknown-kind"


def _bad_choice(finding: _Finding) -> _Told:
    spot = spot_at(finding.root, finding.path, finding.data)
    choices = [str(choice) for choice in literals_of(spot.annotation)] if spot else []
    if finding.key == "kind":
        return _bad_kind(finding)
    return (
        f"{show(finding.value)} is not one of the values allowed here",
        _suggest_all(finding.value, choices),
        "choice",
    )


def _suggest_all(given: object, choices: Sequence[str]) -> str:
    """Name the near choice first, then all of them."""
    near = suggest(given, choices)
    return f"{near} ({either(choices)})" if near.startswith("did") and len(choices) > 1 else near


def _bound(word: str, limit: str) -> Callable[[_Finding], _Told]:
    def told(finding: _Finding) -> _Told:
        bound = finding.limits[limit]
        return (
            f"{show(finding.value)} must be {word} {bound:g}"
            if isinstance(bound, float)
            else (f"{show(finding.value)} must be {word} {bound}"),
            "",
            "range",
        )

    return told


def _length(finding: _Finding) -> _Told:
    low, high = finding.limits.get("min_length"), finding.limits.get("max_length")
    rule = f"at least {low}" if low is not None else f"at most {high}"
    return f"{show(finding.value)} items; the field takes {rule}", "", "length"


def _pattern(finding: _Finding) -> _Told:
    pattern = finding.limits["pattern"]
    rule, hint = PATTERN_RULES.get(pattern, (f"must match {pattern}", ""))
    return f"{show(finding.value)} {rule}", hint, "pattern"


def _own(finding: _Finding) -> _Told:
    message, _, hint = str(finding.limits["error"]).partition("; ")
    return message, hint, "value"


def _type(finding: _Finding) -> _Told:
    wanted = _TYPES[finding.kind]
    hint = ""
    if finding.kind == "string_type" and isinstance(finding.value, int | float | bool):
        hint = f'put it in quotes: "{show(finding.value)}"'
    elif finding.kind in ("int_type", "float_type", "bool_type") and isinstance(finding.value, str):
        hint = "remove the quotes" if _is_number(finding.value) else ""
    if finding.value is None:
        return f"the value is missing (null); {wanted} is needed", "", "type"
    return f"{show(finding.value)} is not {wanted}", hint, "type"


def _is_number(text: str) -> bool:
    try:
        return not isinstance(parse_scalar(text), str)
    except ValueError:
        return False


def _other(finding: _Finding) -> _Told:
    return f"{show(finding.value)} is refused: {finding.text}", "", finding.kind.replace("_", "-")


_TYPES = {
    "int_type": "an integer",
    "float_type": "a number",
    "bool_type": "true or false",
    "string_type": "text",
    "tuple_type": "a list",
    "dict_type": "a mapping",
    "model_type": "a mapping",
    "model_attributes_type": "a mapping",
}
_RULES: dict[str, Callable[[_Finding], _Told]] = {
    **dict.fromkeys(_TYPES, _type),
    NO_FORM: _no_form,
    BAD_KEY: _bad_key,
    "missing": _missing,
    "extra_forbidden": _unknown_key,
    "union_tag_not_found": _missing,
    "union_tag_invalid": _bad_kind,
    "literal_error": _bad_choice,
    "greater_than": _bound("greater than", "gt"),
    "greater_than_equal": _bound("at least", "ge"),
    "less_than": _bound("less than", "lt"),
    "less_than_equal": _bound("at most", "le"),
    "too_short": _length,
    "too_long": _length,
    "string_pattern_mismatch": _pattern,
    "value_error": _own,
}
