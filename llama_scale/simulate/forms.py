"""The forms in which a simulation's end is exported: those that what it trained can have. No torch."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass

from llama_scale.extensions import discover
from llama_scale.spec.adapters import Adapter
from llama_scale.spec.run import RunSpec

_EMBEDDINGS = "semantic_search"


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """One export.

    Args:
        name: Value of ``convert export --as``.
        adapter: Which adapter, for ``merged`` and ``peft``.
        task: Which task, for ``sentence-transformers``.
    """

    name: str
    adapter: str | None = None
    task: str | None = None

    @property
    def words(self) -> list[str]:
        """The options of ``convert export``."""
        chosen = [("--as", self.name), ("--adapter", self.adapter), ("--task", self.task)]
        return [word for option, value in chosen if value is not None for word in (option, value)]

    @property
    def folder(self) -> str:
        """Name of its folder."""
        return "-".join(self._names)

    @property
    def label(self) -> str:
        """What people call it."""
        return " ".join(self._names)

    @property
    def _names(self) -> list[str]:
        return [part for part in (self.name, self.adapter or self.task) if part]


def forms_of(spec: RunSpec) -> list[Form]:
    """Return the forms, the one that holds everything first; of each kind of adapter, one is merged and one PEFT's."""
    return [Form(name="mixture" if spec.adapters else "hf"), *_of_kinds(spec), *_embeddings(spec)]


def _of_kinds(spec: RunSpec) -> Iterator[Form]:
    seen: set[tuple[str, str]] = set()
    for adapter in spec.adapters:
        can = {"merged": _merges(adapter), "peft": _has_peft(adapter)}
        for name, possible in can.items():
            if possible and (name, adapter.kind) not in seen:
                seen.add((name, adapter.kind))
                yield Form(name=name, adapter=adapter.name)


def _merges(adapter: Adapter) -> bool:
    descriptor = discover.adapter(adapter.kind)
    return descriptor.not_mergeable(discover.read_options(descriptor, adapter.options)) is None


def _has_peft(adapter: Adapter) -> bool:
    """Tell whether a kind has PEFT's form; its proof runs PEFT itself, an extra."""
    return discover.adapter(adapter.kind).peft is not None and importlib.util.find_spec("peft") is not None


def _embeddings(spec: RunSpec) -> Iterator[Form]:
    """Yield the first embedding model, whose adapter goes into its matrices."""
    for task in spec.tasks:
        served = [adapter for adapter in spec.adapters if adapter.task == task.name]
        if task.kind == _EMBEDDINGS and (not spec.adapters or (served and all(map(_merges, served)))):
            yield Form(name="sentence-transformers", task=task.name)
            return
