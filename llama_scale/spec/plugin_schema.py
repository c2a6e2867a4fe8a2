"""The JSON Schema of a spec with the options of plugins, for editors: what completes and is marked while one types."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llama_scale.errors import PluginError
from llama_scale.spec.json_schema import portable, spec_schema
from llama_scale.spec.launcher_plugin import BUILT_IN, SECTION, PluginLauncher
from llama_scale.spec.plugin_options import DEFAULT_GATE
from llama_scale.spec.plugins import ADAPTERS, GATES, LAUNCHERS, NOUNS, OWN_DISTRIBUTION, TASKS, Catalogue, catalogue


@dataclass(frozen=True, slots=True, kw_only=True)
class _Place:
    """Where a spec names a group's plugins: definition, its key for the kind, its key for the options."""

    definition: str
    kind: str
    options: str


_PLACES = {
    ADAPTERS: _Place(definition="Adapter", kind="kind", options="options"),
    TASKS: _Place(definition="Task", kind="kind", options="options"),
    GATES: _Place(definition="Mixture", kind="gate", options="gate_options"),
}


def installed_schema(*, built_in_only: bool = False) -> tuple[dict[str, Any], list[str]]:
    """Return the schema with the options of all plugins that load, and why the others are left out."""
    installed = catalogue()
    left_out: list[str] = []
    found = list(_options(installed, built_in_only, left_out))
    return with_options(spec_schema(), found), left_out


def _options(
    installed: Catalogue, built_in_only: bool, left_out: list[str]
) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    """Yield group, name and schema of the options of each plugin."""
    for group in (*_PLACES, LAUNCHERS):
        for name in installed.names(group):
            owners = installed.owners(group, name)
            if built_in_only and {owner.distribution for owner in owners} != {OWN_DISTRIBUTION}:
                continue
            try:
                descriptor = installed.load(group, name)
                yield group, name, descriptor.options.model_json_schema(by_alias=True, mode="validation")
            except PluginError as error:
                left_out.append(str(error))
            except Exception as error:  # pydantic cannot describe every type that a plugin may use
                left_out.append(f"{NOUNS[group]} {name!r}: its options have no JSON Schema: {error}")


def with_options(schema: dict[str, Any], options: Sequence[tuple[str, str, Mapping[str, Any]]]) -> dict[str, Any]:
    """Return the schema with what each kind's options may hold.

    Args:
        schema: The spec's own.
        options: Group, name and options' schema of each plugin.
    """
    definitions = dict(schema["$defs"])
    for group, place in _PLACES.items():
        mine = [(name, form) for member, name, form in options if member == group]
        if not mine:
            continue
        branches = []
        for name, form in mine:
            key = f"{NOUNS[group]}-{name}"
            definitions |= _definitions(key, form)
            branches.append(_branch(place, name, key, default=group == GATES and name == DEFAULT_GATE))
        base = dict(definitions[place.definition])
        base["properties"] = dict(base["properties"])
        base["properties"][place.kind] = _suggesting(base["properties"][place.kind], [name for name, _ in mine])
        definitions[place.definition] = {**base, "allOf": branches}
    launchers = [(name, form) for group, name, form in options if group == LAUNCHERS and name not in BUILT_IN]
    properties = dict(schema["properties"])
    if launchers:
        section = dict(properties[SECTION])
        for name, form in launchers:
            key = f"launcher-{name}"
            definitions |= _definitions(f"{key}-options", form) | {key: _launcher(name, f"{key}-options")}
            section["oneOf"] = [*section["oneOf"], {"$ref": f"#/$defs/{key}"}]
        section.pop("discriminator")  # it lists the built-in kinds
        properties[SECTION] = section
    return {**schema, "properties": properties, "$defs": definitions}


def _launcher(name: str, options: str) -> dict[str, Any]:
    form = portable(PluginLauncher.model_json_schema(by_alias=True, mode="validation"))
    properties = {**form["properties"], "kind": {"const": name}, "options": {"$ref": f"#/$defs/{options}"}}
    return {**form, "properties": properties}


def _branch(place: _Place, name: str, key: str, *, default: bool) -> dict[str, Any]:
    """Say that options of this kind have this form."""
    condition: dict[str, Any] = {"properties": {place.kind: {"const": name}}}
    if not default:
        condition["required"] = [place.kind]
    return {"if": condition, "then": {"properties": {place.options: {"$ref": f"#/$defs/{key}"}}}}


def _suggesting(form: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """Return the form of a kind with the installed names, which are all that `validate` accepts."""
    if "anyOf" in form:
        return {**form, "anyOf": [_suggesting(part, names) if "pattern" in part else part for part in form["anyOf"]]}
    return {**form, "enum": list(names)}


def _definitions(key: str, form: Mapping[str, Any]) -> dict[str, Any]:
    """Return a plugin's schema and the definitions in it under names of its own."""
    inner = form.get("$defs", {})
    outer = {name: value for name, value in form.items() if name != "$defs"}
    found = {key: outer, **{f"{key}-{name}": value for name, value in inner.items()}}
    return {name: portable(_renamed(value, key)) for name, value in found.items()}


def _renamed(node: Any, key: str) -> Any:
    if isinstance(node, dict):
        return {
            name: f"#/$defs/{key}-{value.rpartition('/')[2]}" if name == "$ref" else _renamed(value, key)
            for name, value in node.items()
        }
    return [_renamed(item, key) for item in node] if isinstance(node, list) else node
