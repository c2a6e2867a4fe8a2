"""The JSON Schema (draft 2020-12) of a spec, from the models that validate it."""

from __future__ import annotations

from typing import Any

from llama_scale.spec.run import RunSpec

DIALECT = "https://json-schema.org/draft/2020-12/schema"


def spec_schema() -> dict[str, Any]:
    """Return the schema that accepts exactly what the structural part of ``validate`` accepts.

    The options of plugins are free here; ``plugin_schema`` adds their forms.
    """
    schema = RunSpec.model_json_schema(by_alias=True, mode="validation")
    form: dict[str, Any] = portable(schema)
    return {"$schema": DIALECT, "title": "llama-scale spec", **form}


def portable(node: Any) -> Any:
    """Make patterns mean the same in every dialect of regular expressions.

    In Python's (which the jsonschema package uses) ``$`` also matches before a line end at the end of a text.
    """
    if isinstance(node, dict):
        return {
            key: f"{value}(?!\\n)" if key == "pattern" and isinstance(value, str) else portable(value)
            for key, value in node.items()
            if key != "title" or not isinstance(value, str)
        }
    if isinstance(node, list):
        return [portable(item) for item in node]
    return node
