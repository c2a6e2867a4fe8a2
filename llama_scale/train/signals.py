"""A request to stop: by signal to any rank, or by a file that rank 0 looks for; all ranks then stop at one step."""

from __future__ import annotations

import signal
from pathlib import Path
from types import FrameType

import torch
import torch.distributed as dist

from llama_scale.train.watch import STOP_SIGNALS


class StopRequest:
    """Remember that this rank was asked to stop.

    Args:
        file: Request file (``RUN_DIR/stop``); None on ranks that need not look.
    """

    def __init__(self, file: Path | None = None) -> None:
        self._file = file
        self._reason: str | None = None

    def install(self) -> None:
        """Handle the stop signals of this process; a second signal changes nothing."""
        for number in STOP_SIGNALS:
            signal.signal(number, self._note)
        # Whoever starts ranks may block them until now, so that none dies while it imports.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self._reason is None:
            self._reason = signal.Signals(number).name

    @property
    def reason(self) -> str | None:
        """What asked for the stop, or None."""
        if self._reason is None and self._file is not None and self._file.exists():
            self._reason = f"the file {self._file.name}"
        return self._reason


class Agreement:
    """Let all ranks know, once a step, whether any of them was asked to stop.

    One reduced integer over gloo, also with NCCL for the tensors: it costs no device synchronisation.
    """

    def __init__(self) -> None:
        self._group = None
        self._several = dist.is_initialized() and dist.get_world_size() > 1
        if self._several and dist.get_backend() != "gloo":
            self._group = dist.new_group(backend="gloo")

    def any(self, wish: bool) -> bool:
        """Return whether any rank wishes it; collective."""
        if not self._several:
            return wish
        flag = torch.tensor([int(wish)], dtype=torch.int32)
        dist.all_reduce(flag, op=dist.ReduceOp.MAX, group=self._group)
        return bool(flag.item())
