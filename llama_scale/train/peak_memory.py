"""How much memory a rank comes to need: what torch allocates on a device, or how a process grows on a CPU."""

from __future__ import annotations

import logging
from pathlib import Path

import torch

from llama_scale.runs.records import MemoryPeak
from llama_scale.train.failures import write_json

logger = logging.getLogger(__name__)

_STATUS = Path("/proc/self/status")


class PeakMemory:
    """Measure from now on; make one before the model is built.

    Args:
        device: ``cuda`` or ``cpu``.
    """

    def __init__(self, device: str) -> None:
        self._cuda = device == "cuda"
        if self._cuda:
            torch.cuda.reset_peak_memory_stats()
        self._before = torch.cuda.memory_allocated() if self._cuda else resident_bytes("VmRSS")

    def look(self) -> MemoryPeak:
        """Return the peak so far."""
        if self._cuda:
            used = torch.cuda.max_memory_allocated() - self._before
            return MemoryPeak(kind="allocated", used=max(0, used), total=torch.cuda.max_memory_reserved())
        total = resident_bytes("VmHWM")
        return MemoryPeak(kind="resident", used=max(0, total - self._before), total=total)

    def write(self, path: Path, *, spec_digest: str) -> None:
        """Report the peak in a file of the attempt's folder; a run does not fail because it cannot."""
        try:
            write_json(path, self.look().model_dump() | {"spec_digest": spec_digest})
        except OSError as error:
            logger.warning("cannot write %s: %s", path, error.strerror)


def resident_bytes(key: str) -> int:
    """Return ``VmRSS`` (now) or ``VmHWM`` (peak) of this process; 0 where the system does not tell."""
    try:
        lines = _STATUS.read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{key}:")), 0)
