"""Notice that a run does no more steps although its processes live, and name the ranks that do not even answer."""

from __future__ import annotations

import re
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from statistics import median

from llama_scale.runs.progress import StepLine
from llama_scale.spec.train import Restart

_KEPT = 100
_START = 5.0
"""Before an attempt's first step (imports, compilation, loading) it gets so many times ``hang_min_s``."""
_RANK = re.compile(r"== rank (\d+) ")


class HangWatch:
    """Watch one attempt.

    Args:
        policy: The spec's ``restart`` section.
        steps: Steps of the run: after the last one only the checkpoint is left, however long it takes.
        clock: Seconds that only go forward.
    """

    def __init__(self, policy: Restart, *, steps: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._policy, self._steps, self._clock = policy, steps, clock
        self._times: deque[float] = deque(maxlen=_KEPT)
        self._changed = clock()
        self._seen: str | None = None
        self._moving = False

    def look(self, line: StepLine | None) -> str | None:
        """Return what is wrong, once no step has come for too long.

        Args:
            line: Last line of metrics.jsonl now.
        """
        stamp = line.time_utc if line else ""
        if stamp != self._seen:
            self._moving = self._seen is not None and line is not None
            self._seen, self._changed = stamp, self._clock()
            if line is not None and line.step_time_s is not None:
                self._times.append(line.step_time_s)
        factor = self._policy.hang_factor
        if factor is None or (line is not None and line.step >= self._steps):
            return None
        silent_s = self._clock() - self._changed
        usual_s = median(self._times) if self._times else 0.0
        limit_s = max(self._policy.hang_min_s * (1 if self._moving else _START), factor * usual_s)
        if silent_s <= limit_s:
            return None
        after = f"after step {line.step}" if line else "since its start"
        return f"hung: no step for {silent_s:.0f} s {after}; a step takes {usual_s:.2g} s (restart.hang_factor)"


def silent_ranks(attempt: Path) -> list[int]:
    """Return the ranks that wrote no stack when they were asked: they are stopped, or inside the kernel."""
    found = []
    for file in sorted(attempt.glob("stacks-node-*.txt")):
        lines = [line for line in file.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
        for number, line in enumerate(lines):
            match = _RANK.match(line)
            if match and (number + 1 == len(lines) or _RANK.match(lines[number + 1])):
                found.append(int(match[1]))
    return found
