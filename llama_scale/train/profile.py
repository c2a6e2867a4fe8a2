"""Record a torch profiler trace of chosen steps into the run folder (``--profile N:M``)."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from llama_scale.errors import LaunchError


def parse_steps(text: str) -> tuple[int, int]:
    """Read ``N:M``: the first and the last step to record.

    Raises:
        LaunchError: It is not of this form, N < 1 or M < N.
    """
    match = re.fullmatch(r"(\d+):(\d+)", text)
    first, last = (int(match[1]), int(match[2])) if match else (0, 0)
    if not 1 <= first <= last:
        raise LaunchError(f"--profile {text}: give the first and the last step to record, e.g. --profile 10:12")
    return first, last


class StepProfiler:
    """Trace a range of steps of this rank.

    Args:
        steps: First and last step; None: record nothing.
        folder: Where ``rank-00000-steps-N-M.json`` goes; Perfetto and chrome://tracing open it.
        rank: This rank.
    """

    def __init__(self, steps: tuple[int, int] | None, *, folder: Path, rank: int) -> None:
        self._steps = steps
        self._folder = folder
        self._rank = rank
        self._profiler: Any = None

    def before(self, step: int) -> None:
        """Begin to record if this step is the first of the range."""
        if self._steps is None or self._profiler is not None or not self._steps[0] <= step <= self._steps[1]:
            return
        from torch.profiler import ProfilerActivity, profile, supported_activities  # lazy: rarely wanted

        wanted = {ProfilerActivity.CPU, ProfilerActivity.CUDA} & set(supported_activities())
        self._profiler = profile(activities=sorted(wanted, key=str), record_shapes=True)
        self._profiler.start()

    def after(self, step: int) -> None:
        """Write the trace if this step is the last of the range."""
        if self._profiler is not None and self._steps is not None and step >= self._steps[1]:
            self.close()

    def close(self) -> None:
        """Write what was recorded, also when training ends inside the range."""
        if self._profiler is None or self._steps is None:
            return
        self._profiler.stop()
        self._folder.mkdir(parents=True, exist_ok=True)
        first, last = self._steps
        self._profiler.export_chrome_trace(str(self._folder / f"rank-{self._rank:05d}-steps-{first}-{last}.json"))
        self._profiler, self._steps = None, None
