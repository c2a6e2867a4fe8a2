"""Cells of a row of measurements as numbers, flags and kinds, however they are written."""

from __future__ import annotations

import re
from collections.abc import Mapping

from llama_scale.plan.workload import Precision, Sharding

_LARGEST = 10**9
"""No count of a run is larger; what is, is a typing error."""

_NUMBER = re.compile(r"([-+]?[0-9.]+(?:e[-+]?[0-9]+)?)([km]?)", re.IGNORECASE | re.ASCII)
_TIMES = {"": 1, "k": 1 << 10, "m": 1 << 20}

_NOTHING = ("none", "null", "nan", "-", "n/a")
"""Cells that say that there is no number."""

_SHARDINGS: dict[str, Sharding] = {
    "none": "none",
    "ddp": "none",
    "distopt": "zero1",
    "distributedoptimizer": "zero1",
    "zero0": "none",
    "zero1": "zero1",
    "zero1node": "zero1-node",
    "zero2": "zero2",
    "zero3": "zero3",
    "fsdp": "zero3",
    "fsdp1": "zero3",
    "fsdp2": "zero3",
    "fsdphsdp": "hsdp",
    "hsdp": "hsdp",
}

_PRECISIONS: tuple[tuple[str, Precision], ...] = (
    ("fp4", "fp4"), ("fp8", "fp8"), ("bf16", "bf16"), ("fp16", "bf16"), ("fp32", "fp32"), ("tf32", "fp32"),
)  # fmt: skip
"""What a cell names -> format of the GEMMs; the first that it contains."""


class RowReader:
    """Reads one row and collects what it had to assume."""

    def __init__(self, row: Mapping[str, str]) -> None:
        self._row = row
        self.notes: list[str] = []

    def text(self, name: str) -> str:
        """Return a cell without surrounding blanks; empty when the column is missing."""
        return (self._row.get(name) or "").strip()

    def number(self, name: str, default: int, *, largest: int = _LARGEST) -> int:
        """Return a positive whole number up to the largest, or the default with a note; ``128k`` and ``1M`` are powers
        of two."""
        cell = self.text(name)
        match = _NUMBER.fullmatch(cell.replace(",", "").replace("_", "").replace(" ", ""))
        try:
            exact = float(match[1]) * _TIMES[match[2].lower()] if match else 0.0
            value = round(exact)
        except (ValueError, OverflowError):
            exact, value = 0.0, 0
        if 1 <= value <= largest:
            if value != exact:
                self.notes.append(f"{name}={cell!r} is no whole number; taken as {value}")
            return value
        self.notes.append(f"{name}={cell!r} taken as {default}")
        return max(1, default)

    def flag(self, name: str) -> bool:
        """Tell whether a cell says yes."""
        return self.text(name).lower() in ("1", "1.0", "true", "yes", "y")

    def optional(self, name: str) -> int:
        """Return a number, 0 when the cell is empty or says none."""
        cell = self.text(name)
        return self.number(name, 0) if cell and cell.strip("0.") and cell.lower() not in _NOTHING else 0

    def sharding(self) -> Sharding:
        """Return what data parallel ranks divide; none, with a note, where that cannot be told."""
        cell = self.text("sharding")
        found = _SHARDINGS.get(re.sub("[^a-z0-9]", "", cell.lower()))
        if found is None:
            self.notes.append(f"sharding={cell!r} taken as none")
        return found or "none"

    def precision(self) -> Precision:
        """Return the format of the GEMMs; bf16, with a note, where that cannot be told."""
        cell = self.text("precision")
        for word, precision in _PRECISIONS:
            if word in cell.lower():
                return precision
        self.notes.append(f"precision={cell!r} taken as bf16")
        return "bf16"
