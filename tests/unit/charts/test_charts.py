from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama_scale.charts.axes import byte_unit, gibibytes, make_axis, number, round_step, seconds
from llama_scale.charts.bars import Bar, memory_bars, stacked_bars
from llama_scale.charts.lines import Series, line_chart
from llama_scale.charts.scene import Box, Dot, Label, Line, Scene

FINITE = st.floats(-1e12, 1e12, allow_nan=False)


def chart(points: list[tuple[float, float]], **options: bool) -> Scene:
    series = [Series(name="one", points=tuple(points), colour=0)]
    return line_chart(series, title="t", x_label="x", y_label="y", **options)  # type: ignore[arg-type]


def curves(scene: Scene) -> list[Line]:
    return [shape for shape in scene.shapes if isinstance(shape, Line) and shape.title]


@given(FINITE, FINITE, st.booleans())
def test_axis_covers_its_values_with_ascending_ticks(one: float, other: float, zero: bool) -> None:
    low, high = sorted((one, other))

    axis = make_axis(low, high, start=0.0, end=100.0, zero=zero)

    spread = axis.high - axis.low
    assert axis.low - 1e-6 * spread <= low <= high <= axis.high + 1e-6 * spread
    assert list(axis.ticks) == sorted(set(axis.ticks))
    assert 2 <= len(axis.ticks) <= 12
    assert 0.0 <= axis.place(low) <= axis.place(high) <= 100.0


@pytest.mark.parametrize(("step", "rounded"), [(0.3, 0.5), (1.0, 1.0), (1.2, 2.0), (2.1, 2.5), (6.0, 10.0), (60, 100)])
def test_steps_are_round(step: float, rounded: float) -> None:
    assert round_step(step) == pytest.approx(rounded)


def test_values_are_worded_in_the_unit_that_suits() -> None:
    assert [number(v) for v in (0, 0.025, 12_000, 3.2e6, 1e-6)] == ["0", "0.025", "12k", "3.2M", "1.0e-06"]
    assert [seconds(v) for v in (0, 2e-6, 0.0125, 3.2)] == ["0 s", "2 us", "12.5 ms", "3.2 s"]
    assert [gibibytes(v) for v in (0, 10, 2048, 3 << 30)] == ["0 B", "10 B", "2 KiB", "3 GiB"]
    assert byte_unit(5 << 20) == 1 << 20


@given(st.lists(st.tuples(st.floats(0, 1e6), st.floats(allow_nan=True, allow_infinity=True)), max_size=40))
def test_any_curve_is_drawn_within_its_frame(points: list[tuple[float, float]]) -> None:
    points = [(x, y if abs(y) < 1e15 else math.nan) for x, y in points]

    scene = chart(points)

    for shape in scene.shapes:
        places = shape.points if isinstance(shape, Line) else ((shape.x, shape.y),)
        for x, y in places:
            assert -1 <= x <= scene.width + 1
            assert -1 <= y <= scene.height + 1


def test_missing_values_leave_a_gap() -> None:
    scene = chart([(1, 1.0), (2, 2.0), (3, math.nan), (4, 1.5), (5, 1.0)])

    assert [len(line.points) for line in curves(scene)] == [2, 2]


def test_chart_without_a_number_says_so() -> None:
    scene = chart([(1, math.nan)])

    assert [shape.text for shape in scene.shapes if isinstance(shape, Label)] == ["Nothing is recorded."]


def test_single_point_is_a_dot() -> None:
    assert any(isinstance(shape, Dot) for shape in chart([(1, 3.0)]).shapes)


def test_parts_of_a_bar_lie_end_to_end_in_proportion() -> None:
    scene = stacked_bars([Bar(name="a", parts={"x": 1.0, "y": 3.0, "none": 0.0})], title="t", word=number)

    first, second = [shape for shape in scene.shapes if isinstance(shape, Box) and shape.title]
    assert second.x == pytest.approx(first.x + first.width)
    assert second.width == pytest.approx(3 * first.width)
    labels = {shape.text for shape in scene.shapes if isinstance(shape, Label)}
    assert {"x", "y"} <= labels
    assert "none" not in labels  # a part that nobody has is not in the legend


def test_limit_is_drawn_unless_it_is_far_beyond_the_bars() -> None:
    bar = Bar(name="a", parts={"weights": float(1 << 30)})

    def has_limit(capacity: float) -> bool:
        scene = memory_bars([bar], title="t", capacity=capacity)
        return any(isinstance(shape, Line) and shape.stroke == "warning" for shape in scene.shapes)

    assert has_limit(2.0 * (1 << 30))
    assert not has_limit(80.0 * (1 << 30))


def test_no_bars_at_all_is_said() -> None:
    assert stacked_bars([], title="t", word=number).description == "Nothing is recorded."
