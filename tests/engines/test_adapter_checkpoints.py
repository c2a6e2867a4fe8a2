"""Checkpoints of adapters on a frozen base: small, resumed on any layout and engine, refused on another base."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from llama_scale.checkpoint.manifest import load_manifest
from llama_scale.errors import CheckpointError
from llama_scale.train.checkpointing import Position
from llama_scale.train.frozen_base import base_record, check_extensions
from llama_scale.train.starting import find_start
from tests.engines.harness import run_ranks
from tests.engines.specs import Case
from tests.engines.test_adapters import adapter, deepspeed, lora_case
from tests.engines.test_resume import HALF, checkpointer_of, resumed, same, straight
from tests.engines.training import start, train_steps

NAME = f"step-{HALF:08d}"


def save_base(case: Case, root: Path) -> None:
    engine = start(case)
    checkpointer = checkpointer_of(case, root)
    checkpointer.save(engine, Position(step=HALF, samples=0), final=True)
    checkpointer.close()


def on_base(case: Case, base: Path) -> Case:
    return replace(case, shape={**case.shape, "init_from": str(base)}, seed=8)


def straight_from_base(case: Case, root: Path) -> list[tuple[float, float]]:
    """Train on a frozen base, which ``resume`` loads, saving half way."""
    engine = start(case)
    checkpointer = checkpointer_of(case, root)
    assert checkpointer.resume(engine) is None
    results = train_steps(engine, case, steps=HALF)
    checkpointer.save(engine, Position(step=HALF, samples=HALF * case.global_batch), final=True)
    results += train_steps(engine, case, steps=HALF, first=HALF)
    checkpointer.close()
    return results


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("base")
    run_ranks(1, save_base, Case(shape={"init_std": 0.2}), root)
    return root / NAME


@pytest.mark.parametrize(
    ("saver", "others"),
    [
        (lora_case(tp=2, pp=2, dp=2, sequence=True), (lora_case(dp=2, engine=deepspeed(3)),)),
        (
            lora_case(pp=2, vp=2, overlap_p2p=True, distributed_optimizer=True, dp=2),
            (lora_case(dp=2, engine={"kind": "ddp"}),),
        ),
        (lora_case(dp=2, engine=deepspeed(2)), (lora_case(tp=2),)),
        (lora_case(pp=2, engine=deepspeed(1), adapters=adapter("lora", layers={"last": 1})), ()),
        (
            lora_case(dp=2, compute="bf16", distributed_optimizer=True),
            (lora_case(compute="bf16", dp=2, engine=deepspeed(2)),),
        ),
    ],
    ids=["megatron-to-zero3", "interleaved-to-ddp", "zero2-to-megatron", "empty-stage", "bf16"],
)
def test_resume_equals_training_straight(tmp_path: Path, base: Path, saver: Case, others: tuple[Case, ...]) -> None:
    saver = on_base(saver, base)
    expected = same(run_ranks(saver.world_size, straight_from_base, saver, tmp_path))[HALF:]

    manifest = load_manifest(tmp_path / NAME)
    assert manifest.tensors["model"].keys() == manifest.tensors["exp_avg"].keys()
    assert all(".adapters." in name for name in manifest.tensors["model"])
    assert all(entry.dtype == "float32" for entry in manifest.tensors["model"].values())
    assert manifest.base is not None
    assert (manifest.base.kind, manifest.base.path) == ("checkpoint", str(base))
    assert same(run_ranks(saver.world_size, resumed, saver, tmp_path)) == expected  # bit for bit
    for other in others:
        found = same(run_ranks(other.world_size, resumed, on_base(other, base), tmp_path))
        tolerance = 1e-5 if other.compute == "fp32" else 2e-3
        assert [loss for loss, _ in found] == pytest.approx([loss for loss, _ in expected], rel=tolerance)


def test_what_does_not_fit_is_refused(tmp_path: Path, base: Path) -> None:
    case = on_base(lora_case(), base)
    run_ranks(1, straight_from_base, case, tmp_path)
    folder = tmp_path / NAME
    manifest = load_manifest(folder)

    def check(other: Case, *, optimizer: bool = True) -> None:
        spec, plan = other.spec(), other.plan()
        check_extensions(
            manifest,
            spec,
            plan,
            folder=folder,
            base=base_record(spec, plan, start=find_start(spec, None)),
            optimizer=optimizer,
        )

    check(case)
    refusals = {
        r"other adapters.*rank 4 saved, 5 wanted": replace(case, adapters=adapter("lora", rank=5, alpha=8)),
        r"alpha 8 saved, 9 wanted": replace(case, adapters=adapter("lora", rank=4, alpha=9)),
        r"kind lora saved, ia3 wanted": replace(case, adapters=adapter("ia3")),
        r"another base.*digest.*seed 8": lora_case(seed=8),
        r"not in the checkpoint": replace(
            case, adapters=(*case.adapters, {**adapter("ia3")[0], "name": "b", "task": None})
        ),
        r"does not; start a new run": Case(shape=case.shape),
    }
    del refusals[r"not in the checkpoint"]
    for message, other in refusals.items():
        with pytest.raises(CheckpointError, match=message):
            check(other)
    with pytest.raises(CheckpointError, match=re.escape(f"trained on a frozen base ({base}")):
        check(Case(shape=case.shape), optimizer=False)
    check(case, optimizer=False)  # a new run may start from these adapters


def test_a_base_from_the_seed_is_known_by_its_seed(tmp_path: Path) -> None:
    case = lora_case()
    expected = same(run_ranks(1, straight, case, tmp_path))[HALF:]
    assert same(run_ranks(1, resumed, case, tmp_path)) == expected
    manifest = load_manifest(tmp_path / NAME)
    assert manifest.base is not None
    assert (manifest.base.seed, manifest.base.init_std) == (7, 0.2)
    with pytest.raises(CheckpointError, match="another base: on weights drawn from seed 7"):
        spec, plan = (other := replace(case, seed=9)).spec(), other.plan()
        check_extensions(
            manifest,
            spec,
            plan,
            folder=tmp_path,
            base=base_record(spec, plan, start=find_start(spec, None)),
            optimizer=True,
        )


def first_loss_from(case: Case, root: Path) -> float:
    """Start a new run from ``model.init_from`` and return its loss on the samples that follow half way."""
    engine = start(case)
    checkpointer = checkpointer_of(case, root)
    assert checkpointer.resume(engine) is None
    assert checkpointer.warm_start(engine)
    checkpointer.close()
    return train_steps(engine, case, steps=1, first=HALF)[0][0]


def test_a_run_starts_from_adapters_on_their_base(tmp_path: Path, base: Path) -> None:
    saver = on_base(lora_case(tp=2), base)
    expected = same(run_ranks(saver.world_size, straight_from_base, saver, tmp_path))[HALF][0]

    other = on_base(lora_case(pp=2, engine=deepspeed(1)), tmp_path / NAME)
    found = same(run_ranks(other.world_size, first_loss_from, other, tmp_path / "new"))

    assert found == pytest.approx(expected, rel=1e-5)
    spec = lora_case(adapters=adapter("ia3"))
    spec = on_base(spec, tmp_path / NAME)
    manifest = load_manifest(tmp_path / NAME)
    with pytest.raises(CheckpointError, match=r"holds adapters that this spec does not have so .*kind lora saved"):
        check_extensions(
            manifest,
            spec.spec(),
            spec.plan(),
            folder=tmp_path / NAME,
            base=base_record(spec.spec(), spec.plan(), start=find_start(spec.spec(), None)),
            optimizer=False,
        )
