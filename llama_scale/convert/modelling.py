"""The Python files of an exported mixture: copies of modules here and of its plugins, with imports made relative."""

from __future__ import annotations

import ast
import importlib.util
import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from llama_scale.errors import ConvertError

MODEL_TYPE = "llama_scale"
MODELLING = "modeling_llama_scale"
AUTO_MAP = {
    "AutoConfig": f"{MODELLING}.LlamaScaleConfig",
    "AutoModelForCausalLM": f"{MODELLING}.LlamaScaleForCausalLM",
}
"""Where transformers finds the classes of a mixture's folder."""
_OWN = {
    "llama_scale.convert.hf_mixture.modeling_llama_scale": MODELLING,
    "llama_scale.convert.hf_mixture.adapted": "adapted",
    "llama_scale.convert.hf_mixture.mixing": "mixing",
    "llama_scale.extensions.adapter": "adapter",
    "llama_scale.extensions.gate": "gate",
}
"""Module here -> its name in an export."""

TABLES = "ADAPTERS: dict[str, type[LayerAdapter]] = {}\nGATES: dict[str, type[Gate]] = {}\n"
"""Lines of the modelling file in whose place an export names the classes of its folder."""


def write_modelling(folder: Path, *, adapters: Mapping[str, str], gates: Mapping[str, str]) -> list[str]:
    """Write the files that a mixture needs to be loaded without llama-scale.

    Args:
        folder: Existing folder.
        adapters: Kind -> ``package.module:Class``.
        gates: The same for gates.

    Returns:
        Names of the files.

    Raises:
        ConvertError: A plugin's module cannot be copied: it imports more than torch and the interface.
    """
    parts = plugin_files(adapters=adapters, gates=gates)
    texts = own_texts() | {name: plugin_text(part) for name, part in parts.items()}
    texts[MODELLING] = fill_tables(texts[MODELLING], parts)
    for name, text in texts.items():
        (folder / f"{name}.py").write_text(text, encoding="utf-8")
    return sorted(f"{name}.py" for name in texts)


@dataclass(frozen=True, slots=True, kw_only=True)
class PluginFile:
    """The file of one kind of adapter or gate.

    Args:
        table: ``ADAPTERS`` or ``GATES``.
        kind: As in a spec.
        target: ``package.module:Class`` of its implementation.
    """

    table: str
    kind: str
    target: str


def plugin_files(*, adapters: Mapping[str, str], gates: Mapping[str, str]) -> dict[str, PluginFile]:
    """Return name of the file, without ``.py`` -> what it is of; the arguments are those of ``write_modelling``."""
    return {
        f"{prefix}_" + re.sub(r"\W", "_", kind): PluginFile(table=table, kind=kind, target=target)
        for table, prefix, kinds in (("ADAPTERS", "adapter", adapters), ("GATES", "gate", gates))
        for kind, target in sorted(kinds.items())
    }


def own_texts() -> dict[str, str]:
    """Return name of a file, without ``.py`` -> its text, of the files that every mixture has, tables unfilled."""
    return {name: _relative(_source(module), module) for module, name in _OWN.items()}


def plugin_text(part: PluginFile) -> str:
    """Return the text of a kind's file.

    Raises:
        ConvertError: See ``write_modelling``.
    """
    module = part.target.partition(":")[0]
    return _relative(_source(module), module)


def fill_tables(text: str, parts: Mapping[str, PluginFile]) -> str:
    """Return the modelling file with the classes of the kinds in its tables."""
    assert text.count(TABLES) == 1, "the modelling file has lost the tables that an export fills"
    return text.replace(TABLES, filled_tables(parts))


def filled_tables(parts: Mapping[str, PluginFile]) -> str:
    """Return the lines of the modelling file that name the classes of the kinds."""
    rows: dict[str, list[str]] = {"ADAPTERS": [], "GATES": []}
    lines = []
    for file, part in parts.items():
        lines.append(f"from .{file} import {part.target.partition(':')[2]} as {file.upper()}")
        rows[part.table].append(f"{part.kind!r}: {file.upper()}")
    return "\n".join([*lines, *(f"{table} = {{{', '.join(row)}}}" for table, row in rows.items())]) + "\n"


def _source(module: str) -> str:
    try:
        found = importlib.util.find_spec(module)
        if found is None or found.origin is None:
            raise ImportError("there is no such module")
        return Path(found.origin).read_text(encoding="utf-8")
    except (ImportError, OSError, UnicodeDecodeError, ValueError) as error:
        raise ConvertError(
            f"the source of {module} cannot be read ({error}); an export copies it: install its distribution as files"
        ) from error


def _relative(text: str, module: str) -> str:
    """Return a module's text with its imports of copied modules made relative.

    Raises:
        ConvertError: It imports something that an export does not have.
    """
    lines = text.splitlines(keepends=True)
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom) and node.module in _OWN and node.level == 0:
            first = lines[node.lineno - 1]
            lines[node.lineno - 1] = first.replace(f"from {node.module} ", f"from .{_OWN[node.module]} ", 1)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            _check_import(_imported(node), module)
    return "".join(lines)


def _imported(node: ast.Import | ast.ImportFrom) -> Iterable[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    return ["." * node.level + (node.module or "")]


def _check_import(names: Iterable[str], module: str) -> None:
    allowed = {"torch", "transformers", "safetensors"} if module in _OWN else {"torch"}
    for name in names:
        if name.partition(".")[0] not in allowed | set(sys.stdlib_module_names):
            raise ConvertError(
                f"{module} imports {name!r}, so it cannot be copied into an export: the implementation of an adapter "
                "or gate imports torch and llama_scale.extensions.adapter (or gate), by `from ... import`, and no more"
            )
