"""Mixtures over tasks: each adapter on its own task's rows, or all adapters on all rows."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.engines.harness import run_ranks
from tests.engines.specs import Case
from tests.engines.task_runs import task_case, train_tasks, write_files

LOSS, NORM = 1e-5, 5e-5
STEPS = 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_files(tmp_path_factory.mktemp("tasks"))


def lora(name: str, task: str | None = None) -> dict[str, Any]:
    return {"name": name, "kind": "lora", "task": task, "options": {"rank": 2, "layers": {"last": 3}}}


def per_task(folder: Path, *, weights: str = "gate", **fields: Any) -> Case:
    """Return three tasks, each with its adapter; two of these are mixed, one of them with a head of its own."""
    adapters = (lora("a-qa", "qa"), lora("a-search", "search"), lora("a-sum", "sum"))
    case = task_case(folder, "sum", "search", "qa", adapters=adapters, **fields)
    mixture = {"weights": weights, "adapters": ("a-qa", "a-sum")}
    return replace(case, sections={**case.sections, "mixture": mixture})


def joint(folder: Path, **fields: Any) -> Case:
    case = task_case(folder, "sum", adapters=(lora("first"), lora("second")), **fields)
    return replace(case, sections={**case.sections, "mixture": {"weights": "posterior", "objective": "joint"}})


def check(found: list[dict[str, Any]], expected: dict[str, Any]) -> None:
    assert all(one == found[0] for one in found), "ranks report different numbers"
    for (a, n), (b, m) in zip(found[0]["curve"], expected["curve"], strict=True):
        assert a == pytest.approx(b, rel=LOSS) and n == pytest.approx(m, rel=NORM)
    for ours, theirs in zip(found[0]["losses"], expected["losses"], strict=True):
        assert ours == pytest.approx(theirs, rel=LOSS)
    assert found[0]["counts"] == expected["counts"]
    assert found[0]["validation"] == pytest.approx(expected["validation"], rel=LOSS)


def test_each_task_trains_its_adapter_and_the_weights(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    [expected] = run_ranks(1, train_tasks, per_task(folder), tmp_path_factory.mktemp("one"), steps=STEPS)
    case = per_task(folder, pp=2, dp=2)

    check(run_ranks(4, train_tasks, case, tmp_path_factory.mktemp("many"), steps=STEPS), expected)
    assert expected["losses"][0].keys() == expected["validation"].keys() == {"sum", "search", "qa"}


@pytest.mark.parametrize("weights", ["prior", "gate"])
def test_deepspeed_pipeline_has_tasks_inside_and_outside_the_mixture(
    folder: Path, tmp_path_factory: pytest.TempPathFactory, weights: str
) -> None:
    # A gate and an evaluation repeat a mixture's rows, those of other heads they do not: micro-batches differ in rows.
    [expected] = run_ranks(1, train_tasks, per_task(folder, weights=weights), tmp_path_factory.mktemp("one"), steps=2)
    case = per_task(folder, weights=weights, pp=2, engine={"kind": "deepspeed", "zero": 1})

    check(run_ranks(2, train_tasks, case, tmp_path_factory.mktemp("many"), steps=2), expected)


def test_tasks_train_all_adapters(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    [expected] = run_ranks(1, train_tasks, joint(folder), tmp_path_factory.mktemp("one"), steps=STEPS)
    case = joint(folder, tp=2, engine={"kind": "deepspeed", "zero": 2})

    check(run_ranks(2, train_tasks, case, tmp_path_factory.mktemp("many"), steps=STEPS), expected)
    # Without adapters outside, the one task's loss is the step's.
    for (loss, _), losses in zip(expected["curve"], expected["losses"], strict=True):
        assert losses == pytest.approx({"sum": loss}, rel=1e-6)
    # The posterior's responsibilities are shares of documents.
    assert all(0 < documents < tokens["sum"] for tokens, documents in expected["counts"])
