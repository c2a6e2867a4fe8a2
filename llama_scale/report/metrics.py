"""Read all of metrics.jsonl into curves, however long it is."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from statistics import median
from typing import Any

MOST_POINTS = 600
"""Points of a drawn curve; more are averaged in equal groups."""

Points = tuple[tuple[float, float], ...]


@dataclass(slots=True, kw_only=True)
class Curves:
    """What a run recorded, by step.

    Args:
        values: Name of a value -> (step, value); not finite where a step recorded none.
        responsibilities: Adapter -> (step, share of the tokens that it answers for).
        task_losses: Task -> (step, loss).
        times: Seconds since the epoch of each record.
        lines: Lines read.
        broken: Lines that are no records.
    """

    values: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    responsibilities: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    task_losses: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    times: list[float] = field(default_factory=list)
    lines: int = 0
    broken: int = 0

    def curve(self, name: str) -> Points:
        """Return a value's curve, thinned for drawing."""
        return thin(self.values.get(name, ()))

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


_NAMES = ("loss", "validation_loss", "tokens_per_s", "step_time_s", "data_s", "mfu", "grad_norm", "lr")


def read_curves(path: Path) -> Curves:
    """Read a run's records; none if there is no file. What is no record is counted and left out."""
    curves = Curves()
    for record in _records(path, curves):
        step = float(record["step"])
        for name in _NAMES:
            if name in record:
                curves.values.setdefault(name, []).append((step, _number(record[name])))
        _group(record.get("responsibilities"), step, curves.responsibilities)
        _group(record.get("task_losses"), step, curves.task_losses)
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


def _group(found: object, step: float, into: dict[str, list[tuple[float, float]]]) -> None:
    if isinstance(found, Mapping):
        for name, value in found.items():
            into.setdefault(str(name), []).append((step, _number(value)))


def _number(value: object) -> float:
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else math.nan


def _seconds(value: object) -> float:
    try:
        return datetime.fromisoformat(str(value)).timestamp()
    except ValueError:
        return math.nan


def thin(points: Points | list[tuple[float, float]], *, most: int = MOST_POINTS) -> Points:
    """Average groups of neighbours so that at most ``most`` points remain; a group without a number stays a gap."""
    size = -(-len(points) // most)
    if size <= 1:
        return tuple(points)
    return tuple(_mean(points[start : start + size]) for start in range(0, len(points), size))


def _mean(group: Points | list[tuple[float, float]]) -> tuple[float, float]:
    known = [y for _, y in group if math.isfinite(y)]
    x = group[-1][0]
    return (x, sum(known) / len(known)) if known else (x, math.nan)
