from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama_scale.spec.schedule import ConstantSchedule, CosineSchedule, Schedule, WsdSchedule
from llama_scale.train.schedule import learning_rate

COSINE = CosineSchedule(kind="cosine", warmup_steps=10, min_ratio=0.1)
WSD = WsdSchedule(kind="wsd", warmup_steps=10, decay_steps=20, min_ratio=0.2)
SCHEDULES: list[Schedule] = [
    ConstantSchedule(kind="constant", warmup_steps=10),
    COSINE,
    WSD,
    WsdSchedule(kind="wsd", warmup_steps=10, decay_steps=20, decay="sqrt", min_ratio=0.2),
]


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: s.kind)
def test_warm_up_rises_linearly_from_zero_to_the_peak(schedule: Schedule) -> None:
    rates = [learning_rate(schedule, step=step, steps=100, peak=2.0) for step in range(1, 11)]
    assert rates == pytest.approx([0.2 * step for step in range(1, 11)])


def test_constant_stays_at_the_peak_from_the_first_step() -> None:
    schedule = ConstantSchedule(kind="constant")
    assert {learning_rate(schedule, step=step, steps=5, peak=3e-4) for step in range(1, 6)} == {3e-4}


def test_cosine_is_halfway_in_the_middle_and_ends_at_its_minimum() -> None:
    assert learning_rate(COSINE, step=10, steps=110, peak=1.0) == 1.0
    assert learning_rate(COSINE, step=60, steps=110, peak=1.0) == pytest.approx(0.55)
    assert learning_rate(COSINE, step=35, steps=110, peak=1.0) == pytest.approx(
        0.1 + 0.9 * (1 + math.cos(math.pi / 4)) / 2
    )
    assert learning_rate(COSINE, step=110, steps=110, peak=1.0) == pytest.approx(0.1)


def test_wsd_is_stable_until_its_last_steps() -> None:
    rates = {step: learning_rate(WSD, step=step, steps=100, peak=1.0) for step in range(1, 101)}
    assert {rates[step] for step in range(10, 81)} == {1.0}
    assert rates[90] == pytest.approx(0.6)
    assert rates[100] == pytest.approx(0.2)


def test_wsd_with_square_root_decays_faster_at_first() -> None:
    schedule = WsdSchedule(kind="wsd", decay_steps=16, decay="sqrt")
    assert learning_rate(schedule, step=4, steps=16, peak=1.0) == pytest.approx(0.5)
    assert learning_rate(schedule, step=16, steps=16, peak=1.0) == pytest.approx(0.0)


@given(
    warmup=st.integers(0, 30), decay=st.integers(1, 60), steps=st.integers(1, 60), schedule=st.sampled_from(SCHEDULES)
)
def test_rate_is_never_negative_nor_over_the_peak(warmup: int, decay: int, steps: int, schedule: Schedule) -> None:
    changes = {"warmup_steps": warmup} | ({"decay_steps": decay} if isinstance(schedule, WsdSchedule) else {})
    schedule = schedule.model_copy(update=changes)
    rates = [learning_rate(schedule, step=step, steps=steps, peak=1.0) for step in range(1, steps + 1)]
    assert all(0.0 <= rate <= 1.0 for rate in rates)
    after = rates[warmup:]
    assert after == sorted(after, reverse=True)
