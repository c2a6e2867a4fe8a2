from __future__ import annotations

import sys
from typing import Any

import pytest

from llama_scale.errors import SpecError
from llama_scale.plan.run_plan import RunPlan, make_plan
from llama_scale.spec.load import spec_digest
from llama_scale.spec.run import RunSpec
from tests.unit.plan.specs import preset, run_spec


def test_plan_carries_what_the_spec_says() -> None:
    spec = run_spec(dp=2, tp=2, pp=2, micro=2, accumulation=4)

    plan = make_plan(spec)

    assert (plan.name, plan.engine, plan.steps) == ("tiny", "megatron", 10)
    assert plan.spec_digest == spec_digest(spec)
    assert plan.topology.world_size == 8
    assert plan.batch.global_batch == 16
    assert plan.batch.tokens_per_step == 16 * 64
    assert plan.virtual_stages == 1
    assert plan.shape.rope_scaling is None


@pytest.mark.parametrize("name", ["llama-3.1-8b", "llama-3.2-1b"])
def test_json_round_trip_is_exact(name: str) -> None:
    plan = make_plan(run_spec(model=preset(name), dp=2, tp=4, pp=2, parallel={"virtual_stages": 2}))

    assert RunPlan.from_json(plan.to_json()) == plan
    assert plan.shape.rope_scaling is not None


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"name": 3}'])
def test_text_that_is_no_plan_is_refused(text: str) -> None:
    with pytest.raises(SpecError, match="not a plan of llama-scale"):
        RunPlan.from_json(text)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"tp": 4}, r"tensor=4 does not divide num_kv_heads=2"),
        ({"tp": 3}, r"tensor=3 does not divide num_heads=4"),
        ({"pp": 3}, r"pipeline x virtual_stages = 3 x 1 = 3 does not divide num_layers=8"),
        ({"pp": 2, "parallel": {"stage_layers": (4, 3)}}, r"stage_layers sums to 7, and num_layers=8"),
        ({"model": {"num_kv_heads": 3}}, r"num_kv_heads=3 does not divide num_heads=4"),
        ({"tp": 2, "seq_length": 63, "parallel": {"sequence": True}}, r"seq_length=63 is not divisible by tensor=2"),
        ({"cluster": {"nodes": 3}}, r"1 x 1 x 1 = 1 processes, but the cluster has .* 3 x 1 = 3"),
        ({"batch": {"global": 9, "micro": 1, "accumulation": 8}}, r"global=9 is not micro=1 x accumulation=8 x data=1"),
        ({"parallel": {"virtual_stages": 2}}, r"virtual_stages=2 needs pipeline > 1"),
        (
            {"pp": 4, "accumulation": 3, "parallel": {"virtual_stages": 2}},
            r"accumulation=3 is not a multiple of pipeline=4",
        ),
        ({"batch": {}}, r"batch\.global: the batch is not resolved"),
        ({"train": {"tokens": 5}}, r"train\.steps: the number of steps is not resolved"),
    ],
)
def test_spec_that_has_no_plan_is_refused_with_the_reason(changes: dict[str, Any], text: str) -> None:
    with pytest.raises(SpecError, match=text):
        make_plan(run_spec(**changes))


def test_unresolved_model_is_refused() -> None:
    data = run_spec().model_dump(by_alias=True)
    data["model"] = {"kind": "preset", "name": "llama-3.1-8b"}

    with pytest.raises(SpecError, match=r"model kind='preset' is not resolved"):
        make_plan(RunSpec.model_validate(data))


def test_all_problems_are_named_at_once() -> None:
    with pytest.raises(SpecError) as caught:
        make_plan(run_spec(tp=3, pp=3, cluster={"nodes": 7}))

    codes = {problem.code for problem in caught.value.problems}
    assert codes == {"tensor-num-heads", "tensor-num-kv-heads", "layers-stages", "world-size"}


def test_a_world_of_16384_ranks_stays_small() -> None:
    spec = run_spec(
        model=preset("llama-3.1-405b"),
        dp=128,
        tp=8,
        pp=16,
        accumulation=16,
        seq_length=8192,
        parallel={"sequence": True, "stage_layers": (7, *[8] * 14, 7)},
    )

    plan = make_plan(spec)

    assert plan.topology.world_size == 16384
    assert len(plan.to_json()) < 50_000


def test_planning_imports_no_tensor_library() -> None:
    import subprocess

    code = (
        "import sys, llama_scale.plan.hardware, llama_scale.cli.plan;"
        "print(sorted({'torch', 'numpy', 'rich', 'transformers', 'megatron'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "[]"
