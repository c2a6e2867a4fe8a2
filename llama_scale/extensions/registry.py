"""Names -> implementations, resolved only when one is used, so that a list of names costs no import."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from llama_scale.errors import PluginError


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One implementation that can be named in a spec.

    Args:
        name: Its name there (``kind``).
        target: ``package.module:attribute``.
        distribution: Python distribution that brings it, for messages.
    """

    name: str
    target: str
    distribution: str = "llama-scale"


class Registry:
    """Hold the entries of one extension point.

    >>> launchers = Registry("launcher", {"json": Entry(name="json", target="json:JSONDecoder")})
    >>> launchers.load("json").__name__
    'JSONDecoder'
    """

    def __init__(self, what: str, entries: Mapping[str, Entry]) -> None:
        self._what = what
        self._entries = dict(entries)

    @property
    def names(self) -> tuple[str, ...]:
        """Return all names, sorted."""
        return tuple(sorted(self._entries))

    def add(self, entry: Entry) -> None:
        """Take in one more entry.

        Raises:
            PluginError: The name is taken; nothing is ever hidden by a later entry.
        """
        present = self._entries.get(entry.name)
        if present is not None and present != entry:
            raise PluginError(
                f"{self._what} {entry.name!r} is brought by {present.distribution} ({present.target}) and by "
                f"{entry.distribution} ({entry.target}); a name has one owner: uninstall one of the two"
            )
        self._entries[entry.name] = entry

    def load(self, name: str) -> Any:
        """Import and return the implementation of a name.

        Raises:
            PluginError: No such name, or importing it failed.
        """
        entry = self._entries.get(name)
        if entry is None:
            near = difflib.get_close_matches(name, self.names, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(self.names) or 'none'}"
            raise PluginError(f"no {self._what} is called {name!r}; {hint}")
        module, _, attribute = entry.target.partition(":")
        try:
            return getattr(importlib.import_module(module), attribute)
        except (ImportError, AttributeError) as error:
            raise PluginError(
                f"{self._what} {name!r} of {entry.distribution} cannot be loaded from {entry.target}: {error}; "
                "reinstall or remove that distribution"
            ) from error
