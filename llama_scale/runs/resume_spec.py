"""The spec of a resumed run: the run folder's own, with ``--set`` changes and what must follow from them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llama_scale.spec.compose import compose
from llama_scale.spec.load import load_spec
from llama_scale.spec.overrides import apply_overrides
from llama_scale.spec.run import RunSpec
from llama_scale.spec.source import read_text


def load_resumed(path: Path, *, overrides: Sequence[str]) -> tuple[RunSpec, tuple[str, ...]]:
    """Read a run folder's spec with changes.

    A resolved spec holds numbers that were derived once: all three batch sizes, and the size of the cluster. When a
    change makes them disagree, the ones that the user did not name follow again: global and micro batch stay,
    accumulation follows the replicas; on one host devices_per_node follows the product of the degrees.

    Args:
        path: The run folder's ``spec.yaml``.
        overrides: ``a.b=value`` texts.

    Returns:
        The spec, and what followed, for the user to read.

    Raises:
        SpecError: The changed spec is not valid.
    """
    if not overrides:
        return load_spec(path), ()
    old = load_spec(path)
    derived = _followers(path, old, overrides)
    spec = load_spec(path, overrides=[*derived, *overrides])
    return spec, tuple(_notes(old, spec, derived))


def _followers(path: Path, old: RunSpec, overrides: Sequence[str]) -> list[str]:
    root = compose(read_text(path))
    assert root is not None  # it was loaded before
    data: Any = apply_overrides(root, overrides)[0].data()
    named = [text.partition("=")[0].strip() for text in overrides]
    derived = []
    parallel = data.get("parallel") if isinstance(data, dict) else None
    degrees = [parallel.get(key, 1) for key in ("data", "tensor", "pipeline")] if isinstance(parallel, dict) else []
    if not degrees or not all(isinstance(n, int) and n > 0 for n in degrees):
        return []  # load_spec says what is wrong
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
