"""What the Megatron engine promises beside parity: evaluation, clipping, decay, numbers that are not finite."""

from __future__ import annotations

import math
import os
from dataclasses import replace
from typing import Any

import pytest
import torch

from llama_scale.errors import LaunchError
from tests.engines.harness import join, run_ranks
from tests.engines.specs import Case
from tests.engines.training import micro_batches, start, train_steps

LAYOUTS = [
    Case(),
    Case(tp=2, pp=2),
    Case(dp=2, distributed_optimizer=True, overlap_grad_reduce=True, overlap_param_gather=True),
]


def weights(engine: Any) -> dict[str, torch.Tensor]:
    return {piece.name: piece.tensor.clone() for piece in engine.model_pieces()}


def evaluate(case: Case) -> dict[str, Any]:
    engine = start(case)
    dp_rank = engine.coordinates.dp_rank
    before = weights(engine)
    batch = micro_batches(case, step=0, dp_rank=dp_rank)
    loss = engine.evaluate(batch).mean
    again = engine.evaluate(batch).mean
    unchanged = all(torch.equal(before[name], tensor) for name, tensor in weights(engine).items())
    step = engine.train_step(batch, 1e-3)
    later = engine.evaluate(batch).mean
    return {
        "loss": loss,
        "again": again,
        "unchanged": unchanged,
        "train": step.loss,
        "tokens": step.tokens,
        "later": later,
        "training": engine.chunks[0].training,
    }


@pytest.mark.parametrize("case", LAYOUTS, ids=["single", "tp2-pp2", "dp2-overlap"])
def test_evaluation_equals_the_training_loss_and_changes_nothing(case: Case) -> None:
    results = run_ranks(case.world_size, evaluate, case)

    expected = sum(int(micro["loss_mask"].sum()) for micro in micro_batches(Case(), step=0, dp_rank=0))
    for result in results:
        assert result == results[0]
        assert result["loss"] == result["again"] == pytest.approx(result["train"], rel=1e-6)
        assert result["unchanged"]
        assert result["training"]
        assert result["tokens"] == expected
        assert result["later"] < result["loss"] - 0.01


def poisoned(case: Case) -> dict[str, Any]:
    engine = start(case)
    train_steps(engine, case, steps=1)
    before = weights(engine)
    batch = micro_batches(case, step=1, dp_rank=engine.coordinates.dp_rank)
    # One replica's loss mask is not a number.
    if engine.coordinates.dp_rank == case.dp - 1:
        batch[-1]["loss_mask"][0, 0] = math.inf
    bad = engine.train_step(batch, 1e-3)
    same = all(torch.equal(before[name], tensor) for name, tensor in weights(engine).items())
    done = engine.step
    (after,) = train_steps(engine, case, steps=1, first=1)
    return {"skipped": bad.skipped, "loss": bad.loss, "same": same, "step": done, "after": after[0]}


@pytest.mark.parametrize("case", LAYOUTS, ids=["single", "tp2-pp2", "dp2-overlap"])
def test_update_that_is_not_finite_is_left_out_on_all_ranks(case: Case) -> None:
    straight = run_ranks(1, _straight, replace(case, tp=1, pp=1, dp=1, overlap_param_gather=False))[0]

    for result in run_ranks(case.world_size, poisoned, case):
        assert result["skipped"]
        assert not math.isfinite(result["loss"])
        assert result["same"]
        assert result["step"] == 1
        assert result["after"] == pytest.approx(straight, rel=1e-5)


def _straight(case: Case) -> float:
    return train_steps(start(case), case, steps=2)[1][0]


def one_update(case: Case) -> dict[str, Any]:
    engine = start(case)
    before = weights(engine)
    result = engine.train_step(micro_batches(case, step=0, dp_rank=0), 1e-3)
    after = weights(engine)
    moments = {(p.group, p.name): p.tensor.clone() for p in engine.optimizer_pieces()}
    return {"before": before, "after": after, "norm": result.grad_norm, "moments": moments}


def test_update_is_adamw_with_clipped_gradient_and_without_decay_of_norms() -> None:
    betas, eps, decay, limit, lr = (0.8, 0.9), 1e-8, 0.5, 0.01, 1e-3
    settings = {"betas": betas, "eps": eps, "weight_decay": decay, "clip_grad_norm": limit}
    (result,) = run_ranks(1, one_update, Case(optimizer=settings))
    (free,) = run_ranks(1, one_update, Case(optimizer={**settings, "clip_grad_norm": 0.0}))

    assert result["norm"] == free["norm"] > limit
    squares = 0.0
    for name, before in result["before"].items():
        grad = result["moments"]["exp_avg", name] / (1 - betas[0])
        squares += grad.double().square().sum().item()
        torch.testing.assert_close(result["moments"]["exp_avg_sq", name], (1 - betas[1]) * grad.square())
        decayed = before if before.dim() == 1 else before * (1 - lr * decay)
        torch.testing.assert_close(
            result["after"][name], decayed - lr * grad / (grad.abs() + eps), rtol=1e-4, atol=1e-7
        )
    assert math.sqrt(squares) == pytest.approx(limit, rel=1e-3)


def wrong_world() -> str:
    os.environ["WORLD_SIZE"] = "3"
    with pytest.raises(LaunchError) as caught:
        join(Case(tp=2).plan())
    return str(caught.value)


def no_gpu() -> str:
    with pytest.raises(LaunchError) as caught:
        join(Case().plan(), device="cuda")
    return str(caught.value)


def test_wrong_world_and_missing_device_are_named() -> None:
    assert "WORLD_SIZE=3, but the plan is for 2 processes" in run_ranks(1, wrong_world)[0]
    if not torch.cuda.is_available():
        assert "LOCAL_RANK=0 needs a CUDA device, but 0 can be used here" in run_ranks(1, no_gpu)[0]


def isolated(case: Case) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of two documents packed into one sample, and of the second alone."""
    engine = start(case)
    (model,) = engine.chunks
    packed = micro_batches(case, step=0, dp_rank=0)[0]
    cut = int((packed["documents"] == 0).sum())
    alone = {key: value[:, cut:] for key, value in packed.items() if key != "documents"}
    with torch.no_grad():
        return model(packed, with_loss=False)[:, cut:], model(alone, with_loss=False)


def test_documents_do_not_see_each_other() -> None:
    ((packed, alone),) = run_ranks(1, isolated, Case(isolate_documents=True))

    torch.testing.assert_close(packed, alone, rtol=1e-5, atol=1e-6)
