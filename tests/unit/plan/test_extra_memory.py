"""Activations of runs with adapters: a frozen trunk keeps none, a mixture's rows keep as many as there are adapters."""

from __future__ import annotations

from typing import Any

import pytest

from llama_scale.plan.run_plan import RunPlan, make_plan
from tests.engines.specs import Case


def plan(
    *, last: int | None = None, adapters: int = 1, mixture: dict[str, Any] | None = None, **fields: Any
) -> RunPlan:
    options = {"layers": {"last": last}}
    made = tuple({"name": f"a{n}", "kind": "lora", "options": options} for n in range(adapters if last else 0))
    return make_plan(Case(adapters=made, sections={"mixture": mixture} if mixture else {}, **fields).spec())


def activations(plan: RunPlan) -> list[int]:
    return [stage.activations for stage in plan.memory]


def test_frozen_layers_below_the_adapters_keep_nothing() -> None:
    whole, last_one, all_four = plan(), plan(last=1), plan(last=4)

    # LoRA reads what the base's matrices would keep, and keeps 8 fp32 numbers more for each of 7 updates a token.
    assert activations(all_four)[0] == activations(whole)[0] + 4 * 16 * 7 * 8 * 4
    assert activations(last_one)[0] < activations(whole)[0] / 3
    assert activations(plan(last=1, pp=2))[0] == 0  # a stage without adapters


def test_mixture_keeps_each_adapters_rows() -> None:
    one = activations(plan(last=2))[0]

    assert activations(plan(last=2, adapters=3, mixture={"objective": "joint"}))[0] == 3 * one
    assert activations(plan(last=2, adapters=3, mixture={"objective": "em", "weights": "gate"}))[0] == 4 * one
    assert activations(plan(last=2, adapters=3, mixture={}))[0] == one  # per_task: a row has one adapter


@pytest.mark.parametrize("kind", ["selective", "full"])
def test_recomputation_counts_the_same_layers(kind: str) -> None:
    recompute = {"kind": kind} if kind == "selective" else {"kind": kind, "method": "uniform", "layers": 1}
    one = activations(plan(last=2, recompute=recompute))[0]

    assert one < activations(plan(recompute=recompute))[0]
    assert activations(plan(last=2, adapters=2, mixture={"objective": "joint"}, recompute=recompute))[0] == 2 * one
