"""The ddp engine trains as one process of the Megatron engine does."""

from __future__ import annotations

import pytest

from tests.engines.specs import Case
from tests.engines.test_parity import check

DDP = {"kind": "ddp"}

CASES = {
    "dp1": Case(engine=DDP),
    "dp2": Case(dp=2, engine=DDP),
    "dp2-micro2": Case(dp=2, micro=2, engine=DDP),
    "dp4-tied": Case(dp=4, engine=DDP, shape={"tie_word_embeddings": True}),
    "dp2-full-recompute": Case(dp=2, engine=DDP, recompute={"kind": "full", "method": "uniform", "layers": 1}),
    "dp2-documents": Case(dp=2, engine=DDP, isolate_documents=True),
}


@pytest.mark.engines
@pytest.mark.parametrize("name", CASES)
def test_ddp_trains_as_one_process(name: str) -> None:
    check(CASES[name])


@pytest.mark.engines
def test_ddp_bf16_trains_as_one_process() -> None:
    check(Case(dp=2, compute="bf16", engine=DDP), loss=2e-3, norm=5e-2)
    check(Case(dp=2, compute="bf16", gradients="bf16", engine=DDP), loss=2e-3, norm=5e-2)
