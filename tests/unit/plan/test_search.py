"""The search: equal to trying everything, and it says why layouts lose."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama_scale.errors import SpecError
from llama_scale.plan.run_memory import run_memory
from llama_scale.plan.run_plan import make_plan
from llama_scale.plan.search import search, with_reasons
from llama_scale.plan.search_space import describe
from llama_scale.plan.spec_workload import spec_workload
from llama_scale.plan.step_time import step_time
from llama_scale.spec.nearby import divisors
from llama_scale.spec.rules import check_rules
from llama_scale.spec.run import RunSpec
from tests.properties import examples
from tests.unit.plan.specs import preset, run_spec
from tests.unit.plan.workloads import hardware

_ENGINES: tuple[dict[str, Any], ...] = (
    *({"kind": "megatron", "distributed_optimizer": sharded, "overlap_grad_reduce": True,
       "overlap_param_gather": sharded, "overlap_p2p": p2p} for sharded in (True, False) for p2p in (True, False)),
    *({"kind": "deepspeed", "zero": zero, "overlap_comm": overlap} for zero in range(4) for overlap in (True, False)),
    {"kind": "ddp"},
)  # fmt: skip
_RECOMPUTE: tuple[dict[str, Any], ...] = ({"kind": "none"}, {"kind": "selective"}, {"kind": "full"})


def _spec(heads: int, kv_heads: int, layers: int, total: int) -> RunSpec:
    shape = {"num_heads": heads, "num_kv_heads": kv_heads, "num_layers": layers, "head_dim": 16, "hidden_size": 64}
    return run_spec(model=shape, accumulation=total)


def _brute_force(spec: RunSpec, devices: int) -> float:
    """Return the most tokens a second over all specs that validation accepts, each built and judged by itself."""
    best = 0.0
    total = spec.batch.global_
    assert total is not None
    for tensor, pipeline, virtual, sequence in product(divisors(devices), divisors(devices), (1, 2, 4, 8), (0, 1)):
        if devices % (tensor * pipeline) or total % (devices // tensor // pipeline):
            continue
        data = devices // tensor // pipeline
        replica = total // data
        for micro, engine, recompute in product(divisors(replica), _ENGINES, _RECOMPUTE):
            document = spec.model_dump(by_alias=True) | {
                "parallel": {"data": data, "tensor": tensor, "pipeline": pipeline, "virtual_stages": virtual,
                             "sequence": bool(sequence)},
                "engine": engine,
                "recompute": recompute,
                "batch": {"global": total, "micro": micro, "accumulation": replica // micro},
                "cluster": {"nodes": 1, "devices_per_node": devices},
            }  # fmt: skip
            candidate = RunSpec.model_validate(document)
            if check_rules(candidate):
                continue
            workload = spec_workload(candidate, hardware=hardware())
            if run_memory(workload).fits:
                best = max(best, total * spec.data.seq_length / step_time(workload).total)
    return best


@examples(4)
@given(st.sampled_from([(4, 2), (8, 8)]), st.sampled_from([4, 8]), st.sampled_from([2, 4]), st.sampled_from([4, 8]))
def test_the_best_equals_brute_force(heads: tuple[int, int], layers: int, devices: int, total: int) -> None:
    spec = _spec(*heads, layers=layers, total=total)
    result = search(spec, hardware=hardware(), devices=devices, devices_per_node=devices)
    assert result.ranked[0].tokens_per_s == pytest.approx(_brute_force(spec, devices), rel=1e-9)


def _large() -> RunSpec:
    return run_spec(model=preset("llama-3.1-8b"), accumulation=256, seq_length=8192)


def test_every_ranked_layout_has_a_plan() -> None:
    spec = _large()
    result = search(spec, hardware=hardware(), devices=16, devices_per_node=8)
    assert result.fitting
    for one in result.ranked[:: max(1, len(result.ranked) // 25)]:
        sections = describe(one.candidate)
        document = spec.model_dump(by_alias=True) | sections
        document["batch"]["accumulation"] = 256 // sections["parallel"]["data"] // sections["batch"]["micro"]
        document["cluster"] = {"nodes": 2, "devices_per_node": 8}
        found = RunSpec.model_validate(document)
        assert check_rules(found) == []
        make_plan(found)


def test_what_fits_comes_first_and_losers_say_why() -> None:
    result = search(_large(), hardware=hardware(), devices=16, devices_per_node=8)
    shown = with_reasons(result, top=len(result.ranked), objective="tokens")
    assert shown[0].reason == ""
    assert all(one.reason for one in shown[1:])
    fits = [one.memory.fits for one in shown]
    assert fits == sorted(fits, reverse=True)
    speeds = [one.tokens_per_s for one in shown[: result.fitting]]
    assert speeds == sorted(speeds, reverse=True)
    lost = shown[result.fitting]
    over = (lost.memory.used - lost.memory.capacity) / (1 << 30)
    assert lost.reason == f"OOM on stage {lost.memory.stage} by {over:.1f} GiB"
    assert any("bubble +" in one.reason for one in shown)
    assert any("exposed" in one.reason for one in shown)


def test_objectives_differ() -> None:
    spec = _large()
    most, least, cheapest = (
        search(spec, hardware=hardware(), devices=16, devices_per_node=8, objective=objective).ranked[0]
        for objective in ("tokens", "memory", "cost")
    )
    assert least.memory.used < most.memory.used
    assert most.tokens_per_s > least.tokens_per_s
    assert cheapest.tokens_per_s_per_device >= most.tokens_per_s_per_device
    assert cheapest.devices in (8, 16)


def test_nothing_fits_a_small_device() -> None:
    small = hardware().model_copy(update={"memory_gb": 4.0})
    result = search(_large(), hardware=small, devices=8, devices_per_node=8)
    assert result.fitting == 0
    assert all(one.reason.startswith("OOM") for one in with_reasons(result, top=5, objective="tokens"))


def test_layouts_that_differ_in_names_only_cost_the_same() -> None:
    spec = _large()
    workload = spec_workload(spec, hardware=hardware())
    again = replace(workload, parallel=replace(workload.parallel, stage_layers=(32,)))
    assert step_time(again).total == step_time(workload).total


def test_the_command_refuses_what_cannot_be_searched() -> None:
    from llama_scale.cli.plan_search import run_search

    with pytest.raises(SpecError, match="the search needs an accelerator: give --gpu"):
        run_search(_large(), hardware=None, gpus=8, objective="tokens", top=3, as_json=False)
    with pytest.raises(SpecError, match="--gpus 12 does not fill hosts of 8 devices; use 8 or more"):
        run_search(_large(), hardware=hardware(), gpus=12, objective="tokens", top=3, as_json=False)
    with pytest.raises(SpecError, match="no layout of 296 devices divides the model"):
        run_search(_large(), hardware=hardware(), gpus=296, objective="tokens", top=3, as_json=False)
