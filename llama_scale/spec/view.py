"""Light views of spec sections: what rules read where pydantic's models are not built, or cannot be.

``quick`` makes views of good documents without importing pydantic; ``salvage`` makes them of sections that have
faults, so that the rules about the other fields still run.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from types import SimpleNamespace
from typing import Any


class Absent(Exception):
    """A field was read whose value in the document is faulty, so nothing follows from it."""


class View(SimpleNamespace):
    """A section's fields by name, defaults filled in.

    >>> View(data=1, tensor=2).tensor
    2
    """

    __slots__ = ("_absent",)

    def __init__(self, *, absent: Collection[str] = (), **fields: Any) -> None:
        """Hold ``fields``; reading one of ``absent`` raises Absent."""
        super().__init__(**fields)
        self._absent = frozenset(absent) - fields.keys()

    def __getattr__(self, name: str) -> Any:
        if name != "_absent" and name in self._absent:
            raise Absent(name)
        raise AttributeError(name)

    def model_copy(self, *, update: Mapping[str, Any]) -> View:
        """Return a copy with some fields replaced, as pydantic's models do."""
        return View(absent=self._absent, **{**vars(self), **update})
