"""Mixtures train on every layout and engine as in one process, and are what their definition says."""

from __future__ import annotations

import functools
from typing import Any

import pytest

from llama_scale.train.engine import MicroBatch, Route
from tests.engines.harness import run_ranks
from tests.engines.specs import Case
from tests.engines.training import micro_batches, start

LOSS, NORM, SHARE = 1e-5, 5e-5, 1e-4
"""Relative tolerances of losses and norms, absolute one of responsibilities."""

ADAPTERS = (
    {"name": "news.v1", "kind": "lora", "options": {"rank": 3, "alpha": 6, "layers": {"last": 2}}},
    {"name": "law", "kind": "lora", "options": {"rank": 4, "layers": [1, 3], "targets": ["q_proj", "down_proj"]}},
)
"""The branch is at layer 1: inside a stage of two, and at the start of one of four's second."""


def mixture_case(weights: str = "prior", objective: str = "joint", **fields: Any) -> Case:
    section = {"weights": weights, "objective": objective, "gate": "linear" if weights == "gate" else None}
    defaults = {"adapters": ADAPTERS, "optimizer": {"lr": 2e-2}, "micro": 2, "sections": {"mixture": section}}
    return Case(**{**defaults, **fields})


def batches(case: Case, *, step: int, dp_rank: int) -> list[MicroBatch]:
    """Return a replica's part of a step; even samples are of the first adapter, odd ones of the second."""
    found = micro_batches(case, step=step, dp_rank=dp_rank)
    if case.sections["mixture"]["objective"] == "per_task":
        ways = tuple(
            Route(adapter=adapter["name"], task=None, start=number, stop=number + 1)
            for number, adapter in enumerate(case.adapters)
        )
        for batch in found:
            batch["routes"] = ways
    return found


def trained(case: Case, *, steps: int = 6) -> list[tuple[float, ...]]:
    """Train on the same samples; return loss, norm and responsibilities of each step, and the loss of evaluation."""
    from llama_scale.train.statistics import make_gather

    engine = start(case)
    gather = make_gather(case.spec(), engine)
    results: list[tuple[float, ...]] = []
    for _ in range(steps):
        batch = batches(case, step=0, dp_rank=engine.coordinates.dp_rank)
        result = engine.train_step(batch, case.spec().optimizer.lr)
        assert not result.skipped
        shares = gather().responsibilities if gather is not None else {}
        results.append((result.loss, result.grad_norm, *shares.values()))
    return [*results, (engine.evaluate(batches(case, step=0, dp_rank=engine.coordinates.dp_rank)).mean,)]


@functools.cache
def _reference(key: str) -> list[tuple[float, ...]]:
    return run_ranks(1, trained, _SINGLES[key])[0]


_SINGLES: dict[str, Case] = {}


def reference(case: Case) -> list[tuple[float, ...]]:
    """Return what one process makes of the same samples, computed once for all layouts of a mixture."""
    names = ("global_batch", "micro", "seq_length", "shape", "optimizer", "isolate_documents", "adapters", "sections")
    single = Case(**{name: getattr(case, name) for name in names})
    _SINGLES[repr(single)] = single
    return _reference(repr(single))


def check(case: Case) -> None:
    expected = reference(case)
    found = run_ranks(case.world_size, trained, case)

    assert all(curve == found[0] for curve in found), "ranks report different numbers"
    for (a, *rest), (b, *others) in zip(found[0], expected, strict=True):
        assert a == pytest.approx(b, rel=LOSS)
        assert rest[:1] == pytest.approx(others[:1], rel=NORM)
        assert rest[1:] == pytest.approx(others[1:], abs=SHARE)
    assert expected[-2][0] < expected[0][0] - 0.05, "the reference does not learn"


def zero(stage: int) -> dict[str, Any]:
    return {"kind": "deepspeed", "zero": stage}


CASES = {
    "prior-tp2-sequence-pp2": mixture_case(tp=2, sequence=True, pp=2),
    "prior-interleaved": mixture_case(pp=2, vp=2, overlap_p2p=True),
    "posterior-pp4-documents": mixture_case("posterior", pp=4, isolate_documents=True),
    "posterior-tp2-documents-recomputed": mixture_case(
        "posterior", tp=2, isolate_documents=True, recompute={"kind": "full", "method": "uniform", "layers": 2}
    ),
    "posterior-pipeline": mixture_case("posterior", pp=2, dp=2, isolate_documents=True, engine=zero(1)),
    "gate-tp2-sequence": mixture_case("gate", tp=2, sequence=True),
    "gate-pp2-distopt": mixture_case("gate", pp=2, dp=2, distributed_optimizer=True),
    "gate-zero3": mixture_case("gate", dp=2, engine=zero(3)),
    "prior-per-task-ddp": mixture_case("prior", "per_task", dp=2, engine={"kind": "ddp"}),
    "gate-per-task-pp2": mixture_case("gate", "per_task", pp=2),
    "gate-per-task-pipeline": mixture_case("gate", "per_task", pp=2, engine=zero(1)),
    "posterior-per-task-zero2-tp2": mixture_case("posterior", "per_task", tp=2, dp=2, engine=zero(2)),
}


@pytest.mark.parametrize("name", CASES)
def test_layout_trains_as_one_process(name: str) -> None:
    check(CASES[name])
