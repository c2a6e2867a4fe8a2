"""What is installed, and what state each plugin is in: the content of ``plugins list``."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from llama_scale.errors import PluginError
from llama_scale.spec.plugins import Catalogue, Registered, catalogue, clash_message, load_descriptor

State = Literal["ok", "broken", "clash"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Listed:
    """One line of the list.

    Args:
        group: Entry point group; None for a distribution whose entry points cannot be read.
        name: Name in a spec; None as above.
        distribution: The Python distribution that brings it.
        version: Its version; None as above.
        state: ``ok``, ``broken`` (its descriptor cannot be used) or ``clash`` (another distribution brings the name).
        reason: Why it is not ok.
        summary: What it says of itself.
        target: ``package.module:attribute`` of its descriptor.
    """

    group: str | None
    name: str | None
    distribution: str
    version: str | None
    state: State
    reason: str = ""
    summary: str = ""
    target: str = ""


def list_plugins(installed: Catalogue | None = None) -> list[Listed]:
    """Return all plugins in the order of groups and names; descriptors are imported to see whether they load."""
    installed = catalogue() if installed is None else installed
    found = [_look(entry, installed.owners(entry.group, entry.name)) for entry in installed.entries]
    unreadable = [
        Listed(group=None, name=None, distribution=u.distribution, version=None, state="broken", reason=u.reason)
        for u in installed.unreadable
    ]
    return found + unreadable


def _look(entry: Registered, owners: Sequence[Registered]) -> Listed:
    state: State = "ok"
    reason = summary = ""
    try:
        # What a module prints while it is imported is not part of the list.
        with contextlib.redirect_stdout(io.StringIO()):
            descriptor = load_descriptor(entry)
        summary = descriptor.summary
        if _is_missing(descriptor.implementation):
            state, reason = (
                "broken",
                f"{entry.noun}: there is no module of its implementation {descriptor.implementation}",
            )
    except PluginError as error:
        state, reason = "broken", str(error)
    if len(owners) > 1:
        state, reason = "clash", clash_message(owners)
    return Listed(
        group=entry.group,
        name=entry.name,
        distribution=entry.distribution,
        version=entry.version,
        state=state,
        reason=reason,
        summary=summary,
        target=entry.target,
    )


def _is_missing(implementation: str) -> bool:
    """Tell whether the module of an implementation is not there, as far as that can be told without importing much."""
    module = implementation.partition(":")[0]
    parent = module.rpartition(".")[0]
    if parent and parent not in sys.modules:
        return False  # looking would import it, and with it perhaps torch
    try:
        return importlib.util.find_spec(module) is None
    except (ImportError, ValueError):
        return True
