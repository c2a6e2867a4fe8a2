"""A run goes on under another engine, ZeRO stage or layout: same state bit for bit, same curve."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llama_scale.checkpoint.manifest import load_manifest
from llama_scale.convert.export_hf import export_hf
from llama_scale.convert.import_hf import import_hf
from llama_scale.convert.shards import Layout
from llama_scale.train.checkpointing import Position
from tests.engines.harness import run_ranks
from tests.engines.specs import Case
from tests.engines.test_resume import HALF, checkpointer_of, resumed, same, straight
from tests.engines.training import start, train_steps


def zero(stage: int, **options: Any) -> dict[str, Any]:
    # Between a tiny model's norms and matrices, so that ZeRO 3 has whole and divided weights.
    return {"kind": "deepspeed", "zero": stage, "persistence_elements": 1000, **options}


TIED = {"tie_word_embeddings": True}
OFFLOAD = {"offload_optimizer": {"device": "cpu"}}
ONE = Case()
DDP2 = Case(dp=2, engine={"kind": "ddp"})
MEGATRON = Case(tp=2, pp=2)
MEGATRON_DIST = Case(dp=2, distributed_optimizer=True)
ZERO0 = Case(tp=2, engine=zero(0))
ZERO1 = Case(dp=2, engine=zero(1))
ZERO2 = Case(dp=2, tp=2, engine=zero(2))
ZERO3 = Case(dp=2, engine=zero(3))
PIPELINE = Case(pp=2, engine=zero(1))
PIPELINE_3D = Case(pp=2, tp=2, dp=2, engine=zero(1))

PAIRS = {
    "zero3": (ZERO3, (MEGATRON, DDP2)),
    "megatron": (MEGATRON, (ZERO3, PIPELINE)),
    "pipeline": (PIPELINE, (replace(ZERO3, tp=2), Case(tp=2, engine=zero(1)))),
    "pipeline-tied": (replace(PIPELINE, shape=TIED), (replace(ZERO1, shape=TIED), replace(MEGATRON, shape=TIED))),
    "zero2-offload": (replace(ZERO2, tp=1, engine=zero(2, **OFFLOAD)), (MEGATRON_DIST,)),
}
SOAK_PAIRS = {
    "zero0": (ZERO0, (ZERO3, ONE)),
    "zero1": (ZERO1, (replace(ZERO1, dp=4), ZERO3, MEGATRON)),
    "zero2": (ZERO2, (ZERO0, PIPELINE_3D)),
    "zero3-tp2": (replace(ZERO3, tp=2), (replace(ZERO3, dp=4), ZERO2)),
    "ddp": (DDP2, (ZERO1, replace(ZERO3, tp=2))),
    "pipeline-3d": (PIPELINE_3D, (MEGATRON_DIST, Case(pp=4, engine=zero(1)))),
    "megatron-dist": (MEGATRON_DIST, (ZERO2, replace(ZERO3, engine=zero(3, **OFFLOAD)))),
    "megatron-tied": (replace(MEGATRON, shape=TIED), (replace(PIPELINE, shape=TIED), replace(ZERO3, shape=TIED))),
    "zero3-tied": (replace(ZERO3, shape=TIED), (replace(PIPELINE_3D, shape=TIED),)),
    "zero3-offload": (
        replace(ZERO3, engine=zero(3, **OFFLOAD, offload_parameters={"device": "cpu"})),
        (ZERO3, MEGATRON),
    ),
    "zero1-offload": (replace(ZERO1, engine=zero(1, **OFFLOAD)), (DDP2,)),
}


def check(folder: Path, saver: Case, others: tuple[Case, ...], *, loss: float, norm: float) -> None:
    """Train through, saving half way; go on from there on the same layout, and on each other one.

    Loading itself compares digests of weights, masters and moments with what was saved (``train.restoring``).
    """
    expected = same(run_ranks(saver.world_size, straight, saver, folder))[HALF:]

    assert same(run_ranks(saver.world_size, resumed, saver, folder)) == expected  # bit for bit
    for other in others:
        found = same(run_ranks(other.world_size, resumed, other, folder))
        assert [a for a, _ in found] == pytest.approx([a for a, _ in expected], rel=loss), other
        assert [b for _, b in found] == pytest.approx([b for _, b in expected], rel=norm), other


@pytest.mark.parametrize("name", [*PAIRS, *(pytest.param(name, marks=pytest.mark.soak) for name in SOAK_PAIRS)])
def test_run_goes_on_under_another_engine(tmp_path: Path, name: str) -> None:
    saver, others = (PAIRS | SOAK_PAIRS)[name]
    check(tmp_path, saver, others, loss=1e-5, norm=5e-5)


BF16 = {
    "zero3": (ZERO3, (MEGATRON, ZERO1)),
    "megatron-dist": (MEGATRON_DIST, (ZERO3, PIPELINE)),
}
SOAK_BF16 = {
    "zero1": (ZERO1, (DDP2, replace(ZERO2, tp=1))),
    "zero2": (replace(ZERO2, tp=1), (MEGATRON,)),
    "pipeline": (PIPELINE, (ZERO3, MEGATRON_DIST)),
    "ddp": (DDP2, (ZERO1,)),
}


@pytest.mark.parametrize("name", [*BF16, *(pytest.param(name, marks=pytest.mark.soak) for name in SOAK_BF16)])
def test_bf16_run_goes_on_from_its_masters(tmp_path: Path, name: str) -> None:
    saver, others = (BF16 | SOAK_BF16)[name]
    others = tuple(replace(other, compute="bf16") for other in others)
    check(tmp_path, replace(saver, compute="bf16"), others, loss=2e-3, norm=5e-2)


def saved(case: Case, root: Path) -> None:
    engine = start(case)
    checkpointer = checkpointer_of(case, root)
    train_steps(engine, case, steps=1)
    checkpointer.save(engine, Position(step=1, samples=case.global_batch), final=True)
    checkpointer.close()


EXPORTS = {
    "zero3-tp2": replace(ZERO3, tp=2),
    "zero2-bf16": replace(ZERO2, tp=1, compute="bf16"),
    "pipeline-tied": replace(PIPELINE, tp=2, shape=TIED),
    "ddp": DDP2,
}


@pytest.mark.parametrize("name", EXPORTS)
def test_exports_hold_the_engines_weights_bit_for_bit(tmp_path: Path, name: str) -> None:
    case = EXPORTS[name]
    run_ranks(case.world_size, saved, case, tmp_path)
    checkpoint = tmp_path / "step-00000001"

    export_hf(checkpoint, tmp_path / "hf")

    back = import_hf(tmp_path / "hf", tmp_path / "back", layout=Layout())
    assert back.parameter_digest == load_manifest(checkpoint).parameter_digest
