"""The spec of a resumed run: the run folder's own, with ``--set`` changes and what must follow from them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

from pydantic import BaseModel

from llama_scale.spec.compose import compose
from llama_scale.spec.load import load_run_spec
from llama_scale.spec.overrides import apply_overrides
from llama_scale.spec.run import RunSpec
from llama_scale.spec.source import read_text


def load_resumed(path: Path, *, overrides: Sequence[str]) -> tuple[RunSpec, tuple[str, ...]]:
    """Read a run folder's spec with changes.

    A resolved spec holds numbers that were derived once: all three batch sizes, and the size of the cluster. When a
    change makes them disagree, the ones that the user did not name follow again: global and micro batch stay,
    accumulation follows the replicas; on one host devices_per_node follows the product of the degrees. A section whose
    ``kind`` changes keeps the settings that both kinds have.

    Args:
        path: The run folder's ``spec.yaml``.
        overrides: ``a.b=value`` texts.

    Returns:
        The spec, and what followed, for the user to read.

    Raises:
        SpecError: The changed spec is not valid.
    """
    if not overrides:
        return load_run_spec(path), ()
    old = load_run_spec(path)
    derived = _followers(path, old, overrides)
    kinds = list(_changed_kinds(old, overrides))
    spec = load_run_spec(path, overrides=[*(text for text, _ in kinds), *derived, *overrides])
    return spec, (*(note for _, note in kinds if note), *_notes(old, spec, derived))


def _changed_kinds(old: RunSpec, overrides: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield an override and a note for each section that gets another ``kind``.

    The resolved spec names every setting of the old kind; those that the new kind does not have would be unknown keys.
    """
    for text in overrides:
        name, _, value = text.partition("=")
        section, _, key = name.strip().partition(".")
        before = getattr(old, section, None)
        if key != "kind" or not isinstance(before, BaseModel):
            continue
        kind = value.strip().strip("'\"")
        member = next((m for m in _union(section) if kind in get_args(m.model_fields["kind"].annotation)), None)
        if member is None or isinstance(before, member):
            continue  # load_run_spec says what is wrong
        settings = before.model_dump(mode="json", by_alias=True, exclude={"kind"})
        kept = {name: value for name, value in settings.items() if name in member.model_fields}
        left = [f"{section}.{name}" for name in settings if name not in kept]
        note = f"left out, as {kind} has no such settings: {', '.join(left)}" if left else ""
        yield f"{section}={json.dumps({'kind': kind} | kept)}", note


def _union(section: str) -> list[type[BaseModel]]:
    """Return the kinds that a section of the spec can be."""
    found: list[type[BaseModel]] = []

    def collect(annotation: Any) -> None:
        if get_origin(annotation) is Annotated:
            collect(get_args(annotation)[0])
        elif isinstance(annotation, type) and issubclass(annotation, BaseModel):
            if "kind" in annotation.model_fields:
                found.append(annotation)
        else:
            for part in get_args(annotation):
                collect(part)

    collect(RunSpec.model_fields[section].annotation)
    return found


def _followers(path: Path, old: RunSpec, overrides: Sequence[str]) -> list[str]:
    root = compose(read_text(path))
    assert root is not None  # it was loaded before
    data: Any = apply_overrides(root, overrides)[0].data()
    named = [text.partition("=")[0].strip() for text in overrides]
    derived = []
    parallel = data.get("parallel") if isinstance(data, dict) else None
    degrees = [parallel.get(key, 1) for key in ("data", "tensor", "pipeline")] if isinstance(parallel, dict) else []
    if not degrees or not all(isinstance(n, int) and n > 0 for n in degrees):
        return []  # load_run_spec says what is wrong
    dp_size, tp_size, pp_size = degrees
    if old.cluster.nodes == 1 and not any(_names(key, "cluster") for key in named):
        derived.append(f"cluster.devices_per_node={dp_size * tp_size * pp_size}")
    batch = {key for key in ("global", "micro", "accumulation") if any(_names(n, f"batch.{key}") for n in named)}
    if "batch" in named:
        return derived
    if batch == {"accumulation"}:
        derived.append("batch.micro=null")
    elif "accumulation" not in batch and (batch or dp_size != old.parallel.data):
        derived.append("batch.accumulation=null")
    return derived


def _names(override: str, path: str) -> bool:
    return override == path or override.startswith(path + ".")


def _notes(old: RunSpec, new: RunSpec, derived: Sequence[str]) -> list[str]:
    """Word what followed."""
    pairs = {
        "cluster.devices_per_node": (old.cluster.devices_per_node, new.cluster.devices_per_node),
        "batch.micro": (old.batch.micro, new.batch.micro),
        "batch.accumulation": (old.batch.accumulation, new.batch.accumulation),
    }
    names = [text.partition("=")[0] for text in derived]
    return [f"{name}: {pairs[name][0]} -> {pairs[name][1]}" for name in names if pairs[name][0] != pairs[name][1]]
