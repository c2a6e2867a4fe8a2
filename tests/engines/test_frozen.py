"""Only some parameters train: the others stay bit for bit, are saved, and have no optimizer state."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from llama_scale.train import ddp_engine, deepspeed_engine, megatron_engine
from llama_scale.train.checkpointing import Position
from tests.engines.harness import run_ranks
from tests.engines.specs import Case
from tests.engines.test_resume import HALF, STEPS, checkpointer_of, same
from tests.engines.training import start, train_steps


def zero(stage: int) -> dict[str, Any]:
    return {"kind": "deepspeed", "zero": stage, "persistence_elements": 1000}


CASES = {
    "ddp": Case(dp=2, engine={"kind": "ddp"}),
    "zero0": Case(dp=2, engine=zero(0)),
    "zero1": Case(tp=2, dp=2, engine=zero(1)),
    "zero2": Case(dp=2, engine=zero(2)),
    "zero3": Case(dp=2, engine=zero(3)),
    "zero3-bf16": Case(dp=2, compute="bf16", engine=zero(3)),
    "pipeline": Case(pp=2, engine=zero(1)),
}


def freeze() -> None:
    """Let the engines build models in which only the attention's output matrices and the norms train."""
    for module in (ddp_engine, deepspeed_engine, megatron_engine):
        build = module.build_chunks

        def frozen(*arguments: Any, build: Any = build) -> Any:
            chunks = build(*arguments)
            for chunk in chunks:
                for name, parameter in chunk.named_parameters():
                    parameter.requires_grad = "linear_proj" in name or "norm" in name
            return chunks

        module.build_chunks = frozen


def trained(case: Case, root: Path, *, resume: bool) -> tuple[list[tuple[float, float]], bool, set[str]]:
    """Train; return the curve, whether what is frozen is as at the beginning, and what has optimizer state."""
    freeze()
    engine = start(case)
    before = {p.name: p.tensor.clone() for p in engine.model_pieces() if "proj" not in p.name and "norm" not in p.name}
    checkpointer = checkpointer_of(case, root)
    if resume:
        assert checkpointer.resume(engine) == Position(step=HALF, samples=HALF * case.global_batch)
        results = train_steps(engine, case, steps=STEPS - HALF, first=HALF)
    else:
        results = train_steps(engine, case, steps=HALF)
        checkpointer.save(engine, Position(step=HALF, samples=HALF * case.global_batch), final=True)
        results += train_steps(engine, case, steps=STEPS - HALF, first=HALF)
    checkpointer.close()
    after = {p.name: p.tensor for p in engine.model_pieces()}
    unchanged = bool(before) and all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    return results, unchanged, {p.name for p in engine.optimizer_pieces()}


@pytest.mark.parametrize("name", CASES)
def test_frozen_parameters_stay_and_are_saved(tmp_path: Path, name: str) -> None:
    case = CASES[name]
    one = Case(compute=case.compute)
    loss, norm = (1e-5, 5e-5) if case.compute == "fp32" else (2e-3, 5e-2)
    found = run_ranks(case.world_size, trained, case, tmp_path / name, resume=False)
    reference = run_ranks(1, trained, one, tmp_path / "one", resume=False)[0]
    again = run_ranks(case.world_size, trained, case, tmp_path / name, resume=True)
    other = run_ranks(1, trained, one, tmp_path / name, resume=True)

    results = same([curve for curve, *_ in found])
    assert [a for a, _ in results] == pytest.approx([a for a, _ in reference[0]], rel=loss)
    assert [b for _, b in results] == pytest.approx([b for _, b in reference[0]], rel=norm)
    assert same([curve for curve, *_ in again]) == results[HALF:]
    assert [a for a, _ in other[0][0]] == pytest.approx([a for a, _ in results[HALF:]], rel=loss)
    for _, unchanged, names in (*found, *again):
        assert unchanged
        assert all("linear_proj" in n or "norm" in n for n in names)
