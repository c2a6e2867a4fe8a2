"""Adapters train on every layout and engine as in one process: losses, gradient norms and the weights themselves."""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any

import pytest
import torch

from llama_scale.layout.boxes import Box
from llama_scale.train.engine import MicroBatch, Route
from tests.engines.harness import run_ranks
from tests.engines.specs import Case
from tests.engines.training import micro_batches, start

LOSS, NORM, WEIGHTS = 1e-5, 5e-5, 2e-4
"""Relative tolerances of losses and norms, absolute one of weights that have moved by some 1e-1."""

Weights = dict[str, tuple[Box, torch.Tensor]]


def adapter(kind: str, **options: Any) -> tuple[dict[str, Any], ...]:
    return ({"name": "news.v1", "kind": kind, "options": options},)


LORA = adapter("lora", rank=4, alpha=8)
DORA = adapter("lora", rank=3, dora=True, rs_lora=True, ranks={"k_proj": 2}, layers=[0, 2])


def lora_case(**fields: Any) -> Case:
    # A base whose layers do something, so that changing them changes the loss.
    shape = {"init_std": 0.2, **fields.pop("shape", {})}
    return Case(**{"adapters": LORA, "optimizer": {"lr": 1e-2}, "shape": shape, **fields})


def deepspeed(zero: int) -> dict[str, Any]:
    return {"kind": "deepspeed", "zero": zero}


def routed(case: Case, *, step: int, dp_rank: int) -> list[MicroBatch]:
    """Return a replica's part of a step; sample k goes through adapter k mod N, wherever it is read.

    Rows of an adapter that the case leaves out go through the bare base.
    """
    batches = micro_batches(case, step=step, dp_rank=dp_rank)
    if len(case.adapters) == 1 and "routed" not in case.sections.get("name", ""):
        return batches
    for m, batch in enumerate(batches):
        first = step * case.global_batch + (m * case.dp + dp_rank) * case.micro
        owners = [SEVERAL[(first + row) % len(SEVERAL)]["name"] for row in range(case.micro)]
        order = sorted(range(case.micro), key=lambda row: owners[row])
        here = {a["name"] for a in case.adapters}
        for key, value in batch.items():
            batch[key] = value[order]  # type: ignore[literal-required, index]
        batch["routes"] = tuple(
            Route(adapter=owners[row] if owners[row] in here else None, task=None, start=at, stop=at + 1)
            for at, row in enumerate(order)
        )
    return batches


def trained(case: Case, *, steps: int = 10) -> tuple[list[tuple[float, float]], Weights]:
    """Train; return the curve and this rank's parts of what trains, each under its name and place."""
    engine = start(case)
    results = []
    for step in range(steps):
        result = engine.train_step(
            routed(case, step=step, dp_rank=engine.coordinates.dp_rank), case.spec().optimizer.lr
        )
        results.append((result.loss, result.grad_norm))
    pieces = [piece for piece in engine.model_pieces() if piece.flat_start is None]
    return results, {f"{p.name}{p.box.offset}": (p.box, p.tensor.clone()) for p in pieces}


@functools.cache
def _reference(key: str) -> Any:
    return run_ranks(1, trained, _SINGLES[key])[0]


_SINGLES: dict[str, Case] = {}


def reference(case: Case) -> Any:
    """Return what one process makes of the same samples, computed once for all layouts of a model."""
    kept = ("global_batch", "seq_length", "shape", "optimizer", "compute", "isolate_documents", "adapters", "sections")
    single = Case(**{name: getattr(case, name) for name in kept})
    _SINGLES[repr(single)] = single
    return _reference(repr(single))


def check(case: Case, *, loss: float = LOSS, norm: float = NORM, weights: float = WEIGHTS) -> None:
    expected, whole = reference(case)
    found = run_ranks(case.world_size, trained, case)

    assert all(tensor.abs().max() > 1e-2 for name, (_, tensor) in whole.items()), "the reference does not learn"
    for curve, _ in found:
        assert curve == found[0][0], "ranks report different numbers"
    for (a, n), (b, m) in zip(found[0][0], expected, strict=True):
        assert a == pytest.approx(b, rel=loss)
        assert n == pytest.approx(m, rel=norm)
    logical = {name.partition("(")[0]: tensor for name, (_, tensor) in whole.items()}
    seen = set()
    for _, parts in found:
        for key, (box, tensor) in parts.items():
            name = key.partition("(")[0]
            seen.add(name)
            torch.testing.assert_close(
                tensor, logical[name][box.slices_within(Box.whole(tuple(logical[name].shape)))], rtol=0, atol=weights
            )
    if case.engine is None or case.engine.get("zero") != 3:
        assert seen == set(logical)


SEVERAL = (
    {**LORA[0], "name": "a"},
    {"name": "train", "kind": "ia3", "options": {"layers": [1, 3]}},
    {"name": "prefix", "kind": "prefix", "options": {"length": 3, "layers": {"last": 2}}},
)
"""Adapters of three kinds; one is called like a method of torch's modules."""

IA3 = adapter("ia3")
BOTTLENECK = adapter("bottleneck", size=5)
PREFIX = adapter("prefix", length=3, init_std=0.5)
LAST = adapter("lora", layers={"last": 1})

CASES = {
    "tp2-sequence-pp2-dp2-distopt": lora_case(tp=2, pp=2, dp=2, sequence=True, distributed_optimizer=True),
    "interleaved-overlap": lora_case(
        pp=2,
        vp=2,
        dp=2,
        overlap_p2p=True,
        overlap_grad_reduce=True,
        distributed_optimizer=True,
        overlap_param_gather=True,
    ),
    "zero2-tp2": lora_case(tp=2, dp=2, engine=deepspeed(2)),
    "zero3-dora": lora_case(dp=2, engine=deepspeed(3), adapters=DORA),
    "tied-last1-pp2": lora_case(pp=2, shape={"tie_word_embeddings": True}, adapters=LAST),
    "dora-sequence": lora_case(tp=2, sequence=True, adapters=DORA),
    "ia3-tp2": lora_case(tp=2, adapters=IA3),
    "bottleneck-sequence": lora_case(tp=2, sequence=True, adapters=BOTTLENECK),
    "prefix-documents-tp2": lora_case(tp=2, isolate_documents=True, adapters=PREFIX),
    "several-tp2-pp2": lora_case(tp=2, pp=2, micro=2, adapters=SEVERAL),
}
MORE = {
    "dp2": lora_case(dp=2),
    "tp2": lora_case(tp=2),
    "pp2": lora_case(pp=2),
    "ddp": lora_case(dp=2, engine={"kind": "ddp"}),
    "zero3": lora_case(dp=2, engine=deepspeed(3)),
    "pipeline": lora_case(pp=2, dp=2, engine=deepspeed(1)),
    "pipeline-dora-last": lora_case(pp=2, engine=deepspeed(1), adapters=adapter("lora", dora=True, layers={"last": 1})),
    "first-pp2": lora_case(pp=2, adapters=adapter("lora", layers=[0])),
    "first-interleaved": lora_case(pp=2, vp=2, overlap_p2p=True, adapters=adapter("lora", layers=[0])),
    "middle-pipeline-pp4": lora_case(pp=4, engine=deepspeed(1), adapters=adapter("lora", layers=[2])),
    "dora-tp2": lora_case(tp=2, adapters=DORA),
    "recompute-last3": lora_case(
        pp=2,
        adapters=adapter("lora", layers={"last": 3}),
        recompute={"kind": "full", "method": "uniform", "layers": 1},
    ),
    "recompute-block-tp2": lora_case(tp=2, recompute={"kind": "full", "method": "block", "layers": 2}),
    "selective-prefix": lora_case(tp=2, adapters=PREFIX, recompute={"kind": "selective"}),
    "bottleneck-pp2": lora_case(pp=2, adapters=BOTTLENECK),
    "ia3-zero3": lora_case(dp=2, adapters=IA3, engine=deepspeed(3)),
    "prefix-pipeline": lora_case(pp=2, adapters=PREFIX, engine=deepspeed(1)),
    "bottleneck-ddp": lora_case(dp=2, adapters=BOTTLENECK, engine={"kind": "ddp"}),
    "several-sequence-recompute": lora_case(
        tp=2, sequence=True, adapters=SEVERAL, recompute={"kind": "full", "method": "uniform", "layers": 2}
    ),
    "several-zero2": lora_case(dp=2, micro=2, adapters=SEVERAL, engine=deepspeed(2)),
    "several-zero1-pp2": lora_case(pp=2, dp=2, adapters=SEVERAL, engine=deepspeed(1)),
    "several-ddp": lora_case(dp=2, micro=2, adapters=SEVERAL, engine={"kind": "ddp"}),
    "several-zero3": lora_case(dp=2, micro=2, adapters=SEVERAL, engine=deepspeed(3)),
    "several-interleaved-overlap": lora_case(
        pp=2,
        vp=2,
        dp=2,
        micro=2,
        adapters=SEVERAL,
        overlap_p2p=True,
        overlap_grad_reduce=True,
        distributed_optimizer=True,
        overlap_param_gather=True,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_layout_trains_as_one_process(name: str) -> None:
    check(CASES[name])


@pytest.mark.soak
@pytest.mark.parametrize("name", MORE)
def test_more_layouts_train_as_one_process(name: str) -> None:
    check(MORE[name])


BF16 = {
    "megatron": lora_case(tp=2, dp=2, distributed_optimizer=True),
    "zero3": lora_case(dp=2, engine=deepspeed(3)),
}
MORE_BF16 = {
    "ddp": lora_case(dp=2, engine={"kind": "ddp"}),
    "plain": lora_case(tp=2, dp=2),
    "zero1-pp2": lora_case(pp=2, engine=deepspeed(1)),
    "zero2-ia3": lora_case(dp=2, engine=deepspeed(2), adapters=IA3),
    "prefix-bottleneck": lora_case(tp=2, sequence=True, adapters=BOTTLENECK),
}


def check_bf16(case: Case) -> None:
    check(replace(case, compute="bf16", shape={}), loss=2e-3, norm=5e-2, weights=0.15)


@pytest.mark.parametrize("name", BF16)
def test_fp32_adapters_train_over_a_bf16_base(name: str) -> None:
    check_bf16(BF16[name])


@pytest.mark.soak
@pytest.mark.parametrize("name", MORE_BF16)
def test_more_fp32_adapters_over_a_bf16_base(name: str) -> None:
    check_bf16(MORE_BF16[name])


@pytest.mark.parametrize("number", range(len(SEVERAL)))
def test_adapters_trained_at_once_are_those_trained_alone(number: int) -> None:
    """The other adapters' rows go through the bare base there, so that the loss is divided by the same tokens."""
    together = lora_case(micro=2, adapters=SEVERAL, optimizer={"lr": 1e-2, "clip_grad_norm": 0})
    alone = replace(together, adapters=(SEVERAL[number],), sections={"name": "routed"})
    _, expected = run_ranks(1, trained, alone, steps=4)[0]
    _, found = reference_of_four(together)
    assert expected
    for name, (_, tensor) in expected.items():
        torch.testing.assert_close(found[name][1], tensor, rtol=0, atol=1e-6)


@functools.cache
def _four(key: str) -> Any:
    return run_ranks(1, trained, _SINGLES[key], steps=4)[0]


def reference_of_four(case: Case) -> Any:
    _SINGLES[repr(case)] = case
    return _four(repr(case))
