"""Time, memory and FLOPs of training on a frozen base: against closed forms, and what must hold for any workload."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from llama_scale.plan.constants import DEFAULT
from llama_scale.plan.estimate import estimate
from llama_scale.plan.flops import attention_flops_per_token, matmul_flops_per_token, model_flops_per_token
from llama_scale.plan.frozen_base import lora_frozen, spec_extra, spec_frozen
from llama_scale.plan.kernels import gemm_seconds, make_device
from llama_scale.plan.layer_time import embedding_time
from llama_scale.plan.run_memory import run_memory, stage_run_memory
from llama_scale.plan.run_plan import make_plan
from llama_scale.plan.search import search
from llama_scale.plan.spec_workload import spec_workload
from llama_scale.plan.step_time import step_time
from llama_scale.plan.workload import Frozen, Workload
from llama_scale.plan.workload_sizes import trained_layers, trained_numel
from llama_scale.spec.run import RunSpec
from tests.unit.plan.specs import preset, run_spec
from tests.unit.plan.workloads import LLAMA_8B, hardware, workload, workloads


def bare(model_layers: int, *, first: int, copies: int = 1) -> Frozen:
    """Return a frozen base whose adapters cost nothing themselves."""
    return Frozen(first_layer=first, copies=copies, layer_numel=(0,) * model_layers)


def last(frozen: Frozen, layers: int) -> Frozen:
    """Return the same adapters on the last layers only."""
    first = len(frozen.layer_numel) - layers
    numel = tuple(n if layer >= first else 0 for layer, n in enumerate(frozen.layer_numel))
    return replace(frozen, first_layer=first, layer_numel=numel)


def lora_spec(count: int = 1, *, layers: dict[str, Any] | None = None, **sections: Any) -> RunSpec:
    options = {"rank": 16, **({"layers": layers} if layers else {})}
    adapters = tuple({"name": f"a{n}", "kind": "lora", "options": options} for n in range(count))
    return run_spec(model=preset("llama-3.1-8b"), seq_length=4096, adapters=adapters, **sections)


def states(one: Workload) -> float:
    """Return the bytes of model states; activations are another matter: adapters keep fp32 copies of bf16 inputs."""
    memory = run_memory(one)
    return memory.weights + memory.gradients + memory.optimizer


def test_weights_gradients_are_what_a_frozen_base_saves() -> None:
    full = workload(pp=1, tp=1, dp=1, sequence=False, sharding="none", global_batch=1)
    frozen = replace(full, frozen=bare(32, first=0))
    device = make_device(full.hardware, precision="bf16", constants=DEFAULT)
    shapes = [(6144, 4096), (4096, 4096), (2 * 14336, 4096), (4096, 14336)]
    saved = sum(gemm_seconds(n, k, 8192, device=device) for n, k in shapes)

    assert step_time(full).gemm - step_time(frozen).gemm == pytest.approx(32 * saved)
    assert step_time(frozen).attention == step_time(full).attention
    assert step_time(frozen).optimizer == 0
    table = gemm_seconds(128256, 4096, 8192, device=device)
    saved = table + embedding_time(full, device=device)[1]
    assert step_time(full).head - step_time(frozen).head == pytest.approx(saved)


def test_layers_below_the_adapters_pass_forward_once() -> None:
    whole = workload(pp=1, tp=1, dp=1, sequence=False, sharding="none", global_batch=1)

    def gemm(first: int, copies: int = 1) -> float:
        return step_time(replace(whole, frozen=bare(32, first=first, copies=copies))).gemm

    trunk = gemm(32) / 32
    trained = gemm(0) / 32
    assert gemm(24) == pytest.approx(24 * trunk + 8 * trained)
    assert gemm(24, copies=4) == pytest.approx(24 * trunk + 8 * 4 * trained, rel=0.02)  # larger products are no slower
    assert trained == pytest.approx(2 * trunk, rel=0.1)


def test_only_adapters_gradients_travel_and_are_updated() -> None:
    full = workload(tp=1, pp=1, dp=64, sequence=False, sharding="zero1", global_batch=64)
    lora = replace(full, frozen=lora_frozen(LLAMA_8B, rank=16, tp_size=1))

    assert step_time(lora).data < step_time(full).data / 20
    share = trained_numel(lora, 0) / LLAMA_8B.numel
    assert step_time(lora).optimizer == pytest.approx(share * step_time(full).optimizer)


def test_zero_3_gathers_the_frozen_weights_of_every_pass() -> None:
    full = workload(tp=1, pp=1, dp=64, sequence=False, sharding="zero3", global_batch=64)
    slow = full.hardware.model_copy(update={"network_gbit_per_s": 10.0})
    full = replace(full, hardware=slow)
    some = replace(full, frozen=last(lora_frozen(LLAMA_8B, rank=16, tp_size=1), 8))
    every = replace(full, frozen=lora_frozen(LLAMA_8B, rank=16, tp_size=1))

    # Two gathers of 2 bytes a layer with a backward pass, one without; 4 bytes of gradients more when all train.
    assert step_time(every).data / step_time(full).data == pytest.approx(4 / 8, rel=0.1)
    assert step_time(some).data / step_time(every).data == pytest.approx((8 * 2 + 24) / 64, rel=0.1)


def test_lora_of_a_spec_is_that_of_the_closed_form() -> None:
    spec = lora_spec()
    found = spec_frozen(spec, spec_extra(spec), tp_size=1)
    expected = lora_frozen(LLAMA_8B, rank=16, tp_size=1)

    assert found is not None
    assert sorted(found.matrices) == sorted(expected.matrices)
    assert found.layer_numel == expected.layer_numel
    assert (found.first_layer, found.copies, found.adapters, found.head_numel) == (0, 1, 1, 0)
    tp_4 = spec_frozen(spec, spec_extra(spec), tp_size=4)
    assert tp_4 is not None
    assert sorted(tp_4.matrices) == sorted(lora_frozen(LLAMA_8B, rank=16, tp_size=4).matrices)


def test_mixture_multiplies_rows_from_the_branch_on() -> None:
    alone = spec_workload(lora_spec(layers={"last": 8}), hardware=hardware())
    joint = spec_workload(lora_spec(4, layers={"last": 8}, mixture={"objective": "joint"}), hardware=hardware())
    own = spec_workload(lora_spec(4, layers={"last": 8}, mixture={}), hardware=hardware())

    assert joint.copies == 4
    assert own.copies == 1
    assert trained_layers(joint) == (8,)
    trunk = step_time(replace(alone, frozen=bare(32, first=32))).attention / 32
    branch = step_time(alone).attention - 24 * trunk
    assert step_time(joint).attention == pytest.approx(24 * trunk + 4 * branch)
    assert step_time(joint).head == pytest.approx(4 * step_time(alone).head, rel=0.05)
    assert step_time(own).total == pytest.approx(step_time(alone).total, rel=0.01)  # all train, a row meets one
    assert trained_numel(own, 0) == 4 * trained_numel(alone, 0) + 4  # and the mixture's logits


@pytest.mark.parametrize(
    "engine",
    [{"kind": "megatron"}, {"kind": "megatron", "distributed_optimizer": False},
     *({"kind": "deepspeed", "zero": zero, "bucket_elements": 1_000_000} for zero in (1, 2, 3))],
)  # fmt: skip
@pytest.mark.parametrize("layers", [None, {"last": 4}])
def test_the_searchs_memory_is_close_to_the_plans(engine: dict[str, Any], layers: dict[str, Any] | None) -> None:
    spec = lora_spec(3, layers=layers, mixture={"objective": "joint"}, engine=engine, dp=4, tp=2, accumulation=2)
    exact = make_plan(spec).memory[0]

    found = run_memory(spec_workload(spec, hardware=hardware()))

    assert found.allocated == pytest.approx(exact.total, rel=0.1)


def test_stages_without_adapters_keep_nothing() -> None:
    one = replace(workload(pp=4, dp=4), frozen=last(lora_frozen(LLAMA_8B, rank=16, tp_size=4), 8))

    memory = [stage_run_memory(one, stage) for stage in range(4)]

    assert [trained > 0 for trained in trained_layers(one)] == [False, False, False, True]
    assert [stage.activations > 0 for stage in memory] == [False, False, False, True]
    assert [stage.gradients > 0 for stage in memory] == [False, False, False, True]
    assert run_memory(one).stage == 3


def test_flops_count_no_gradient_of_a_frozen_weight() -> None:
    spec = lora_spec(layers={"last": 8})
    plan = make_plan(spec)
    shape = plan.shape
    head = 2 * shape.hidden_size * shape.vocab_size
    layer = (matmul_flops_per_token(shape) - head) / 32
    attention = attention_flops_per_token(shape, 4096) / 32

    found = model_flops_per_token(shape, 4096, frozen=plan.frozen)

    assert found == pytest.approx(24 * (layer + attention) + 8 * (2 * layer + 3 * attention) + 2 * head)
    speed = estimate(spec, plan, hardware=hardware())
    assert speed.mfu == pytest.approx(found * speed.tokens_per_s / 989e12)
    assert speed.mfu < 1


def test_search_ranks_adapters_layouts_as_each_spec_is_predicted() -> None:
    spec = lora_spec(accumulation=16, layers={"last": 8})
    found = search(spec, hardware=hardware(), devices=8, devices_per_node=8)
    full = search(run_spec(model=preset("llama-3.1-8b"), seq_length=4096, accumulation=16), hardware=hardware(),
                  devices=8, devices_per_node=8)  # fmt: skip

    assert found.fitting > full.fitting
    assert found.ranked[0].tokens_per_s > 1.5 * full.ranked[0].tokens_per_s


@st.composite
def adapted(draw: st.DrawFn) -> tuple[Workload, Workload]:
    """Draw a workload and the same with LoRA on all layers."""
    full = draw(workloads())
    if full.parallel.sharding in ("zero3", "hsdp"):  # no framework divides weights within a pipeline
        full = replace(full, parallel=replace(full.parallel, pp=1, vp=1))
    whole = lora_frozen(full.model, rank=draw(st.sampled_from([1, 8, 64])), tp_size=full.parallel.tp)
    matrices = whole.matrices[: 2 * draw(st.integers(1, 7))]
    numel = sum(rows * columns for rows, columns in matrices)
    frozen = replace(whole, matrices=matrices, layer_numel=(numel,) * full.model.layers)
    return full, replace(full, frozen=frozen)


@given(workloads())
def test_a_frozen_base_never_costs_more_than_full_training(full: Workload) -> None:
    frozen = replace(full, frozen=bare(full.model.layers, first=0))
    assert step_time(frozen).total <= step_time(full).total * (1 + 1e-9)
    assert run_memory(frozen).used <= run_memory(full).used * (1 + 1e-9)


@given(workloads(), st.sampled_from([4096, 6144, 12288]), st.sampled_from([1, 8, 64]))
def test_adapters_never_cost_more_than_full_training(narrow: Workload, hidden: int, rank: int) -> None:
    """Of wide models in 16 bits; where products are cheap or divided, adapters may add more than is saved.

    The gradient of a weight is saved, ``columns`` operations for each number of a product's result; in every pass that
    number is read and written once more to add what the adapter gives. Full recomputation makes that three passes in
    place of two: on an H100 PCIe, with 380 operations a byte, LoRA at hidden 4096 then takes as long as full training.
    """
    assume(hidden > 4096 or narrow.parallel.recompute != "full")
    model = replace(narrow.model, hidden=hidden, ffn=3 * hidden, heads=hidden // 128, kv_heads=8, head_dim=128)
    parallel = replace(narrow.parallel, tp=1, sequence=False)
    full = replace(narrow, model=model, parallel=parallel, seq_length=8192, precision="bf16")
    lora = replace(full, frozen=lora_frozen(model, rank=rank, tp_size=1))
    assert step_time(lora).total <= step_time(full).total * (1 + 1e-9)
    assert states(lora) <= states(full) * (1 + 1e-9)


@given(adapted(), st.data())
def test_fewer_adapted_layers_never_cost_more(pair: tuple[Workload, Workload], data: st.DataObject) -> None:
    _, every = pair
    assert every.frozen is not None
    few, more = sorted(data.draw(st.lists(st.integers(1, every.model.layers), min_size=2, max_size=2)))
    less = replace(every, frozen=last(every.frozen, few))
    larger = replace(every, frozen=last(every.frozen, more))
    assert step_time(less).total <= step_time(larger).total * (1 + 1e-9)
    assert run_memory(less).used <= run_memory(larger).used * (1 + 1e-9)


@given(adapted(), st.integers(1, 4))
def test_more_rows_of_a_mixture_never_cost_less(pair: tuple[Workload, Workload], copies: int) -> None:
    _, one = pair
    assert one.frozen is not None
    more = replace(one, frozen=replace(one.frozen, copies=copies + 1))
    fewer = replace(one, frozen=replace(one.frozen, copies=copies))
    assert step_time(fewer).total <= step_time(more).total * (1 + 1e-9)
    assert run_memory(fewer).used <= run_memory(more).used * (1 + 1e-9)


@given(adapted(), st.data())
def test_no_frozen_base_is_faster_than_the_peak(pair: tuple[Workload, Workload], data: st.DataObject) -> None:
    _, one = pair
    assert one.frozen is not None
    first = data.draw(st.integers(0, one.model.layers - 1))
    one = replace(one, frozen=replace(last(one.frozen, one.model.layers - first), copies=data.draw(st.integers(1, 3))))
    model = one.model
    layer = 2 * (model.attention_numel + model.mlp_numel)
    core = 4 * model.queries * one.seq_length / 2
    branch = (model.layers - first) * (2 * layer + 3 * core) + 4 * model.vocab * model.hidden
    samples = one.micro_batches * one.micro_batch * one.parallel.dp
    flops = samples * one.seq_length * (first * (layer + core) + one.copies * branch)
    peak = (one.hardware.fp8_tflops if one.precision == "fp8" else None) or one.hardware.bf16_tflops
    assert step_time(one).total >= flops / (peak * 1e12 * one.parallel.devices)
