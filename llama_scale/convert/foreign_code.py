"""Python code in a model's folder: told apart from what an export writes, by comparing; nothing of it is executed.

A mixture's folder brings the modelling files that transformers runs with ``trust_remote_code``. llama-scale never runs
them: where they are, byte for byte, what this version or a released one writes, its own installed classes are the same
code. Anything else is foreign, and runs only where the user says ``--trust-remote-code``.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from llama_scale.convert.folders import read_json
from llama_scale.convert.hf_config import CONFIG
from llama_scale.convert.modelling import (
    AUTO_MAP,
    MODEL_TYPE,
    MODELLING,
    TABLES,
    PluginFile,
    fill_tables,
    filled_tables,
    own_texts,
    plugin_files,
    plugin_text,
)
from llama_scale.errors import ConvertError, PluginError
from llama_scale.extensions import discover
from llama_scale.extensions.api import ADAPTERS, GATES

Matches = Callable[[str, str], bool]
"""Tells whether a file (name without ``.py``, text) is the one that some version writes."""

CONSENT = "look at it and say --trust-remote-code"

_RELEASED = Path(__file__).with_name("released_files.json")
"""Version -> ``files``: name -> SHA-256 of each file (the modelling file's with unfilled tables); ``classes``: file
of an adapter or gate -> the class in it that the modelling file names."""


def foreign_code(folder: Path, *, every_file: bool = False) -> str | None:
    """Say which code of a model's folder is not llama-scale's, as the end of "FOLDER brings code of its own: ...".

    Args:
        folder: A Hugging Face folder.
        every_file: Count Python files too that nothing in the folder refers to.

    Returns:
        None if there is no code, or all of it is what an export writes.

    Raises:
        ConvertError: A config is damaged.
    """
    if (read_json(folder / "tokenizer_config.json") or {}).get("auto_map"):
        return "tokenizer_config.json names it (auto_map)"
    config = read_json(folder / CONFIG) or {}
    if config.get("model_type") == MODEL_TYPE:
        if config.get("auto_map") not in (None, AUTO_MAP):
            return "config.json names it (auto_map)"
        return _foreign_file(folder, config.get("llama_scale"))
    files = python_files(folder)
    if config.get("auto_map"):
        return f"config.json names it (auto_map; {', '.join(files) or 'files elsewhere'})"
    overriding = [name for name in files if every_file or name == "custom_generate/generate.py"]
    return ", ".join(overriding) or None


def python_files(folder: Path) -> list[str]:
    """Return the paths of all Python files within a folder."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.py"))


def mixture_kinds(facts: Any) -> tuple[set[str], set[str]]:
    """Return the kinds of adapters and gates that a mixture's config names.

    Args:
        facts: The value of ``llama_scale`` in its config.json.

    Raises:
        ConvertError: It is not what an export writes.
    """
    try:
        adapters = {str(entry["kind"]) for entry in facts["adapters"]}
        mixture = facts["mixture"] or {}
        gates = {str(mixture["gate"])} if mixture.get("weights") == "gate" else set()
    except (KeyError, TypeError, AttributeError) as error:
        raise ConvertError(f"the mixture's config.json does not hold what an export writes: {error}") from error
    return adapters, gates


def release_record() -> dict[str, dict[str, str]]:
    """Return what ``released_files.json`` says of a version, for the files that the installed one writes."""
    parts = plugin_files(adapters=_built_in(ADAPTERS, discover.adapter), gates=_built_in(GATES, discover.gate))
    texts = own_texts() | {name: plugin_text(part) for name, part in parts.items()}
    return {
        "files": {name: _sha256(text) for name, text in sorted(texts.items())},
        "classes": {name: part.target.partition(":")[2] for name, part in sorted(parts.items())},
    }


def _built_in(group: str, find: Callable[[str], Any]) -> dict[str, str]:
    """Return kind -> implementation of the kinds that llama-scale itself brings."""
    found = {kind: str(find(kind).implementation) for kind in discover.names(group)}
    return {kind: target for kind, target in found.items() if target.startswith("llama_scale.")}


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _foreign_file(folder: Path, facts: Any) -> str | None:
    """Say which file of a mixture's folder no version writes."""
    adapters, gates = mixture_kinds(facts)
    try:
        parts = plugin_files(
            adapters={kind: discover.adapter(kind).implementation for kind in adapters},
            gates={kind: discover.gate(kind).implementation for kind in gates},
        )
    except PluginError as error:
        return f"its adapters or gate are not installed here ({error})"
    texts: dict[str, str] = {}
    for name in python_files(folder):
        path = folder / name
        if not path.is_file():
            return name
        texts[name.removesuffix(".py")] = path.read_bytes().decode(errors="replace")
    own = own_texts()
    wanted = own.keys() | parts.keys()
    if texts.keys() != wanted:
        return ", ".join(sorted(f"{name}.py" for name in texts.keys() ^ wanted))
    others = [name for name, text in texts.items() if not _is_current(own, parts)(name, text)]
    if not others:
        return None
    released: Mapping[str, Mapping[str, Any]] = json.loads(_RELEASED.read_text(encoding="utf-8"))
    for version in released.values():
        if all(_is_released(version, own, parts)(name, text) for name, text in texts.items()):
            return None
    return ", ".join(f"{name}.py" for name in sorted(others))


def _is_current(own: Mapping[str, str], parts: Mapping[str, PluginFile]) -> Matches:
    def matches(name: str, text: str) -> bool:
        if name == MODELLING:
            return text == fill_tables(own[name], parts)
        return text == (own[name] if name in own else _plugin_text(parts[name]))

    return matches


def _is_released(
    version: Mapping[str, Mapping[str, str]], own: Mapping[str, str], parts: Mapping[str, PluginFile]
) -> Matches:
    """As ``_is_current``, of a released version; a plugin of another distribution is as it is installed here."""
    files, classes = version["files"], version["classes"]
    named = {
        file: PluginFile(table=part.table, kind=part.kind, target=f":{classes[file]}") if file in classes else part
        for file, part in parts.items()
    }

    def matches(name: str, text: str) -> bool:
        if name == MODELLING:
            filled = filled_tables(named)
            if text.count(filled) != 1:
                return False
            text = text.replace(filled, TABLES)
        if name in files:
            return _sha256(text) == files[name]
        return name not in own and text == _plugin_text(parts[name])

    return matches


def _plugin_text(part: PluginFile) -> str | None:
    try:
        return plugin_text(part)
    except ConvertError:  # it cannot be copied, so no export holds it
        return None
