"""The reference of the spec and of built-in plugins in Markdown: ``python -m llama_scale.spec.reference``."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from llama_scale.spec.plugin_schema import installed_schema

_HEAD = """\
# Spec reference

One YAML file describes one run. This page is generated from the models' descriptions
(`python -m llama_scale.spec.reference > docs/spec.md`); `llama-scale schema` prints the same as JSON Schema.

* Scalars are YAML 1.2: `1e-4` is a number, `no` is text. A whole number may be written `1e9`. Duplicate keys, unknown
  keys and several documents are errors; anchors, aliases and merge keys work.
* Paths are relative to the spec's folder; `${env:NAME}` is replaced in path fields and nowhere else.
* `--set a.b[0].c=VALUE` replaces or adds a value before the spec is checked; the value is YAML.
"""


def render_reference() -> str:
    """Return the whole page."""
    schema, _ = installed_schema(built_in_only=True)
    parts = [_HEAD, "## Top level\n", *_table(schema)]
    for name, definition in sorted(schema["$defs"].items()):
        parts += [f"\n## {name}\n", f"{definition['description']}\n", *_table(definition)]
    return "\n".join(parts) + "\n"


def _table(definition: Mapping[str, Any]) -> Iterator[str]:
    yield "| key | form | default | meaning |"
    yield "|---|---|---|---|"
    required = definition.get("required", ())
    for key, form in definition["properties"].items():
        default = "required" if key in required else f"`{_default(form['default'])}`"
        meaning = " ".join(form.get("description", "Tells which form the section has.").split())
        yield f"| `{key}` | {_form(form)} | {default} | {meaning} |"


def _default(value: object) -> str:
    return json.dumps(value) if not isinstance(value, dict) else "see its section" if value else "{}"


def _form(form: Mapping[str, Any]) -> str:
    if "$ref" in form:
        return _link(form["$ref"])
    for key in ("oneOf", "anyOf"):
        if key in form:
            return " or ".join(_form(part) for part in form[key])
    if "const" in form:
        return f"`{form['const']}`"
    if "enum" in form:
        return ", ".join(f"`{value}`" for value in form["enum"])
    if form.get("type") == "array":
        items = form.get("items") or form["prefixItems"][0]
        return f"list of {_form(items)}"
    return "path" if form.get("x-path") else str(form.get("type", "any")) + _bounds(form)


def _bounds(form: Mapping[str, Any]) -> str:
    words = {"exclusiveMinimum": ">", "minimum": ">=", "exclusiveMaximum": "<", "maximum": "<="}
    shown = [f"{word} {form[key]}" for key, word in words.items() if key in form and form[key] != 2**63 - 1]
    return f" {', '.join(shown)}" if shown else ""


def _link(reference: str) -> str:
    name = reference.rpartition("/")[2]
    return f"[{name}](#{name.lower()})"


if __name__ == "__main__":
    sys.stdout.write(render_reference())
