"""What a rank says of its memory is what it holds."""

from __future__ import annotations

import pytest
import torch

from llama_scale.train.peak_memory import PeakMemory
from tests.engines.harness import run_ranks


def _grow(size: int) -> tuple[int, int]:
    memory = PeakMemory("cpu")
    held = torch.ones(size, dtype=torch.uint8)
    del held
    torch.ones(size // 4, dtype=torch.uint8)
    peak = memory.look()
    return peak.used, peak.total


def test_peak_of_a_process_holds_what_it_has_freed() -> None:
    size = 200 << 20

    ((used, total),) = run_ranks(1, _grow, size)

    assert used == pytest.approx(size, rel=0.2)
    assert total > used
