"""Check an object against a CustomResourceDefinition, as the API server would: structure, unknown fields, CEL rules."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml


def load_definitions(folder: Path) -> dict[tuple[str, str], dict[str, Any]]:
    """Return the definitions of a folder (.yaml, .yaml.gz) by apiVersion and kind."""
    found = {}
    for path in sorted([*folder.glob("*.yaml"), *folder.glob("*.yaml.gz")]):
        text = gzip.decompress(path.read_bytes()).decode() if path.suffix == ".gz" else path.read_text()
        for item in yaml.safe_load_all(text):
            if item and item.get("kind") == "CustomResourceDefinition":
                spec = item["spec"]
                for version in spec["versions"]:
                    key = f"{spec['group']}/{version['name']}", spec["names"]["kind"]
                    found[key] = version["schema"]["openAPIV3Schema"]
    return found


def faults(definitions: dict[tuple[str, str], dict[str, Any]], item: dict[str, Any]) -> list[str]:
    """Return what the API server would say against an object of one of these kinds."""
    import cel
    import jsonschema

    schema = definitions[item["apiVersion"], item["kind"]]
    closed = _closed(schema)
    closed["properties"]["metadata"] = {"type": "object"}
    found = [
        f"{'.'.join(map(str, error.absolute_path))}: {error.message[:200]}"
        for error in jsonschema.Draft7Validator(closed).iter_errors(item)
    ]
    for path, rule, value in _rules(schema, item, ""):
        if "oldSelf" not in rule["rule"] and cel.evaluate(rule["rule"], {"self": value}) is not True:
            found.append(f"{path}: {rule.get('message') or rule['rule']}")
    return found


def _closed(schema: Any) -> Any:
    """Return a schema that refuses unknown fields and understands Kubernetes' own keywords."""
    if isinstance(schema, list):
        return [_closed(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    found = {key: _closed(value) for key, value in schema.items()}
    keeps = found.get("x-kubernetes-preserve-unknown-fields")
    if found.get("type") == "object" and "properties" in found and "additionalProperties" not in found and not keeps:
        found["additionalProperties"] = False
    if found.get("x-kubernetes-int-or-string"):
        found.pop("type", None)
        found["anyOf"] = [{"type": "integer"}, {"type": "string"}]
    return found


def _rules(schema: dict[str, Any], value: Any, path: str) -> Iterator[tuple[str, dict[str, Any], Any]]:
    for rule in schema.get("x-kubernetes-validations", ()):
        yield path, rule, value
    if isinstance(value, dict):
        extra = schema.get("additionalProperties")
        for key, item in value.items():
            below = schema.get("properties", {}).get(key) or (extra if isinstance(extra, dict) else None)
            if below:
                yield from _rules(below, item, f"{path}.{key}")
    elif isinstance(value, list) and "items" in schema:
        for index, item in enumerate(value):
            yield from _rules(schema["items"], item, f"{path}[{index}]")
