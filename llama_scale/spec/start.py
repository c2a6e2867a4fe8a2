"""Where a run's weights come from: ``train.from``, filled in from what the spec says of the model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from llama_scale.spec.view import Absent

if TYPE_CHECKING:
    from llama_scale.spec.run import RunSpec

NEEDS = frozenset({"model", "train", "adapters", "tasks"})


def settle_start(sections: Mapping[str, Any], *, written: Callable[[str], str | None]) -> dict[str, Any]:
    """Return the sections ``train`` and ``model`` with ``train.from``, ``init_from`` and ``base_name`` filled in.

    ``train.from`` stays None only for adapters on a base whose weights nobody has named, which a rule refuses.

    Args:
        sections: The spec's sections before the model is resolved; those with faults may be absent.
        written: Returns a path of the section ``model`` as its user wrote it; None where that is not known.
    """
    if not sections.keys() >= NEEDS:
        return {}
    with suppress(Absent):  # a value that it follows from is faulty, which is reported already
        train, model = sections["train"], sections["model"]
        start = train.from_ or _default(model, adapters=bool(sections["adapters"]), tasks=bool(sections["tasks"]))
        changes: dict[str, Any] = {}
        source = "init_from" if model.init_from is not None else "path" if model.kind == "hf" else None
        if start == "weights" and source is not None:
            changes["init_from"] = getattr(model, source)
            with suppress(Absent):
                changes["base_name"] = model.base_name or written(source)
        return {"train": train.model_copy(update={"from_": start}), "model": model.model_copy(update=changes)}
    return {}


def _default(model: Any, *, adapters: bool, tasks: bool) -> str | None:
    if model.init_from is not None or (model.kind == "hf" and (adapters or tasks)):
        return "weights"
    return None if adapters else "scratch"


def from_seed(spec: RunSpec) -> RunSpec:
    """Return a resolved spec that starts from weights of its seed, for what does not depend on their values."""
    model = spec.model.model_copy(update={"init_from": None, "base_name": None})
    return spec.model_copy(update={"model": model, "train": spec.train.model_copy(update={"from_": "scratch"})})
