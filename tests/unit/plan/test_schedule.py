from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama_scale.plan.schedule import (
    Op,
    Schedule,
    bubble_fraction,
    make_schedule,
    pass_times,
    peak_held,
    simulate,
    simulated_bubble,
    stage_order,
    steady_order,
)
from llama_scale.plan.stages import make_stages
from llama_scale.plan.workload import Frozen


def _show(order: tuple[Op, ...]) -> str:
    return " ".join(f"{'B' if op.backward else 'F'}{op.micro_batch}.{op.virtual_rank}" for op in order)


def test_1f1b_order_of_the_first_stage() -> None:
    order = stage_order(pp_rank=0, pp_size=3, micro_batches=4)

    assert _show(order) == "F0.0 F1.0 F2.0 B0.0 F3.0 B1.0 B2.0 B3.0"


def test_interleaved_order_visits_chunks_in_groups() -> None:
    order = stage_order(pp_rank=1, pp_size=2, micro_batches=2, vp_size=2)

    assert _show(order) == "F0.0 F1.0 F0.1 B0.1 F1.1 B1.1 B0.0 B1.0"


pipelines = st.tuples(st.integers(1, 6), st.integers(1, 4), st.integers(1, 4))


@given(pipelines, st.floats(0.5, 3.0))
def test_simulated_timeline_has_the_papers_bubble(pipeline: tuple[int, int, int], ratio: float) -> None:
    pp_size, vp_size, groups = pipeline
    vp_size = 1 if pp_size == 1 else vp_size
    micro_batches = groups * pp_size

    bubble = simulated_bubble(
        micro_batches=micro_batches,
        forward_time=[[1.0] * vp_size] * pp_size,
        backward_time=[[ratio] * vp_size] * pp_size,
    )

    expected = bubble_fraction(pp_size=pp_size, micro_batches=micro_batches, vp_size=vp_size)
    assert bubble == pytest.approx(expected, abs=1e-9)


@given(st.integers(1, 6), st.integers(1, 12))
def test_1f1b_bubble_holds_for_fewer_micro_batches_than_stages(pp_size: int, micro_batches: int) -> None:
    bubble = simulated_bubble(micro_batches=micro_batches, forward_time=[[1.0]] * pp_size)

    assert bubble == pytest.approx((pp_size - 1) / micro_batches, abs=1e-9)


@given(pipelines, st.data())
def test_timeline_respects_dependencies_and_runs_everything_once(
    pipeline: tuple[int, int, int], data: st.DataObject
) -> None:
    pp_size, vp_size, groups = pipeline
    vp_size = 1 if pp_size == 1 else vp_size
    micro_batches = groups * pp_size
    times = data.draw(
        st.lists(st.lists(st.floats(0.1, 5.0), min_size=vp_size, max_size=vp_size), min_size=pp_size, max_size=pp_size)
    )

    lines = simulate(micro_batches=micro_batches, forward_time=times)

    spans = {
        (timed.op.backward, timed.op.virtual_rank * pp_size + p, timed.op.micro_batch): timed
        for p, line in enumerate(lines)
        for timed in line
    }
    assert len(spans) == 2 * micro_batches * vp_size * pp_size
    last = pp_size * vp_size - 1
    for (backward, virtual, micro_batch), timed in spans.items():
        if not backward and virtual:
            assert timed.start >= spans[(False, virtual - 1, micro_batch)].end
        if backward:
            before = (True, virtual + 1, micro_batch) if virtual < last else (False, virtual, micro_batch)
            assert timed.start >= spans[before].end
    for line in lines:
        assert all(a.end <= b.start for a, b in itertools.pairwise(line))


@given(pipelines, st.data())
def test_short_order_has_the_full_orders_peak(pipeline: tuple[int, int, int], data: st.DataObject) -> None:
    pp_size, vp_size, groups = pipeline
    vp_size = 1 if pp_size == 1 else vp_size
    cost = data.draw(st.lists(st.integers(1, 9), min_size=vp_size, max_size=vp_size))
    pp_rank = data.draw(st.integers(0, pp_size - 1))
    where = {"pp_rank": pp_rank, "pp_size": pp_size, "micro_batches": 3 * groups * pp_size, "vp_size": vp_size}

    assert peak_held(steady_order(**where), chunk_cost=cost) == peak_held(stage_order(**where), chunk_cost=cost)


def schedule(layers: list[list[int]], *, micro_batches: int) -> Schedule:
    forward = [[float(count) for count in stage] for stage in layers]
    backward = [[2.0 * count for count in stage] for stage in layers]
    return make_schedule(micro_batches=micro_batches, forward_time=forward, backward_time=backward)


def test_1f1b_holds_pp_minus_stage_micro_batches() -> None:
    assert schedule([[2]] * 4, micro_batches=8).in_flight == (4.0, 3.0, 2.0, 1.0)
    assert schedule([[2]] * 4, micro_batches=2).in_flight == (2.0, 2.0, 2.0, 1.0)


def test_interleaving_holds_the_papers_factor_more_on_the_first_stage() -> None:
    # Korthikanti et al. 2022, section 4.2.3: the first stage holds L (1 + (p - 1) / (p m)) layers, m chunks a stage.
    assert schedule([[1, 1, 1]] * 4, micro_batches=8).in_flight[0] == pytest.approx(4 * (1 + 3 / (4 * 3)))


def test_uneven_stages_wait_for_the_slowest() -> None:
    even = schedule([[3], [3]], micro_batches=4)
    uneven = schedule([[2], [4]], micro_batches=4)

    assert even.bubble_fraction == pytest.approx(1 / 4)
    # 4 micro-batches of 12 time units on stage 1, plus 2 + 4 for the first forward and last backward of stage 0.
    assert uneven.bubble_fraction == pytest.approx((4 * 12 + 6) / (4 * 9) - 1)
    assert uneven.idle_share == pytest.approx(uneven.bubble_fraction / (1 + uneven.bubble_fraction))


@pytest.mark.parametrize(
    ("layers", "kind"), [([[4]], "no-pipeline"), ([[2], [2]], "1f1b"), ([[1, 1], [1, 1]], "interleaved")]
)
def test_kind_names_the_schedule(layers: list[list[int]], kind: str) -> None:
    assert schedule(layers, micro_batches=4).kind == kind


def test_passes_of_a_frozen_base_by_hand() -> None:
    stages = make_stages(8, pp_size=2, vp_size=2)  # layers (0, 1), (4, 5) and (2, 3), (6, 7)

    assert pass_times(stages) == ([[2.0, 2.0]] * 2, [[4.0, 4.0]] * 2)
    assert pass_times(stages, recomputes=True)[1] == [[6.0, 6.0]] * 2
    # Three rows from layer 5 on, gradients of activations alone.
    forward, backward = pass_times(stages, frozen=Frozen(first_layer=5, copies=3))
    assert forward == [[2.0, 1 + 3.0], [2.0, 6.0]]
    assert backward == [[0.0, 3.0], [0.0, 6.0]]
