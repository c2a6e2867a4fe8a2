"""Read how far a run is from metrics.jsonl, cheaply and while it is being written."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_TAIL_BYTES = 8192


@dataclass(frozen=True, slots=True, kw_only=True)
class StepLine:
    """Hold what one line of metrics.jsonl says; ``None`` where it says nothing (a loss that was not finite)."""

    step: int
    loss: float | None
    tokens_per_s: float | None
    step_time_s: float | None
    validation_loss: float | None
    time_utc: str

    @classmethod
    def parse(cls, line: bytes | str) -> StepLine | None:
        """Read a line; None for one that is incomplete or something else."""
        try:
            data = json.loads(line)
        except ValueError:
            return None
        if not isinstance(data, dict) or not isinstance(data.get("step"), int):
            return None
        return cls(
            step=data["step"],
            loss=_number(data, "loss"),
            tokens_per_s=_number(data, "tokens_per_s"),
            step_time_s=_number(data, "step_time_s"),
            validation_loss=_number(data, "validation_loss"),
            time_utc=str(data.get("time_utc", "")),
        )


def _number(data: dict[str, Any], key: str) -> float | None:
    value = data.get(key)
    return float(value) if isinstance(value, (int, float)) else None


def last_step(metrics: Path) -> StepLine | None:
    """Return the last complete line; None if there is none yet. Reads only the file's end."""
    try:
        with metrics.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - _TAIL_BYTES))
            tail = file.read()
    except OSError:
        return None
    complete = tail[: tail.rfind(b"\n") + 1].splitlines()
    return next((found for line in reversed(complete) if (found := StepLine.parse(line)) is not None), None)


class Follower:
    """Return what was appended to a text file since the last call, complete lines only.

    A file that is replaced or cut is read again from its beginning.

    Args:
        path: The file; it need not exist yet.
        from_end: Regard what it holds now as read.
    """

    def __init__(self, path: Path, *, from_end: bool = False) -> None:
        self._path = path
        self._offset = 0
        self._inode: int | None = None
        if from_end and path.exists():
            status = path.stat()
            self._offset, self._inode = status.st_size, status.st_ino

    def lines(self) -> list[bytes]:
        """Return the new complete lines, without line ends."""
        try:
            with self._path.open("rb") as file:
                status = os.fstat(file.fileno())
                if status.st_size < self._offset or self._inode not in (None, status.st_ino):
                    self._offset = 0
                self._inode = status.st_ino
                file.seek(self._offset)
                data = file.read()
        except OSError:
            return []
        complete = data[: data.rfind(b"\n") + 1]
        self._offset += len(complete)
        return complete.splitlines()


class StepFollower:
    """Return the steps added to metrics.jsonl since this object was made.

    A run that resumes replaces the file by one without the steps it does again: what remains was shown before, which
    the lines' times tell.
    """

    def __init__(self, metrics: Path) -> None:
        line = last_step(metrics)
        self._newest_utc = line.time_utc if line else ""
        self._follower = Follower(metrics, from_end=True)

    def steps(self) -> list[StepLine]:
        """Return the new steps."""
        found = []
        for text in self._follower.lines():
            line = StepLine.parse(text)
            if line is not None and line.time_utc > self._newest_utc:
                self._newest_utc = line.time_utc
                found.append(line)
        return found
