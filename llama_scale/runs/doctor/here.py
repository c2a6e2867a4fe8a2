"""What a machine is asked when there is no spec: whether training could run here at all."""

from __future__ import annotations

import shutil

from llama_scale.runs.doctor.records import Needs


def needs_here() -> Needs:
    """Return the needs of a small run on this machine: its GPUs if it has a driver, else two CPU processes."""
    if shutil.which("nvidia-smi"):
        return Needs(device="cuda", devices=1, world=1)
    return Needs(device="cpu", devices=2, world=2)
