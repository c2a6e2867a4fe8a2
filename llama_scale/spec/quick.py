"""Tell quickly that a spec is good, without importing pydantic.

Building pydantic's models takes longer than everything else that ``validate`` does. The JSON Schema that the models
emit (``schema.json``, kept equal to them by a test) accepts exactly the same documents, so here it is interpreted
directly, and the same rules run on light views of the sections. Whatever is not plainly good, or needs the environment
or a file, is left to ``load.check_text``, which alone words problems.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from keyword import iskeyword
from pathlib import Path
from typing import Any

from llama_scale.spec.compose import ComposeError, compose
from llama_scale.spec.nodes import MappingNode
from llama_scale.spec.overrides import apply_overrides
from llama_scale.spec.resolve import resolve, resolve_view
from llama_scale.spec.rules import check_rules
from llama_scale.spec.secret import find_secrets
from llama_scale.spec.view import View

SCHEMA_FILE = Path(__file__).with_name("schema.json")
"""What ``llama-scale schema --core`` prints; regenerate it with that command when a section changes."""


class _Unsure(Exception):
    """This document is not plainly good."""


def quick_check(text: str, *, overrides: Sequence[str] = ()) -> View | None:
    """Return a view of the resolved spec if the text is plainly good; None if ``check_text`` has to decide."""
    try:
        root = compose(text)
    except ComposeError:
        return None
    if not isinstance(root, MappingNode):
        return None
    root, problems = apply_overrides(root, overrides)
    if problems or "${" in text or any("${" in override for override in overrides) or find_secrets(root):
        return None
    view = check_document(root.data())
    if view is None or view.model.init_from is not None:  # a folder has to be looked at
        return None
    return None if view.tokenizer is not None and view.tokenizer.kind == "hf" else view


def check_document(data: object) -> View | None:
    """Return a view of the resolved spec if the document is plainly good."""
    schema = json.loads(SCHEMA_FILE.read_text(encoding="utf-8"))
    try:
        sections = _Form(schema).build(data, schema)
        resolution = resolve(
            vars(sections), vars(sections), resolve_model=_resolve_model, read_hostfile=lambda path: _refuse()
        )
    except _Unsure:
        return None
    view = View(**resolution.sections)
    if view.adapters or view.tasks or view.mixture is not None:
        return None  # plugins check their own options
    good = not resolution.problems and not check_rules(view, resolution.broken)
    return view if good else None


def _resolve_model(model: View) -> tuple[View | None, list[Any]]:
    if model.kind == "hf":
        raise _Unsure  # a folder has to be read
    return resolve_view(model)


class _Form:
    """Interpret the keywords of JSON Schema that the spec's schema uses."""

    def __init__(self, schema: Mapping[str, Any]) -> None:
        self.definitions: Mapping[str, Any] = schema["$defs"]

    def build(self, value: Any, schema: Mapping[str, Any]) -> Any:
        """Return the value as views, lists and scalars.

        Raises:
            _Unsure: if the schema does not accept it.
        """
        if "$ref" in schema:
            return self.build(value, self.definitions[schema["$ref"].rpartition("/")[2]])
        if "anyOf" in schema:  # "or null" is the only use of it
            if value is None:
                return None
            return self.build(value, next(s for s in schema["anyOf"] if s.get("type") != "null"))
        if "discriminator" in schema:
            kind = value.get("kind") if isinstance(value, dict) else None
            mapping = schema["discriminator"]["mapping"]
            return self.build(
                value, {"$ref": mapping[kind]} if isinstance(kind, str) and kind in mapping else _refuse()
            )
        if "type" in schema:
            value = _CHECKS[schema["type"]](self, value, schema)
        if "enum" in schema and value not in schema["enum"]:
            _refuse()
        if "const" in schema and value != schema["const"]:
            _refuse()
        return value

    def object(self, value: Any, schema: Mapping[str, Any]) -> Any:
        """Build a mapping: a view where the schema lists the keys, a dict where they are free."""
        if not isinstance(value, dict):
            _refuse()
        if "properties" not in schema:
            free = schema.get("additionalProperties", True)
            return {key: self.build(item, free) if isinstance(free, dict) else item for key, item in value.items()}
        properties = schema["properties"]
        if not value.keys() <= properties.keys() or not set(schema.get("required", ())) <= value.keys():
            _refuse()
        fields = {}
        for key, form in properties.items():
            name = f"{key}_" if iskeyword(key) else key
            fields[name] = self.build(value[key] if key in value else form["default"], form)
        return View(**fields)

    def array(self, value: Any, schema: Mapping[str, Any]) -> Any:
        """Build a list."""
        if not isinstance(value, list):
            _refuse()
        if not schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", len(value)):
            _refuse()
        forms = schema.get("prefixItems") or [schema["items"]] * len(value)
        return tuple(self.build(item, form) for item, form in zip(value, forms, strict=True))

    def string(self, value: Any, schema: Mapping[str, Any]) -> Any:
        """Check a text; paths that a shell would expand are left to ``check_text``."""
        if not isinstance(value, str) or ("pattern" in schema and not re.search(schema["pattern"], value)):
            _refuse()
        if schema.get("x-path") and value.startswith("~"):
            _refuse()
        return value

    def number(self, value: Any, schema: Mapping[str, Any]) -> Any:
        """Check a number and its bounds; an integer may be written with a fraction of zero, as in ``1e9``."""
        if isinstance(value, bool) or not isinstance(value, int | float):
            _refuse()
        if schema["type"] == "integer" and isinstance(value, float):
            value = int(value) if value.is_integer() else _refuse()
        bounds = (
            value >= schema.get("minimum", value),
            value <= schema.get("maximum", value),
            "exclusiveMinimum" not in schema or value > schema["exclusiveMinimum"],
            "exclusiveMaximum" not in schema or value < schema["exclusiveMaximum"],
        )
        return value if all(bounds) else _refuse()

    def boolean(self, value: Any, schema: Mapping[str, Any]) -> Any:
        """Check a truth value."""
        return value if isinstance(value, bool) else _refuse()


def _refuse() -> Any:
    raise _Unsure


_CHECKS = {
    "object": _Form.object,
    "array": _Form.array,
    "string": _Form.string,
    "integer": _Form.number,
    "number": _Form.number,
    "boolean": _Form.boolean,
}
