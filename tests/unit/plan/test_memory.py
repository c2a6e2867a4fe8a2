from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama_scale.plan.memory import model_states
from llama_scale.plan.run_plan import RunPlan, make_plan
from llama_scale.spec.engine import DdpEngine, DeepSpeedEngine, Engine, MegatronEngine
from llama_scale.spec.precision import Precision
from tests.unit.plan.specs import run_spec

BF16 = Precision()
FP32 = Precision(compute="fp32")
N, D = 1000, 4


def _per_parameter(engine: Engine, precision: Precision, *, pp_size: int = 1) -> tuple[float, ...]:
    states = model_states(N, engine=engine, precision=precision, dp_size=D, pp_size=pp_size)
    return tuple(x / N for x in (states.weights, states.gradients, states.masters, states.moments))


@pytest.mark.parametrize(
    ("engine", "precision", "expected"),
    [
        # weights, gradients, masters, moments in bytes a parameter
        (MegatronEngine(kind="megatron", distributed_optimizer=False), BF16, (2, 4, 4, 8)),
        (MegatronEngine(kind="megatron", distributed_optimizer=False), FP32, (4, 4, 0, 8)),
        (MegatronEngine(kind="megatron"), BF16, (2, 4, 4 / D, 8 / D)),
        (MegatronEngine(kind="megatron"), FP32, (4, 4, 0, 8 / D)),
        (MegatronEngine(kind="megatron"), Precision(gradients="bf16"), (2, 2, 4 / D, 8 / D)),
        (DdpEngine(kind="ddp"), FP32, (4, 4, 0, 8)),
        (DdpEngine(kind="ddp"), BF16, (2, 4, 4, 8)),
        (DeepSpeedEngine(kind="deepspeed", zero=0), FP32, (4, 4, 0, 8)),
        (DeepSpeedEngine(kind="deepspeed", zero=1), FP32, (4, 4, 4 / D, 8 / D)),
        (DeepSpeedEngine(kind="deepspeed", zero=1), BF16, (2, 4, 4 / D, 8 / D)),
        (DeepSpeedEngine(kind="deepspeed", zero=2), BF16, (2, 4 / D, 4 / D, 8 / D)),
        (DeepSpeedEngine(kind="deepspeed", zero=3), BF16, (2 / D, 4 / D, 4 / D, 8 / D)),
    ],
)
def test_model_states_by_engine_and_sharding(engine: Engine, precision: Precision, expected: tuple[float, ...]) -> None:
    assert _per_parameter(engine, precision) == pytest.approx(expected)


def test_deepspeeds_pipeline_runs_zero_1_for_zero_0() -> None:
    zero_0 = DeepSpeedEngine(kind="deepspeed", zero=0)
    zero_1 = DeepSpeedEngine(kind="deepspeed", zero=1)

    assert _per_parameter(zero_0, FP32, pp_size=2) == _per_parameter(zero_1, FP32, pp_size=2)


def test_offload_moves_bytes_to_the_host() -> None:
    engine = DeepSpeedEngine.model_validate(
        {
            "kind": "deepspeed",
            "zero": 3,
            "offload_optimizer": {"device": "cpu"},
            "offload_parameters": {"device": "cpu"},
        }
    )

    states = model_states(N, engine=engine, precision=BF16, dp_size=D, pp_size=1)

    assert (states.weights, states.masters, states.moments) == (0, 0, 0)
    assert states.host == N // D * (2 + 4 + 8)


@pytest.mark.parametrize(
    ("stage", "overlap", "expected"),
    [
        # Flat fp32 gradients, joined.
        (0, False, N * 4),
        (1, True, N * 4),
        # Buckets of bf16 gradients; one flattened, and converted to fp32.
        (2, False, 100 * 2 + 100 * 2 + 100 * 4),
        (2, True, 2 * 100 * 2 + 100 * 2 + 100 * 4),
        # One fp32 bucket; bf16 gradients converted, and flattened; all weights gathered.
        (3, True, 100 * 4 + 100 * 4 + 100 * 4 + N * 2),
    ],
)
def test_buffers_of_zero_by_hand(stage: int, overlap: bool, expected: int) -> None:
    engine = DeepSpeedEngine(kind="deepspeed", zero=stage, bucket_elements=100, overlap_comm=overlap)

    states = model_states(N, engine=engine, precision=BF16, dp_size=D, pp_size=1, layer_numel=50)

    assert states.buffers == expected


def test_buckets_of_zero_1_and_fp32_by_hand() -> None:
    engine = DeepSpeedEngine(kind="deepspeed", zero=1, bucket_elements=100, overlap_comm=True)

    assert model_states(N, engine=engine, precision=FP32, dp_size=D, pp_size=1).buffers == 2 * 100 * 4 + 100 * 4
    assert model_states(N, engine=engine, precision=FP32, dp_size=1, pp_size=1).buffers == 2 * 100 * 4


def test_a_bucket_is_allocated_whole_and_filled_by_what_trains() -> None:
    engine = DeepSpeedEngine(kind="deepspeed", zero=1)  # of 500 million elements

    cuda, cpu = (
        model_states(N, engine=engine, precision=FP32, dp_size=D, pp_size=1, untouched_free=lazy).buffers
        for lazy in (False, True)
    )

    assert cuda == 500_000_000 * 4 + N * 4
    assert cpu == N * 4 + N * 4
    frozen = model_states(N, engine=engine, precision=FP32, dp_size=D, pp_size=1, trainable=False)
    assert (frozen.weights, frozen.buffers, frozen.gradients) == (4 * N, 0, 0)


def test_zero_3_keeps_gathered_what_is_used_again_soon() -> None:
    from llama_scale.plan.zero_buffers import PREFETCH_ELEMENTS, gathered_elements

    assert gathered_elements(held=1000, layer=10, whole=50) == 1000
    assert gathered_elements(held=8 * 10**9, layer=10, whole=50) == 10**9 // 2 + PREFETCH_ELEMENTS + 60


def test_shares_round_up() -> None:
    states = model_states(10, engine=MegatronEngine(kind="megatron"), precision=BF16, dp_size=4, pp_size=1)

    assert states.moments == 8 * 3


def _plan(recompute: dict[str, Any], **changes: Any) -> RunPlan:
    return make_plan(run_spec(recompute=recompute, **changes))


_MODES: list[dict[str, Any]] = [
    {"kind": "none"},
    {"kind": "selective"},
    {"kind": "full", "method": "uniform", "layers": 1},
]
_layouts = st.sampled_from([(1, 1, 1), (2, 1, 1), (1, 2, 1), (2, 2, 2), (1, 4, 2), (1, 8, 1)])


@given(_layouts, st.integers(1, 4), st.sampled_from([1, 2]), st.booleans())
def test_more_recompute_never_needs_more(layout: tuple[int, int, int], micro: int, groups: int, bf16: bool) -> None:
    tp, pp, vp = layout
    changes = {
        "tp": tp,
        "pp": pp,
        "micro": micro,
        "accumulation": groups * pp,
        "parallel": {"virtual_stages": vp, "sequence": tp > 1},
        "precision": {"compute": "bf16" if bf16 else "fp32"},
    }
    none, selective, full = (_plan(mode, **changes) for mode in _MODES)

    for a, b, c in zip(none.memory, selective.memory, full.memory, strict=True):
        assert a.total >= b.total >= c.total
    blocks = [_plan({"kind": "full", "method": "block", "layers": n}, **changes) for n in range(1, 8 // (pp * vp) + 1)]
    for stage in range(pp):
        totals = [none.memory[stage].total, *(plan.memory[stage].total for plan in blocks)]
        assert totals == sorted(totals, reverse=True)


@given(_layouts, st.sampled_from(_MODES), st.integers(1, 4))
def test_a_larger_micro_batch_never_needs_less(layout: tuple[int, int, int], mode: dict[str, Any], micro: int) -> None:
    tp, pp, vp = layout
    changes: dict[str, Any] = {"tp": tp, "pp": pp, "accumulation": pp, "parallel": {"virtual_stages": vp}}

    small, large = (_plan(mode, micro=n, **changes) for n in (micro, micro + 1))

    for a, b in zip(small.memory, large.memory, strict=True):
        assert a.total < b.total


def test_stage_parts_sum_to_the_total() -> None:
    for memory in _plan({"kind": "none"}, pp=2).memory:
        states = memory.states
        parts = (states.weights, states.gradients, states.masters, states.moments, states.buffers)
        assert memory.total == sum(parts) + memory.activations + memory.logits


def test_only_the_last_stage_holds_logits() -> None:
    logits = [memory.logits > 0 for memory in _plan({"kind": "none"}, pp=4).memory]

    assert logits == [False, False, False, True]


def test_layer_activations_by_hand() -> None:
    # One layer, s=64, b=1, bf16: 4 residual tensors of 32; q and the output twice, 48 each; k and v, 24 each;
    # SwiGLU 3 x 48; log-sum-exp 4 heads x fp32; the final norm's input.
    plan = _plan({"kind": "none"}, model={"num_layers": 1}, accumulation=1)

    assert plan.memory[0].activations == 64 * (2 * (4 * 32 + 3 * 48 + 2 * 24 + 3 * 48) + 4 * 4 + 2 * 32)


def test_sequence_parallelism_divides_the_residual_stream() -> None:
    with_sp = _plan({"kind": "none"}, tp=2, parallel={"sequence": True}).memory[0].activations
    without = _plan({"kind": "none"}, tp=2).memory[0].activations

    assert without - with_sp == 64 * 2 * 32 * (4 * 8 + 1) // 2
