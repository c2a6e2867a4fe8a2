"""The DeepSpeed engine trains as one process of the Megatron engine does, at every ZeRO stage and layout."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import pytest

from tests.engines.specs import Case
from tests.engines.test_parity import check


def zero(stage: int, **options: Any) -> dict[str, Any]:
    # A tiny model's weights would all count as too small to be divided.
    return {"kind": "deepspeed", "zero": stage, "persistence_elements": 0, **options}


DP = {f"zero{s}-dp2": Case(dp=2, engine=zero(s)) for s in range(4)}
TP_DP = {f"zero{s}-tp2-dp2": Case(tp=2, dp=2, engine=zero(s)) for s in range(4)}
PIPELINE = {
    "pp2-zero0": Case(pp=2, engine=zero(0)),
    "pp2": Case(pp=2, engine=zero(1)),
    "pp2-tp2": Case(pp=2, tp=2, engine=zero(1)),
    "pp2-tp2-dp2": Case(pp=2, tp=2, dp=2, engine=zero(1)),
    "pp2-tied-dp2": Case(pp=2, dp=2, engine=zero(1), shape={"tie_word_embeddings": True}),
    "pp2-tied-tp2": Case(pp=2, tp=2, engine=zero(1), shape={"tie_word_embeddings": True}),
    "pp2-uneven": Case(pp=2, engine=zero(1), stage_layers=(1, 3)),
    "pp4": Case(pp=4, engine=zero(1)),
    "pp2-documents": Case(pp=2, engine=zero(1), isolate_documents=True),
    "pp2-full-recompute": Case(pp=2, engine=zero(1), recompute={"kind": "full", "method": "uniform", "layers": 1}),
}
OPTIONS = {
    "zero3-tied-dp2": Case(dp=2, engine=zero(3), shape={"tie_word_embeddings": True}),
    "zero3-some-whole": Case(dp=2, engine=zero(3, persistence_elements=1000)),
    "zero3-all-whole": Case(dp=2, engine=zero(3, persistence_elements=100_000)),
    "zero3-dp4": Case(dp=4, engine=zero(3)),
    "zero3-recompute": Case(dp=2, engine=zero(3), recompute={"kind": "full", "method": "uniform", "layers": 1}),
    "zero2-recompute": Case(dp=2, engine=zero(2), recompute={"kind": "selective"}),
    "zero1-dp1": Case(engine=zero(1)),
    "zero0-tp2": Case(tp=2, engine=zero(0)),
    "zero2-micro2": Case(dp=2, micro=2, engine=zero(2)),
    "zero1-tp2-documents": Case(tp=2, engine=zero(1), isolate_documents=True),
    "zero2-overlap": Case(dp=2, engine=zero(2, overlap_comm=True)),
    "zero2-offload": Case(dp=2, engine=zero(2, offload_optimizer={"device": "cpu"})),
    "zero3-offload": Case(
        dp=2, engine=zero(3, offload_optimizer={"device": "cpu"}, offload_parameters={"device": "cpu"})
    ),
    "zero1-no-clipping": Case(dp=2, engine=zero(1), optimizer={"clip_grad_norm": 0.0}),
}
CASES = DP | TP_DP | PIPELINE | OPTIONS
SOAK = {
    *("pp2-tied-tp2", "pp4", "pp2-full-recompute", "zero3-dp4", "zero3-all-whole", "zero2-recompute", "zero1-dp1"),
    *("zero2-micro2", "zero1-tp2-documents", "zero2-bf16-gradients", "zero3-bf16-gradients"),
}
"""Cells that others stand for in everyday tests."""


def often(names: Iterable[str]) -> list[Any]:
    """Mark the cells that run only with the long lists."""
    return [pytest.param(name, marks=pytest.mark.soak if name in SOAK else ()) for name in names]


@pytest.mark.engines
@pytest.mark.parametrize("name", often(CASES))
def test_deepspeed_trains_as_one_process(name: str) -> None:
    check(CASES[name])


BF16 = {
    "zero1": Case(dp=2, engine=zero(1)),
    "zero2": Case(dp=2, engine=zero(2)),
    "zero3": Case(dp=2, engine=zero(3)),
    "zero1-tp2": Case(tp=2, engine=zero(1)),
    "pp2": Case(pp=2, engine=zero(1)),
    "zero1-bf16-gradients": Case(dp=2, gradients="bf16", engine=zero(1)),
    "zero2-bf16-gradients": Case(dp=2, gradients="bf16", engine=zero(2)),
    "zero3-bf16-gradients": Case(dp=2, gradients="bf16", engine=zero(3)),
    "pp2-bf16-gradients": Case(pp=2, gradients="bf16", engine=zero(1)),
}


@pytest.mark.engines
@pytest.mark.parametrize("name", often(BF16))
def test_deepspeed_bf16_trains_as_one_process(name: str) -> None:
    check(replace(BF16[name], compute="bf16"), loss=2e-3, norm=5e-2)
