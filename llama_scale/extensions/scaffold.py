"""A new plugin's distribution, complete and working: the content of ``plugins new``."""

from __future__ import annotations

import re
import secrets
import shutil
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Literal

from llama_scale import __version__
from llama_scale.errors import PluginError
from llama_scale.spec.plugins import ADAPTERS, TASKS, Catalogue

Kind = Literal["adapter", "task"]

_GROUPS: dict[Kind, str] = {"adapter": ADAPTERS, "task": TASKS}
_NAME = re.compile(r"[a-z][a-z0-9]*(?:[-_][a-z0-9]+)*")
_MAX_NAME = 40
_MODULES: dict[Kind, str] = {"adapter": "layer.py", "task": "task.py"}


def scaffold(name: str, kind: Kind, out: Path | None, *, installed: Catalogue) -> Path:
    """Write a new distribution into a new folder: all of it or nothing.

    Args:
        name: Its kind's name in a spec.
        kind: What it brings.
        out: The folder; None: ``llama-scale-NAME`` here.
        installed: What there is already.

    Returns:
        The folder.

    Raises:
        PluginError: The name cannot be one or is taken, the folder exists, or it cannot be written.
    """
    _check_name(name, kind, installed)
    distribution = f"llama-scale-{name.replace('_', '-')}"
    target = Path(distribution) if out is None else out
    if target.exists() or target.is_symlink():
        raise PluginError(f"{target} exists already; name a new folder with --out")
    package = f"llama_scale_{name.replace('-', '_')}"
    values = {"name": name, "distribution": distribution, "package": package, "version": __version__}
    scratch = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    try:
        for path, text in _files(kind, package).items():
            place = scratch / path
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(Template(text).substitute(values), encoding="utf-8")
        scratch.rename(target)
    except OSError as error:
        shutil.rmtree(scratch, ignore_errors=True)
        raise PluginError(f"{target} cannot be written: {error.strerror or error}; name another with --out") from error
    return target


def _check_name(name: str, kind: Kind, installed: Catalogue) -> None:
    if not _NAME.fullmatch(name) or len(name) > _MAX_NAME:
        raise PluginError(
            f"{name!r} cannot name a plugin: use lower-case letters, digits, and single '-' or '_' between them, at "
            f"most {_MAX_NAME}, the first a letter"
        )
    owners = installed.owners(_GROUPS[kind], name)
    if owners:
        raise PluginError(f"{owners[0].noun} is brought by {owners[0].distribution} already; choose another name")


def _files(kind: Kind, package: str) -> dict[str, str]:
    """Return path -> template of every file."""
    module = _MODULES[kind]
    sources = {
        "pyproject.toml": "pyproject.toml",
        "README.md": "README.md",
        f"{package}/__init__.py": "__init__.py",
        f"{package}/{module}": module,
        "tests/test_plugin.py": "test_plugin.py",
    }
    folder = files("llama_scale.extensions") / "templates" / kind
    found = {path: (folder / f"{name}.tmpl").read_text(encoding="utf-8") for path, name in sources.items()}
    return {**found, f"{package}/py.typed": ""}
