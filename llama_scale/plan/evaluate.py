"""Predictions for rows of published measurements."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from llama_scale.errors import SpecError
from llama_scale.plan.constants import DEFAULT, Constants
from llama_scale.plan.rows import read_row
from llama_scale.plan.run_memory import run_memory
from llama_scale.plan.step_time import step_time, tokens_per_second
from llama_scale.plan.workload import Workload


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """What is predicted for one row.

    Args:
        tokens_per_s_per_gpu: Throughput.
        peak_mem_gb: Peak memory in the row's metric, GB.
        fits: Whether the run fits into the device.
        notes: What had to be assumed.
    """

    tokens_per_s_per_gpu: float
    peak_mem_gb: float
    fits: bool
    notes: tuple[str, ...]


_MICRO_BATCHES = (1, 2, 4, 8)
"""What is tried where a row does not print its micro-batch: published runs are tuned."""


def predict_row(row: Mapping[str, str], *, constants: Constants = DEFAULT) -> Prediction:
    """Predict one row; cells that cannot be read take a usual value, with a note."""
    workload, notes = read_row(row)
    if not (row.get("micro_batch") or "").strip():
        workload = best_micro_batch(workload, constants=constants)
        notes.append(f"micro_batch={workload.micro_batch} is the fastest that fits")
    memory = run_memory(workload, constants=constants)
    step = step_time(workload, constants=constants)
    return Prediction(
        tokens_per_s_per_gpu=tokens_per_second(workload, step),
        peak_mem_gb=memory.in_metric(row.get("mem_metric") or ""),
        fits=memory.fits,
        notes=tuple(notes),
    )


def best_micro_batch(workload: Workload, *, constants: Constants = DEFAULT) -> Workload:
    """Return the workload with the micro-batch that is fastest among those that fit, or the smallest one."""
    replica = max(1, workload.global_batch // workload.parallel.dp)
    tried = [replace(workload, micro_batch=micro) for micro in _MICRO_BATCHES if replica % micro == 0]
    fitting = [one for one in tried if run_memory(one, constants=constants).fits]
    if not fitting:
        return tried[0]
    return max(fitting, key=lambda one: tokens_per_second(one, step_time(one, constants=constants)))


def read_rows(path: Path) -> Iterator[dict[str, str]]:
    """Yield the rows of a CSV file; commas, semicolons or tabs separate its cells, and names of columns have any case.

    Raises:
        SpecError: the file cannot be read, or has no header with a column that describes a model.
    """
    try:
        with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
            first = file.readline()
            file.seek(0)
            reader = csv.DictReader(file, delimiter=max(",;\t", key=first.count))
            names = [name.strip().lower() for name in reader.fieldnames or ()]
            reader.fieldnames = names
            if not any(name in names for name in _NEEDED):
                raise SpecError(f"{path}: no column {', '.join(_NEEDED)}; the first line must name the columns")
            yield from reader
    except (OSError, csv.Error) as error:
        raise SpecError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from error


_NEEDED = ("hidden", "n_layers", "gpu")
"""A file with none of them is not one of measurements."""
