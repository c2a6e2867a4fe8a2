"""Compare two runs of a simulation: what each step was, and the weights at their ends."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from typing import Any

from llama_scale.checkpoint.manifest import Manifest, load_manifest, newest_complete
from llama_scale.errors import LaunchError
from llama_scale.runs.folder import RunFolder

SAME = ("loss", "grad_norm", "validation_loss")
"""Numbers of a step that are compared."""
TOLERANCES: Mapping[str, Mapping[str, float]] = {
    "fp32": {"loss": 1e-4, "grad_norm": 1e-3, "validation_loss": 1e-4},
    "bf16": {"loss": 5e-3, "grad_norm": 2e-2, "validation_loss": 5e-3},
}
"""Largest relative differences between two layouts; rounding gives a tenth (docs/engines.md)."""


def steps_of(run: RunFolder) -> dict[int, dict[str, Any]]:
    """Return the lines of metrics.jsonl by step."""
    lines = (json.loads(line) for line in run.metrics.read_text(encoding="utf-8").splitlines())
    return {line["step"]: line for line in lines}


def differences(one: RunFolder, other: RunFolder, *, tolerances: Mapping[str, float]) -> Iterator[tuple[int, str]]:
    """Yield each step that differs by more than allowed, with what it was in both runs."""
    expected, found = steps_of(one), steps_of(other)
    for step, line in expected.items():
        if step not in found:
            yield step, "is missing"
            continue
        for name in SAME:
            before, after = line.get(name), found[step].get(name)
            if not _close(before, after, tolerances.get(name, 0.0)):
                yield step, f"{name} {_show(before)} and {_show(after)}"
                break


def largest(one: RunFolder, other: RunFolder) -> float:
    """Return the largest relative difference of the losses of the steps that both runs have."""
    expected, found = steps_of(one), steps_of(other)
    pairs = [(line["loss"], found[step]["loss"]) for step, line in expected.items() if step in found]
    return max((abs(a - b) / max(abs(a), 1e-12) for a, b in pairs if a is not None and b is not None), default=0.0)


def _close(before: float | None, after: float | None, tolerance: float) -> bool:
    if before is None or after is None:
        return before is after
    return before == after or math.isclose(before, after, rel_tol=tolerance, abs_tol=tolerance * 1e-2)


def _show(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.7g}"


def final(run: RunFolder) -> Manifest:
    """Return the manifest of a run's newest checkpoint.

    Raises:
        LaunchError: It has none.
    """
    newest = newest_complete(run.checkpoints)
    if newest is None:
        raise LaunchError(f"{run.path} has no complete checkpoint")
    return load_manifest(newest)


def other_tensors(one: Manifest, other: Manifest) -> list[str]:
    """Return the names of the tensors that differ in two checkpoints: weights first, then optimizer state."""
    found = []
    for group in ("model", *(name for name in one.tensors if name not in ("model", "rng"))):
        mine, theirs = one.tensors.get(group, {}), other.tensors.get(group, {})
        found += [
            name if group == "model" else f"{group} of {name}"
            for name in dict.fromkeys([*mine, *theirs])
            if name not in mine or name not in theirs or mine[name].digest != theirs[name].digest
        ]
    return found
