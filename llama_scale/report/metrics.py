"""Read all of metrics.jsonl into curves, however long it is."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from statistics import median
from typing import Any

MOST_POINTS = 600
"""Points of a drawn curve; more are averaged in groups of equally many steps."""

Points = tuple[tuple[float, float], ...]


@dataclass(slots=True, kw_only=True)
class Curves:
    """What a run recorded, by step.

    Args:
        values: Name of a value -> (step, value); not finite where a step recorded none.
        responsibilities: Adapter -> (step, share of the tokens that it answers for).
        task_losses: Task -> (step, loss).
        weights: Name of a value -> what each of its numbers weighs in a mean: a loss the tokens it was divided by, a
            rate the seconds; of a name that is not here all weigh the same. Adapters are ``ADAPTER + name``, tasks
            ``TASK + name``.
        times: Seconds since the epoch of each record.
        lines: Lines read.
        broken: Lines that are no records.
    """

    values: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    responsibilities: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    task_losses: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    weights: dict[str, list[float]] = field(default_factory=dict)
    times: list[float] = field(default_factory=list)
    lines: int = 0
    broken: int = 0

    def curve(self, name: str) -> Points:
        """Return a value's curve, thinned for drawing."""
        return thin(self.values.get(name, ()), self.weights.get(name))

    def share_curve(self, adapter: str) -> Points:
        """Return an adapter's responsibilities, thinned for drawing."""
        return thin(self.responsibilities[adapter], self.weights[ADAPTER + adapter])

    def task_curve(self, task: str) -> Points:
        """Return a task's losses, thinned for drawing."""
        return thin(self.task_losses[task], self.weights[TASK + task])

    def mean_share(self, adapter: str) -> float:
        """Return the share of all tokens of the run that an adapter answers for; NaN if none is recorded."""
        return _mean(self.responsibilities[adapter], self.weights[ADAPTER + adapter])[1]

    def last(self, name: str) -> float | None:
        """Return a value's last finite number."""
        return next((y for _, y in reversed(self.values.get(name, ())) if math.isfinite(y)), None)

    def typical(self, name: str) -> float | None:
        """Return a value's median, the first step apart: it pays for allocation and start-up."""
        known = [y for _, y in self.values.get(name, ()) if math.isfinite(y)]
        return median(known[1:] or known) if known else None

    def between_steps(self) -> float:
        """Return the seconds between the first and the last record that no step took."""
        steps = [y if math.isfinite(y) else 0.0 for _, y in self.values.get("step_time_s", ())]
        if len(self.times) < 2 or len(steps) != len(self.times):
            return 0.0
        return max(0.0, self.times[-1] - self.times[0] - sum(steps[1:]))


ADAPTER, TASK = "adapter/", "task/"
_WEIGHTS = {"loss": "tokens", "tokens_per_s": "step_time_s", "mfu": "step_time_s"}
"""Value -> the value that it is divided by."""
_NAMES = ("loss", "validation_loss", "tokens_per_s", "step_time_s", "data_s", "mfu", "grad_norm", "lr")


def read_curves(path: Path) -> Curves:
    """Read a run's records; none if there is no file. What is no record is counted and left out."""
    curves = Curves()
    for record in _records(path, curves):
        step = float(record["step"])
        for name in _NAMES:
            if name in record:
                curves.values.setdefault(name, []).append((step, _number(record[name])))
                if name in _WEIGHTS:
                    curves.weights.setdefault(name, []).append(_weight(record.get(_WEIGHTS[name])))
        # Version 0.1 recorded the step's tokens alone.
        tokens, shared = record.get("tokens"), record.get("responsibility_tokens")
        for name, value in _items(record.get("responsibilities")):
            curves.responsibilities.setdefault(name, []).append((step, value))
            curves.weights.setdefault(ADAPTER + name, []).append(_weight(tokens if shared is None else shared))
        counted = dict(_items(record.get("task_tokens")))
        for name, value in _items(record.get("task_losses")):
            curves.task_losses.setdefault(name, []).append((step, value))
            curves.weights.setdefault(TASK + name, []).append(_weight(counted.get(name, tokens)))
        curves.times.append(_seconds(record.get("time_utc")))
    return curves


def _records(path: Path, curves: Curves) -> Iterator[dict[str, Any]]:
    try:
        file = path.open("rb")
    except OSError:
        return
    with file:
        for line in file:
            if not line.endswith(b"\n"):
                return  # cut off by a kill, or being written now
            curves.lines += 1
            try:
                record = json.loads(line)
            except ValueError:
                record = None
            if isinstance(record, dict) and isinstance(record.get("step"), int):
                yield record
            else:
                curves.broken += 1


def _items(found: object) -> list[tuple[str, float]]:
    return [(str(name), _number(value)) for name, value in found.items()] if isinstance(found, Mapping) else []


def _weight(value: object) -> float:
    """Return what a number weighs; one without a record of it weighs next to nothing, but is not lost."""
    weight = _number(value)
    return weight if math.isfinite(weight) and weight > 0 else 1e-9


def _number(value: object) -> float:
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else math.nan


def _seconds(value: object) -> float:
    try:
        return datetime.fromisoformat(str(value)).timestamp()
    except ValueError:
        return math.nan


def thin(
    points: Points | list[tuple[float, float]], weights: Sequence[float] | None = None, *, most: int = MOST_POINTS
) -> Points:
    """Average groups of neighbours so that at most ``most`` points remain; a group without a number stays a gap.

    Args:
        points: (x, y).
        weights: What each y weighs in the mean of its group; None: all the same.
        most: Points at most.
    """
    size = -(-len(points) // most)
    if size <= 1:
        return tuple(points)
    weights = weights or [1.0] * len(points)
    return tuple(_mean(points[at : at + size], weights[at : at + size]) for at in range(0, len(points), size))


def _mean(group: Points | list[tuple[float, float]], weights: Sequence[float]) -> tuple[float, float]:
    known = [(y, weight) for (_, y), weight in zip(group, weights, strict=True) if math.isfinite(y)]
    x = group[-1][0]
    return (x, sum(y * weight for y, weight in known) / sum(weight for _, weight in known)) if known else (x, math.nan)
