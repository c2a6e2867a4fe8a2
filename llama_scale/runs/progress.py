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

    A file that is replaced or cut (metrics.jsonl is, when a run resumes) is read again from the beginning of what
    is new to it; lines of the old file are not returned twice by ``Follower.skip_to_end``.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0
        self._inode: int | None = None

    def skip_to_end(self) -> None:
        """Regard what the file holds now as read."""
        try:
            status = self._path.stat()
        except OSError:
            return
        self._offset, self._inode = status.st_size, status.st_ino

    def lines(self) -> list[bytes]:
        """Return the new complete lines, without line ends."""
        try:
            with self._path.open("rb") as file:
                status = os.fstat(file.fileno())
                if status.st_size < self._offset or self._inode not in (None, status.st_ino):
                    # Replaced by a shorter text: what is left of it was shown before.
                    self._offset = status.st_size if self._inode not in (None, status.st_ino) else 0
                self._inode = status.st_ino
                file.seek(self._offset)
                data = file.read()
        except OSError:
            return []
        complete = data[: data.rfind(b"\n") + 1]
        self._offset += len(complete)
        return complete.splitlines()
