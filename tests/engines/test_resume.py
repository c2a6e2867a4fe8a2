"""Training goes on after a resume as if nothing had happened: on the same layout bit for bit, on another to 1e-5."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llama_scale.train.checkpointing import Checkpointer, Position
from tests.engines.harness import run_ranks
from tests.engines.specs import Case
from tests.engines.training import start, train_steps

HALF, STEPS = 3, 6
TIED = {"tie_word_embeddings": True}
ONE = Case()
DDP2 = Case(dp=2, engine={"kind": "ddp"})
PP2 = Case(pp=2)
UNEVEN = Case(pp=2, stage_layers=(3, 1))
TP2_PP2 = Case(tp=2, pp=2)
DP2_DIST = Case(dp=2, distributed_optimizer=True)
DP4_DIST = Case(dp=4, distributed_optimizer=True)
TP2_SEQUENCE = Case(tp=2, sequence=True, dp=2, distributed_optimizer=True)
INTERLEAVED = Case(pp=2, vp=2, dp=2, distributed_optimizer=True, overlap_p2p=True)
GATHER = Case(dp=2, distributed_optimizer=True, overlap_grad_reduce=True, overlap_param_gather=True)


def checkpointer_of(case: Case, root: Path) -> Checkpointer:
    return Checkpointer(root, spec=case.spec(), plan=case.plan())


def straight(case: Case, root: Path) -> list[tuple[float, float]]:
    """Train through, saving half way in the background while training goes on."""
    engine = start(case)
    checkpointer = checkpointer_of(case, root)
    results = train_steps(engine, case, steps=HALF)
    checkpointer.save(engine, Position(step=HALF, samples=HALF * case.global_batch))
    results += train_steps(engine, case, steps=STEPS - HALF, first=HALF)
    assert checkpointer.close()
    return results


def resumed(case: Case, root: Path) -> list[tuple[float, float]]:
    """Go on from the checkpoint; ``resume`` itself proves weights and moments bit-equal to what was saved."""
    engine = start(case)
    checkpointer = checkpointer_of(case, root)
    position = checkpointer.resume(engine)
    assert position == Position(step=HALF, samples=HALF * case.global_batch)
    assert engine.step == HALF
    results = train_steps(engine, case, steps=STEPS - HALF, first=position.step)
    checkpointer.close()
    return results


def same(results: list[Any]) -> list[tuple[float, float]]:
    assert all(result == results[0] for result in results), "ranks disagree"
    return results[0]


@pytest.mark.parametrize(
    ("saver", "others"),
    [
        (ONE, (TP2_PP2, INTERLEAVED)),
        (DP4_DIST, (DP2_DIST, PP2)),
        (TP2_PP2, (ONE, DP4_DIST)),
        (TP2_SEQUENCE, (UNEVEN, DDP2)),
        (INTERLEAVED, (TP2_SEQUENCE,)),
        (UNEVEN, (GATHER,)),
        (DDP2, (TP2_PP2,)),
        (replace(PP2, shape=TIED), (replace(DP2_DIST, shape=TIED),)),
        (replace(Case(tp=2, vocab_pad_multiple=16), shape=TIED), (replace(PP2, shape=TIED),)),
    ],
    ids=lambda value: None if isinstance(value, tuple) else f"tp{value.tp}pp{value.pp}dp{value.dp}",
)
def test_resume_equals_training_straight(tmp_path: Path, saver: Case, others: tuple[Case, ...]) -> None:
    expected = same(run_ranks(saver.world_size, straight, saver, tmp_path))[HALF:]

    assert same(run_ranks(saver.world_size, resumed, saver, tmp_path)) == expected  # bit for bit
    for other in others:
        found = same(run_ranks(other.world_size, resumed, other, tmp_path))
        losses = [loss for loss, _ in found]
        assert losses == pytest.approx([loss for loss, _ in expected], rel=1e-5), other
        # The norm is a sum over thousands of rounded squares; see the parity tests.
        assert [norm for _, norm in found] == pytest.approx([norm for _, norm in expected], rel=5e-5), other


@pytest.mark.parametrize("saver", [Case(dp=2, compute="bf16", distributed_optimizer=True), Case(tp=2, compute="bf16")])
def test_bf16_resumes_from_its_masters(tmp_path: Path, saver: Case) -> None:
    expected = same(run_ranks(saver.world_size, straight, saver, tmp_path))[HALF:]

    assert same(run_ranks(saver.world_size, resumed, saver, tmp_path)) == expected
    other = Case(pp=2, compute="bf16")
    found = same(run_ranks(2, resumed, other, tmp_path))
    assert [loss for loss, _ in found] == pytest.approx([loss for loss, _ in expected], rel=2e-3)
    # An fp32 run goes on from the masters, and a bf16 run from fp32 weights: the curves differ only by bf16's rounding.
    found = same(run_ranks(1, resumed, ONE, tmp_path))
    assert [loss for loss, _ in found] == pytest.approx([loss for loss, _ in expected], rel=2e-3)


def warm_start(case: Case, folder: Path) -> tuple[list[tuple[float, float]], int]:
    engine = start(case)
    checkpointer_of(case, folder.parent).init_from(engine, folder)
    step = engine.step
    return train_steps(engine, case, steps=1, first=HALF), step


def test_a_warm_start_takes_the_weights_only(tmp_path: Path) -> None:
    expected = same(run_ranks(1, straight, ONE, tmp_path))[HALF:]
    results, step = run_ranks(2, warm_start, Case(tp=2), tmp_path / "step-00000003")[0]
    assert step == 0
    assert results[0][0] == pytest.approx(expected[0][0], rel=1e-5)
