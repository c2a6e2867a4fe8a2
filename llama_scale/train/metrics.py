"""The record of every step: metrics.jsonl, which is always written, and the line that a person reads."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import Any

from llama_scale.errors import LaunchError


@dataclass(frozen=True, slots=True, kw_only=True)
class StepRecord:
    """Hold what one step is remembered by; its field names are the keys in metrics.jsonl.

    Args:
        step: Number of the step, from 1.
        loss: Mean loss in nats a token, before the update.
        lr: Learning rate of the update.
        grad_norm: Global gradient norm before clipping.
        tokens: Tokens of the step that counted in the loss.
        step_time_s: Wall time of the step, data included, validation and checkpoints not.
        tokens_per_s: ``tokens / step_time_s``.
        mfu: Model FLOPs of the step over what the devices' peak would allow in that time; None: the peak is unknown.
        samples: Samples consumed since the start of the run, this step's included.
        skipped: The update was left out (a loss or gradient norm that is not finite).
        data_s: Part of ``step_time_s`` in which rank 0 read its samples.
        validation_loss: Loss over the validation rows after this step, where it was measured.
        validation_losses: The same of each task.
        task_losses: Mean loss of each task that had rows in this step, per counted token.
        responsibilities: Share of the tokens (``weights: posterior``: of the documents) that each adapter of a mixture
            is responsible for: of this step's, or, where training sends rows through one adapter each, of those that
            were evaluated after it.
        task_tokens: What each of ``task_losses`` was divided by.
        responsibility_tokens: Tokens (or documents) that ``responsibilities`` share.
    """

    step: int
    loss: float
    lr: float
    grad_norm: float
    tokens: int
    step_time_s: float
    tokens_per_s: float
    mfu: float | None
    samples: int
    skipped: bool = False
    data_s: float = 0.0
    validation_loss: float | None = None
    validation_losses: Mapping[str, float] = field(default_factory=dict)
    task_losses: Mapping[str, float] = field(default_factory=dict)
    responsibilities: Mapping[str, float] = field(default_factory=dict)
    task_tokens: Mapping[str, float] = field(default_factory=dict)
    responsibility_tokens: float | None = None

    def to_json(self) -> str:
        """Return one line of JSON; numbers that are not finite become null, what was not measured does not appear."""
        values: dict[str, Any] = asdict(self)
        for key, value in values.items():
            if isinstance(value, float) and not math.isfinite(value):
                values[key] = None
            elif isinstance(value, Mapping):
                values[key] = {name: one if math.isfinite(one) else None for name, one in value.items()}
        for name in ("validation_loss", "responsibility_tokens"):
            if getattr(self, name) is None:
                del values[name]
        for name in ("validation_losses", "task_losses", "task_tokens", "responsibilities"):
            if not values[name]:
                del values[name]
        values["time_utc"] = datetime.now(UTC).isoformat(timespec="milliseconds")
        return json.dumps(values, allow_nan=False)

    def scalars(self) -> dict[str, float]:
        """Return the values worth a curve, by name."""
        values: dict[str, float | None] = {
            "train/loss": self.loss,
            "train/lr": self.lr,
            "train/grad_norm": self.grad_norm,
            "speed/step_time_s": self.step_time_s,
            "speed/tokens_per_s": self.tokens_per_s,
            "speed/mfu": self.mfu,
            "validation/loss": self.validation_loss,
        }
        values |= {f"validation/{name}": value for name, value in self.validation_losses.items()}
        values |= {f"task_loss/{name}": value for name, value in self.task_losses.items()}
        values |= {f"responsibility/{name}": value for name, value in self.responsibilities.items()}
        return {name: value for name, value in values.items() if value is not None}


class MetricsFile:
    """Append one line a step to metrics.jsonl.

    A resumed run goes on in the same file: lines of steps after the one it resumes from, and a line cut off by a
    kill, are dropped first, so that each step has exactly one line.

    Args:
        path: The file.
        resumed_step: Last step that stays; 0 for a new run.

    Raises:
        LaunchError: The file cannot be read or written.
    """

    def __init__(self, path: Path, *, resumed_step: int) -> None:
        self._path = path
        try:
            _drop_after(path, resumed_step)
            # Unbuffered: a line is in the file before the next step starts, whatever happens then.
            self._file = path.open("ab", buffering=0)
        except OSError as error:
            raise LaunchError(f"cannot write {path}: {error.strerror}; check the run folder's permissions") from error

    def write(self, record: StepRecord) -> None:
        """Append a record.

        Raises:
            LaunchError: The disk is full or the file cannot be written.
        """
        line = (record.to_json() + "\n").encode()
        try:
            while line:  # a nearly full disk takes a part before it fails
                line = line[self._file.write(line) :]
        except OSError as error:
            raise LaunchError(f"cannot write {self._path}: {error.strerror}; free space and resume") from error

    def __enter__(self) -> MetricsFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._file.close()


def _drop_after(path: Path, step: int) -> None:
    """Rewrite the file without lines of later steps; a file that needs no change is left as it is."""
    if not path.exists():
        return
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
    kept = [line for line in lines if line.endswith("\n") and (number := _step_of(line)) is not None and number <= step]
    if len(kept) == len(lines):
        return
    replacement = path.with_name(path.name + ".new")
    replacement.write_text("".join(kept), encoding="utf-8")
    replacement.replace(path)


def _step_of(line: str) -> int | None:
    try:
        number = json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
        return None
    return number if isinstance(number, int) else None


class ProgressLine:
    """Word a step for people: step, loss, rate, gradient norm, speed, time left, MFU.

    Args:
        steps: Length of the run.
    """

    def __init__(self, steps: int) -> None:
        self._steps = steps
        self._step_time_s: float | None = None

    def text(self, record: StepRecord) -> str:
        """Return the line; the time left follows a moving average of the step times."""
        new = record.step_time_s
        old = self._step_time_s
        # The first step carries one-off costs (allocation, kernels): it counts only until there is a second one.
        self._step_time_s = new if old is None or record.step <= 2 else 0.9 * old + 0.1 * new
        left = timedelta(seconds=round((self._steps - record.step) * self._step_time_s))
        parts = [
            f"step {record.step}/{self._steps}",
            f"loss {record.loss:.4f}",
            f"lr {record.lr:.3e}",
            f"grad_norm {record.grad_norm:.3f}",
            f"{record.tokens_per_s:.0f} tokens/s",
            f"ETA {left}",
        ]
        if record.mfu is not None:
            parts.append(f"MFU {record.mfu:.1%}")
        if record.skipped:
            parts.append("update skipped: not finite")
        return "  ".join(parts)
