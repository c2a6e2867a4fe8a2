"""Tasks with heads of all kinds train on every layout and engine as in one process."""

from __future__ import annotations

import functools
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.engines.harness import join, run_ranks
from tests.engines.specs import Case
from tests.engines.task_runs import task_case, train_tasks, write_files

LOSS, NORM = 1e-5, 5e-5


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_files(tmp_path_factory.mktemp("tasks"))


ADAPTERS = tuple(
    {"name": f"{kind}-{task}", "kind": kind, "task": task, "options": {"layers": {"last": 2}}}
    for task, kind in (("sum", "lora"), ("qa", "bottleneck"), ("search", "ia3"))
)


@functools.cache
def _reference(folder: Path, adapters: bool, slot: int = 2) -> Any:
    case = task_case(folder, adapters=ADAPTERS if adapters else (), slot=slot)
    [found] = run_ranks(1, train_tasks, case, folder / "run")
    return found


def check(case: Case, expected: Any, run_dir: Path) -> None:
    found = run_ranks(case.world_size, train_tasks, case, run_dir)

    assert all(one == found[0] for one in found), "ranks report different numbers"
    for step, ((a, n), (b, m)) in enumerate(zip(found[0]["curve"], expected["curve"], strict=True)):
        assert abs(a / b - 1) < LOSS, f"step {step}: loss {a} against {b}"
        assert abs(n / m - 1) < NORM, f"step {step}: grad norm {n} against {m}"
    for ours, theirs in zip(found[0]["losses"], expected["losses"], strict=True):
        assert ours == pytest.approx(theirs, rel=LOSS)
    assert found[0]["counts"] == expected["counts"]
    assert found[0]["validation"] == pytest.approx(expected["validation"], rel=LOSS)


LAYOUTS: dict[str, dict[str, Any]] = {
    "tp2-dp2": {"tp": 2, "dp": 2, "distributed_optimizer": True},
    "tp2-sequence": {"tp": 2, "sequence": True},
    "pp2-dp2": {"pp": 2, "dp": 2},
    "pp2-interleaved": {
        "pp": 2,
        "vp": 2,
        "overlap_p2p": True,
        "recompute": {"kind": "full", "method": "uniform", "layers": 1},
    },
    "ddp-dp2": {"dp": 2, "engine": {"kind": "ddp"}},
    "overlap-dp2": {"dp": 2, "distributed_optimizer": True, "overlap_grad_reduce": True, "overlap_param_gather": True},
    "zero1-tp2-dp2": {"tp": 2, "dp": 2, "engine": {"kind": "deepspeed", "zero": 1}},
    "zero3-dp2": {"dp": 2, "engine": {"kind": "deepspeed", "zero": 3, "persistence_elements": 0}},
    "deepspeed-pp2-dp2": {"pp": 2, "dp": 2, "engine": {"kind": "deepspeed", "zero": 1}},
}


@pytest.mark.engines
@pytest.mark.parametrize("name", LAYOUTS)
def test_tasks_train_as_in_one_process(name: str, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    expected = _reference(folder, False)

    assert expected["losses"][0].keys() == {"sum", "qa", "search"}
    check(task_case(folder, **LAYOUTS[name]), expected, tmp_path_factory.mktemp("run"))


@pytest.mark.engines
def test_replicas_without_rows_of_a_task_take_part(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    # 4 rows of each task in slots of 3: in two of the slots the replicas' rows are of different tasks.
    case = task_case(folder, dp=3, slot=3, overlap_grad_reduce=True, distributed_optimizer=True)
    check(case, _reference(folder, False, 3), tmp_path_factory.mktemp("run"))


@pytest.mark.engines
@pytest.mark.parametrize("name", ["tp2-pp2", "zero2-dp2"])
def test_each_task_trains_its_adapter(name: str, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    layouts: dict[str, dict[str, Any]] = {
        "tp2-pp2": {"tp": 2, "pp": 2},
        "zero2-dp2": {"dp": 2, "engine": {"kind": "deepspeed", "zero": 2}},
    }
    check(
        task_case(folder, adapters=ADAPTERS, **layouts[name]), _reference(folder, True), tmp_path_factory.mktemp("run")
    )


def loss_and_gradients(case: Case, run_dir: Path) -> tuple[int, float, dict[str, torch.Tensor]]:
    """Return the number of rows, the summed loss of all training rows and its gradients."""
    from llama_scale.train.model import build_chunks
    from llama_scale.train.samples import make_task_samples

    plan = case.plan()
    coordinates = join(plan)
    [chunk] = build_chunks(case.spec(), plan, coordinates)
    samples = make_task_samples(case.spec(), split="train", run_dir=run_dir).alone(0)
    rows = len(samples._prepared[0])
    batch = replace(plan.batch, global_batch=rows, micro_batch=1, accumulation=rows)
    total = 0.0
    for micro in samples.global_batch(0, batch=batch, dp_rank=0, dp_size=1):
        loss = chunk(micro)
        loss.backward()
        total += float(loss)
    return rows, total, {name: parameter.grad for name, parameter in chunk.named_parameters()}


@pytest.mark.engines
def test_packed_examples_never_see_each_other(folder: Path, tmp_path: Path) -> None:
    packed = task_case(folder, "sum")
    apart = replace(packed, sections={**packed.sections, "data": {**packed.sections["data"], "packing": False}})

    [(few, loss, gradients)] = run_ranks(1, loss_and_gradients, packed, tmp_path)
    [(many, expected, wanted)] = run_ranks(1, loss_and_gradients, apart, tmp_path)

    assert few < many == 30
    assert loss == pytest.approx(expected, rel=1e-5)
    for name, gradient in gradients.items():
        torch.testing.assert_close(
            gradient, wanted[name], rtol=1e-4, atol=1e-5, msg=lambda text, n=name: f"{n}: {text}"
        )
