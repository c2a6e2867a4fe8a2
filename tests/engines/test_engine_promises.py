"""What every engine promises beside parity, at every ZeRO stage and layout: evaluation, and updates left out."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import pytest
import torch

from tests.engines.harness import run_ranks
from tests.engines.specs import Case
from tests.engines.training import micro_batches, start, train_steps


def zero(stage: int, **options: Any) -> dict[str, Any]:
    # Between a tiny model's norms and matrices, so that ZeRO 3 has whole and divided weights.
    return {"kind": "deepspeed", "zero": stage, "persistence_elements": 1000, **options}


DDP = {"kind": "ddp"}
FP32 = {
    "ddp-dp2": Case(dp=2, engine=DDP),
    "zero0-tp2-dp2": Case(tp=2, dp=2, engine=zero(0)),
    "zero1-dp2": Case(dp=2, engine=zero(1)),
    "zero2-tp2-dp2": Case(tp=2, dp=2, engine=zero(2)),
    "zero3-dp2": Case(dp=2, engine=zero(3)),
    "zero3-tp2-dp2": Case(tp=2, dp=2, engine=zero(3)),
    "zero2-offload": Case(dp=2, engine=zero(2, offload_optimizer={"device": "cpu"})),
    "zero3-offload": Case(dp=2, engine=zero(3, offload_optimizer={"device": "cpu"})),
    "zero1-no-clipping": Case(dp=2, engine=zero(1), optimizer={"clip_grad_norm": 0.0}),
    "pp2-tp2-dp2": Case(pp=2, tp=2, dp=2, engine=zero(1)),
    "pp2-tied": Case(pp=2, engine=zero(1), shape={"tie_word_embeddings": True}),
}
BF16 = {
    f"{name}-bf16": replace(case, compute="bf16")
    for name, case in {
        "ddp": FP32["ddp-dp2"],
        "zero1": FP32["zero1-dp2"],
        "zero2": Case(dp=2, engine=zero(2)),
        "zero3": FP32["zero3-dp2"],
        "pp2": Case(pp=2, engine=zero(1)),
    }.items()
}


SOAK = {"zero0-tp2-dp2", "zero2-tp2-dp2", "zero2-offload", "zero1-no-clipping", "pp2-tied", "zero2-bf16"}


def held(engine: Any) -> dict[tuple[str, str, Any], torch.Tensor]:
    pieces = [*engine.model_pieces(), *engine.optimizer_pieces()]
    return {(piece.group, piece.name, piece.flat_start): piece.tensor.clone() for piece in pieces}


def same(a: dict[Any, torch.Tensor], b: dict[Any, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def poison_gradient(engine: Any, batch: list[Any]) -> Any:
    """One gradient is not a number; the loss is finite."""
    # ZeRO 3 holds a flat part of a matrix between steps, and its shape beside it.
    parameter = next(p for p in engine.chunks[0].parameters() if len(getattr(p, "ds_shape", p.shape)) == 2)
    return parameter.register_hook(lambda grad: grad * math.nan)


def poison_output(engine: Any, batch: list[Any]) -> Any:
    """What a model chunk returns, hidden states or the loss, is infinite."""
    return engine.chunks[0].register_forward_hook(lambda module, inputs, output: output * math.inf)


def poison_mask(engine: Any, batch: list[Any]) -> None:
    """The data are at fault, in the last micro-batch."""
    batch[-1]["loss_mask"][0, 0] = math.inf


def poisoned_step(engine: Any, case: Case, poison: Any) -> Any:
    place, size = engine.coordinates, case.plan().topology
    batch = micro_batches(case, step=1, dp_rank=place.dp_rank)
    # One replica only; its tensor parallel ranks share their activations.
    handle = poison(engine, batch) if place.dp_rank == size.dp_size - 1 and place.pp_rank == 0 else None
    if poison is poison_mask and place.dp_rank == size.dp_size - 1:
        poison(engine, batch)
    try:
        return engine.train_step(batch, 1e-3)
    finally:
        if handle is not None:
            handle.remove()


def promises(case: Case) -> dict[str, Any]:
    """Evaluate, train, leave a poisoned step out, and train on."""
    engine = start(case)
    dp_rank = engine.coordinates.dp_rank
    first = micro_batches(case, step=0, dp_rank=dp_rank)
    fresh = held(engine)
    evaluated = [engine.evaluate(first).mean, engine.evaluate(first).mean]
    after_evaluation = same(fresh, held(engine))
    (good,) = train_steps(engine, case, steps=1)
    moved = not same(fresh, held(engine))
    later = engine.evaluate(first).mean

    before = held(engine)
    results = [poisoned_step(engine, case, poison) for poison in (poison_gradient, poison_output, poison_mask)]
    after_poison = same(before, held(engine))
    steps = engine.step
    again = train_steps(engine, case, steps=2, first=1)
    return {
        "evaluated": evaluated,
        "evaluation_changed_nothing": after_evaluation,
        "moved": moved,
        "later": later,
        "skipped": [result.skipped for result in results],
        "finite": [math.isfinite(result.loss + result.grad_norm) for result in results],
        "poison_changed_nothing": after_poison,
        "step": (steps, engine.step),
        "curve": [good, *again],
    }


def straight(case: Case) -> tuple[float, float, list[tuple[float, float]]]:
    engine = start(case)
    first = micro_batches(case, step=0, dp_rank=0)
    before = engine.evaluate(first).mean
    results = train_steps(engine, case, steps=1)
    return before, engine.evaluate(first).mean, results + train_steps(engine, case, steps=2, first=1)


_REFERENCES: dict[str, Any] = {}


def check(case: Case, *, rel: float) -> None:
    single = replace(case, tp=1, pp=1, dp=1, engine=None)
    if repr(single) not in _REFERENCES:
        _REFERENCES[repr(single)] = run_ranks(1, straight, single)[0]
    before, later, curve = _REFERENCES[repr(single)]
    found = run_ranks(case.world_size, promises, case)

    shared = ("evaluated", "later", "skipped", "finite", "step", "curve")
    assert all([result[key] for key in shared] == [found[0][key] for key in shared] for result in found)
    for result in found:
        assert result["evaluation_changed_nothing"]
        assert result["moved"]
        assert result["poison_changed_nothing"]
    result = found[0]
    assert result["evaluated"] == pytest.approx([before, before], rel=rel)
    assert result["later"] == pytest.approx(later, rel=rel)
    assert result["skipped"] == [True] * 3
    assert result["finite"] == [False] * 3
    assert result["step"] == (1, 3)
    assert [loss for loss, _ in result["curve"]] == pytest.approx([loss for loss, _ in curve], rel=rel)


def often(names: Iterable[str]) -> list[Any]:
    """Mark the cases that run only with the long lists."""
    return [pytest.param(name, marks=pytest.mark.soak if name in SOAK else ()) for name in names]


@pytest.mark.parametrize("name", often(FP32))
def test_evaluation_and_left_out_updates(name: str) -> None:
    check(FP32[name], rel=1e-5)


@pytest.mark.parametrize("name", often(BF16))
def test_evaluation_and_left_out_updates_in_bf16(name: str) -> None:
    check(BF16[name], rel=2e-3)
