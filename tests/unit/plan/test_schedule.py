from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama_scale.plan.schedule import (
    Op,
    bubble_fraction,
    make_schedule,
    peak_held,
    simulate,
    simulated_bubble,
    stage_order,
    steady_order,
)


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
        micro_batches=micro_batches, forward_time=[[1.0] * vp_size] * pp_size, backward_ratio=ratio
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


def test_1f1b_holds_pp_minus_stage_micro_batches() -> None:
    assert make_schedule(micro_batches=8, chunk_layers=[[2]] * 4).in_flight == (4.0, 3.0, 2.0, 1.0)
    assert make_schedule(micro_batches=2, chunk_layers=[[2]] * 4).in_flight == (2.0, 2.0, 2.0, 1.0)


def test_interleaving_holds_the_papers_factor_more_on_the_first_stage() -> None:
    # Korthikanti et al. 2022, section 4.2.3: the first stage holds L (1 + (p - 1) / (p m)) layers, m chunks a stage.
    schedule = make_schedule(micro_batches=8, chunk_layers=[[1, 1, 1]] * 4)

    assert schedule.in_flight[0] == pytest.approx(4 * (1 + 3 / (4 * 3)))


def test_uneven_stages_wait_for_the_slowest() -> None:
    even = make_schedule(micro_batches=4, chunk_layers=[[3], [3]])
    uneven = make_schedule(micro_batches=4, chunk_layers=[[2], [4]])

    assert even.bubble_fraction == pytest.approx(1 / 4)
    # 4 micro-batches of 12 time units on stage 1, plus 2 + 4 for the first forward and last backward of stage 0.
    assert uneven.bubble_fraction == pytest.approx((4 * 12 + 6) / (4 * 9) - 1)
    assert uneven.idle_share == pytest.approx(uneven.bubble_fraction / (1 + uneven.bubble_fraction))


@pytest.mark.parametrize(
    ("layers", "kind"), [([[4]], "no-pipeline"), ([[2], [2]], "1f1b"), ([[1, 1], [1, 1]], "interleaved")]
)
def test_kind_names_the_schedule(layers: list[list[int]], kind: str) -> None:
    assert make_schedule(micro_batches=4, chunk_layers=layers).kind == kind
