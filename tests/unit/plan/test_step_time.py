"""Step time: what must hold whatever the constants are."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from llama_scale.plan.communication import make_fabric
from llama_scale.plan.constants import DEFAULT
from llama_scale.plan.estimate import estimate
from llama_scale.plan.kernels import gemm_seconds, make_device
from llama_scale.plan.run_memory import run_memory
from llama_scale.plan.run_plan import make_plan
from llama_scale.plan.step_time import step_time, tokens_per_second
from llama_scale.plan.workload import Dimensions, Workload
from llama_scale.plan.workload_sizes import rank_numel, stage_counts, stage_numel
from tests.unit.plan.specs import preset, run_spec
from tests.unit.plan.workloads import LLAMA_8B, hardware, workload, workloads


def model_flops(one: Workload) -> float:
    """Count FLOPs of a step that no implementation can avoid: causal attention, nothing recomputed."""
    model = one.model
    weights = model.layers * (model.attention_numel + model.mlp_numel) + model.vocab * model.hidden
    attention = 4 * model.layers * model.queries * one.seq_length / 2
    samples = one.micro_batches * one.micro_batch * one.parallel.dp
    return 3 * (2 * weights + attention) * samples * one.seq_length


@given(workloads())
def test_no_step_is_faster_than_the_peak_of_the_hardware(one: Workload) -> None:
    peak = one.hardware.bf16_tflops
    if one.precision == "fp8":
        peak = one.hardware.fp8_tflops or peak
    assert step_time(one).total >= model_flops(one) / (peak * 1e12 * one.parallel.devices)


@given(workloads())
def test_all_parts_are_times_and_add_up(one: Workload) -> None:
    step = step_time(one)
    parts = [getattr(step, field.name) for field in fields(step)]
    assert all(part >= 0 for part in parts)
    assert step.total == pytest.approx(sum(parts))
    assert tokens_per_second(one, step) > 0


_STAGES_CHANGE_PLACES = workload(
    model=Dimensions(
        layers=9, hidden=5952, ffn=7680, heads=4, kv_heads=2, head_dim=64, vocab=32000, gated=True, tied=False
    ),
    hardware=hardware("a100"), dp=2, tp=1, pp=2, sharding="none", sequence=False, attention="flash1", fused=False,
    overlap_grads=True, seq_length=1024, global_batch=4,
)  # fmt: skip
"""The last stage has 4 layers and the output layer; with the attention recomputed, the first with 5 computes longer."""


@given(workloads())
@example(_STAGES_CHANGE_PLACES)
def test_recomputing_more_is_never_faster(one: Workload) -> None:
    none, selective, full = (
        step_time(replace(one, parallel=replace(one.parallel, recompute=kind))).total
        for kind in ("none", "selective", "full")
    )
    assert none <= selective * (1 + 1e-9)
    assert selective <= full * (1 + 1e-9)


@given(workloads(), st.integers(1, 12), st.integers(1, 12))
def test_time_is_additive_over_micro_batches(one: Workload, first: int, second: int) -> None:
    # One replica: its stages have no traffic of gradients, so that the same one is the slowest for any count.
    alone = replace(one, parallel=replace(one.parallel, dp=1))

    def busy(count: int) -> float:
        step = step_time(replace(alone, global_batch=count * one.micro_batch))
        return step.gemm + step.attention + step.pointwise + step.launch + step.head + step.recompute + step.tensor

    assert busy(first + second) == pytest.approx(busy(first) + busy(second))


@given(st.integers(1, 10**6), st.integers(1, 10**6), st.sampled_from([(8, 1), (4, 2), (2, 4)]))
def test_time_is_additive_over_steps(first: int, second: int, degrees: tuple[int, int]) -> None:
    dp, tp = degrees

    def days(steps: int) -> tuple[float, float, float]:
        spec = run_spec(model=preset("llama-3.1-8b"), dp=dp, tp=tp, seq_length=8192, train={"steps": steps})
        found = estimate(spec, make_plan(spec), hardware=hardware(), usd_per_hour=2.0)
        assert found.usd is not None
        return found.days, found.device_hours, found.usd

    parts = zip(days(first), days(second), strict=True)
    assert days(first + second) == pytest.approx(tuple(map(sum, parts)))


@given(workloads(), st.data())
def test_stages_between_the_ends_may_change_places(one: Workload, data: st.DataObject) -> None:
    inner = data.draw(st.lists(st.integers(1, 9), min_size=2, max_size=6))
    changed = data.draw(st.permutations(inner))
    first, last = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 9))

    def total(counts: list[int]) -> float:
        layers = (first, *counts, last)
        parallel = replace(one.parallel, pp=len(layers), vp=1, stage_layers=layers)
        return step_time(replace(one, model=replace(one.model, layers=sum(layers)), parallel=parallel)).total

    assert total(changed) == pytest.approx(total(inner))


@given(workloads(), st.sampled_from([("zero1", "zero1-node"), ("zero3", "hsdp")]))
def test_shards_within_a_node_are_shards_over_all_where_there_is_one_node(one: Workload, pair: tuple[str, str]) -> None:
    parallel = replace(one.parallel, tp=1, pp=1, vp=1, dp=8, sequence=False)
    everywhere, inside = (replace(one, parallel=replace(parallel, sharding=kind)) for kind in pair)
    assert step_time(inside).total == pytest.approx(step_time(everywhere).total)
    assert run_memory(inside).used == pytest.approx(run_memory(everywhere).used)


@given(workloads())
def test_equal_stages_named_one_by_one_cost_the_same(one: Workload) -> None:
    chunks = one.parallel.pp * one.parallel.vp
    even = replace(one, model=replace(one.model, layers=4 * chunks))
    named = replace(even, parallel=replace(even.parallel, stage_layers=(4,) * chunks))
    assert step_time(named).total == step_time(even).total
    assert run_memory(named).used == run_memory(even).used


def test_bubble_is_the_textbooks_for_equal_stages() -> None:
    small = replace(LLAMA_8B, vocab=128)
    plain = step_time(workload(model=small, pp=4, dp=4, global_batch=64))
    woven = step_time(workload(model=small, pp=4, dp=4, vp=2, global_batch=64))
    busy = plain.gemm + plain.attention + plain.pointwise + plain.launch + plain.tensor
    assert plain.bubble == pytest.approx(3 / 16 * busy, rel=0.01)
    assert woven.bubble == pytest.approx(plain.bubble / 2, rel=0.01)


def test_layers_at_either_end_cost_the_same() -> None:
    small = replace(LLAMA_8B, layers=10, vocab=128)
    first = step_time(workload(model=small, pp=2, stage_layers=(4, 6))).total
    second = step_time(workload(model=small, pp=2, stage_layers=(6, 4))).total
    assert first == pytest.approx(second, rel=0.01)


def test_the_output_layer_makes_its_stage_the_slowest() -> None:
    step = step_time(workload(pp=4, dp=4))
    assert step.head > 0
    assert step.bubble > 0


@pytest.mark.parametrize("sharding", ["none", "zero1", "zero2", "zero3", "hsdp", "zero1-node"])
def test_a_slower_network_never_helps(sharding: str) -> None:
    slow = hardware().model_copy(update={"network_gbit_per_s": 10.0})
    fast = workload(tp=1, pp=1, dp=64, sequence=False, sharding=sharding, global_batch=64)
    assert step_time(replace(fast, hardware=slow)).total > step_time(fast).total


def test_zero_2_of_deepspeed_reduces_in_every_pass() -> None:
    once = workload(tp=1, pp=1, dp=16, sequence=False, sharding="zero2")
    each = replace(once, software=replace(once.software, reduce_each_pass=True))
    assert once.micro_batches == 8
    assert step_time(once).data < step_time(each).data < 8 * step_time(once).data


def test_gathers_tensor_by_tensor_wait_for_latency() -> None:
    flat = workload(tp=1, pp=1, dp=512, sequence=False, sharding="zero3", global_batch=512, seq_length=1024)
    single = replace(flat, software=replace(flat.software, flat_gather=False))
    assert step_time(single).data > step_time(flat).data


@pytest.mark.parametrize("name", ["a100", "h100", "b200"])
def test_rows_of_whole_tiles_beat_odd_ones(name: str) -> None:
    device = make_device(hardware(name), precision="bf16", constants=DEFAULT)
    assert gemm_seconds(4096, 1800, 14400, device=device) > gemm_seconds(4096, 1792, 14400, device=device)
    assert gemm_seconds(4096, 4097, 4096, device=device) > gemm_seconds(4096, 4096, 4096, device=device)


def test_collectives_within_a_node_use_its_links() -> None:
    fabric = make_fabric(workload(), constants=DEFAULT)
    inside = fabric.gather_seconds(1e9, members=8, stride=1)
    across = fabric.gather_seconds(1e9, members=16, stride=1)
    alone = fabric.gather_seconds(1e9, members=2, stride=8)
    assert inside < across < 8 * alone
    assert fabric.gather_seconds(1e9, members=1, stride=1) == 0


def test_context_and_expert_parallelism_cost_traffic() -> None:
    plain = step_time(workload(tp=1, sequence=False, seq_length=32768)).tensor
    context = step_time(workload(tp=1, sequence=False, seq_length=32768, cp=4, dp=2)).tensor
    experts = replace(LLAMA_8B, experts=8, active_experts=2, expert_ffn=4096)
    routed = step_time(workload(model=experts, tp=1, sequence=False, ep=8)).tensor
    assert plain == 0
    assert context >= 0
    assert routed > 0


@pytest.mark.parametrize(
    ("layers", "pp", "vp", "counts"),
    [
        (32, 4, 1, (8, 8, 8, 8)),
        (126, 16, 1, (7, *(8,) * 14, 7)),
        (9, 4, 1, (3, 2, 2, 2)),
        (8, 2, 2, (2, 2, 2, 2)),
    ],
)
def test_layers_of_stages(layers: int, pp: int, vp: int, counts: tuple[int, ...]) -> None:
    assert stage_counts(layers, workload(pp=pp, vp=vp, dp=1).parallel) == counts


def test_weights_of_stages_are_the_models() -> None:
    one = workload(tp=1, pp=4, sequence=False)
    total = sum(stage_numel(one, stage) for stage in range(4))
    assert total == pytest.approx(LLAMA_8B.numel, rel=1e-5)
    assert rank_numel(one) == max(stage_numel(one, stage) for stage in (0, 3))
