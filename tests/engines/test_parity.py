"""Every layout of the Megatron engine trains as one process does: loss and gradient norm of ten steps."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace

import pytest

from tests.engines.harness import run_ranks
from tests.engines.specs import SCALING, Case
from tests.engines.training import curve, start, train_steps

LOSS, NORM = 1e-5, 5e-5
"""Relative tolerances, fp32: sums over ranks are rounded in another order."""


@functools.cache
def _single(key: tuple[str, ...]) -> list[tuple[float, float]]:
    return run_ranks(1, curve, _CASES[key])[0]


_CASES: dict[tuple[str, ...], Case] = {}


def reference(case: Case) -> list[tuple[float, float]]:
    """Return the curve of one process that reads the same samples, computed once for all layouts of a model."""
    single = Case(
        global_batch=case.global_batch,
        seq_length=case.seq_length,
        shape=case.shape,
        compute=case.compute,
        isolate_documents=case.isolate_documents,
        optimizer=case.optimizer,
    )
    key = (repr(single),)
    _CASES[key] = single
    return _single(key)


def check(
    case: Case, *, loss: float = LOSS, norm: float = NORM, train: Callable[[Case], list[tuple[float, float]]] = curve
) -> None:
    expected = reference(case)
    curves = run_ranks(case.world_size, train, case)

    assert all(c == curves[0] for c in curves), "ranks report different numbers"
    for step, ((a, n), (b, m)) in enumerate(zip(curves[0], expected, strict=True)):
        assert abs(a / b - 1) < loss, f"step {step}: loss {a} against {b}, relative {a / b - 1:.1e}"
        assert abs(n / m - 1) < norm, f"step {step}: grad norm {n} against {m}, relative {n / m - 1:.1e}"
    assert expected[-1][0] < expected[0][0] - 0.05, "the reference does not learn"


GRID = [Case(tp=tp, pp=pp, dp=dp) for tp in (1, 2) for pp in (1, 2) for dp in (1, 2) if tp * pp * dp > 1]


@pytest.mark.parametrize("distributed", [False, True], ids=["plain", "distopt"])
@pytest.mark.parametrize("case", GRID, ids=lambda c: f"tp{c.tp}-pp{c.pp}-dp{c.dp}")
def test_layout_trains_as_one_process(case: Case, distributed: bool) -> None:
    check(replace(case, distributed_optimizer=distributed))


OPTIONS = {
    "sequence-tp2": Case(tp=2, sequence=True),
    "sequence-tp2-pp2-dp2-distopt": Case(tp=2, pp=2, dp=2, sequence=True, distributed_optimizer=True),
    "interleaved-pp2-vp2": Case(pp=2, vp=2, overlap_p2p=True),
    "interleaved-pp2-vp2-tp2-sequence": Case(
        tp=2, pp=2, vp=2, overlap_p2p=True, sequence=True, distributed_optimizer=True
    ),
    "pp4": Case(pp=4),
    "interleaved-pp4-vp2": Case(pp=4, vp=2, shape={"num_layers": 8}),
    "uneven-pp2": Case(pp=2, stage_layers=(1, 3)),
    "uneven-interleaved": Case(pp=2, vp=2, overlap_p2p=True, stage_layers=(1, 2, 1, 1), shape={"num_layers": 5}),
    "tied-pp2-tp2": Case(tp=2, pp=2, shape={"tie_word_embeddings": True}),
    "tied-pp2-dp2-distopt": Case(pp=2, dp=2, shape={"tie_word_embeddings": True}, distributed_optimizer=True),
    "tied-interleaved": Case(pp=2, vp=2, overlap_p2p=True, shape={"tie_word_embeddings": True}),
    "micro4": Case(micro=4),
    "dp2-micro2": Case(dp=2, micro=2),
    "dp4-distopt-overlap": Case(dp=4, distributed_optimizer=True, overlap_grad_reduce=True, overlap_param_gather=True),
    "tied-dp2-distopt-overlap": Case(
        dp=2,
        distributed_optimizer=True,
        overlap_grad_reduce=True,
        overlap_param_gather=True,
        shape={"tie_word_embeddings": True},
    ),
    "selective": Case(tp=2, recompute={"kind": "selective"}),
    "full-uniform": Case(tp=2, sequence=True, recompute={"kind": "full", "method": "uniform", "layers": 2}),
    "full-block": Case(pp=2, recompute={"kind": "full", "method": "block", "layers": 1}),
    "rope-scaling-tp2": Case(tp=2, shape={"rope_scaling": SCALING.model_dump()}),
    "documents-tp2-pp2": Case(tp=2, pp=2, isolate_documents=True),
    "documents-recomputed": Case(isolate_documents=True, recompute={"kind": "full", "method": "uniform", "layers": 2}),
    "no-clipping-dp2": Case(dp=2, optimizer={"clip_grad_norm": 0.0}),
    "tp4-padding-only-rank": Case(
        tp=4, shape={"num_heads": 8, "num_kv_heads": 4, "vocab_size": 33}, vocab_pad_multiple=16
    ),
}


@pytest.mark.parametrize("name", OPTIONS)
def test_option_trains_as_one_process(name: str) -> None:
    check(OPTIONS[name])


def test_bf16_layout_trains_as_one_process() -> None:
    # bf16 has 8 bits: sums in another order differ in the third digit.
    check(Case(tp=2, pp=2, compute="bf16"), loss=2e-3, norm=5e-2)
    check(Case(dp=2, compute="bf16", distributed_optimizer=True), loss=2e-3, norm=5e-2)


def curve_in_small_buckets(case: Case) -> list[tuple[float, float]]:
    from llama_scale.train import megatron_engine

    megatron_engine.BUCKET_ELEMENTS = 2000  # the output layer is a bucket of its own
    engine = start(case)
    assert len(engine._wrapped[0].bucket_groups) > 4
    return train_steps(engine, case, steps=10)


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_overlap_of_many_buckets_trains_as_one_process(tied: bool) -> None:
    case = Case(
        dp=2,
        distributed_optimizer=True,
        overlap_grad_reduce=True,
        overlap_param_gather=True,
        shape={"tie_word_embeddings": tied},
    )

    check(case, train=curve_in_small_buckets)
