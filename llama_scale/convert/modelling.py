"""The Python files of an exported mixture: copies of modules here and of its plugins, with imports made relative."""

from __future__ import annotations

import ast
import importlib.util
import re
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

from llama_scale.errors import ConvertError

MODELLING = "modeling_llama_scale"
_OWN = {
    "llama_scale.convert.hf_mixture.modeling_llama_scale": MODELLING,
    "llama_scale.convert.hf_mixture.adapted": "adapted",
    "llama_scale.convert.hf_mixture.mixing": "mixing",
    "llama_scale.extensions.adapter": "adapter",
    "llama_scale.extensions.gate": "gate",
}
"""Module here -> its name in an export."""

_TABLES = "ADAPTERS: dict[str, type[LayerAdapter]] = {}\nGATES: dict[str, type[Gate]] = {}\n"


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
    texts = {name: _relative(_source(module), module) for module, name in _OWN.items()}
    tables = []
    imports = []
    for table, kinds, kind_type in (("ADAPTERS", adapters, "adapter"), ("GATES", gates, "gate")):
        rows = []
        for kind, target in sorted(kinds.items()):
            module, _, name = target.partition(":")
            file = f"{kind_type}_" + re.sub(r"\W", "_", kind)
            texts[file] = _relative(_source(module), module)
            alias = re.sub(r"\W", "_", f"{kind_type}_{kind}").upper()
            imports.append(f"from .{file} import {name} as {alias}")
            rows.append(f"{kind!r}: {alias}")
        tables.append(f"{table} = {{{', '.join(rows)}}}")
    main = texts[MODELLING]
    assert main.count(_TABLES) == 1, "the modelling file has lost the tables that an export fills"
    texts[MODELLING] = main.replace(_TABLES, "\n".join([*imports, *tables]) + "\n")
    for name, text in texts.items():
        (folder / f"{name}.py").write_text(text, encoding="utf-8")
    return sorted(f"{name}.py" for name in texts)


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
