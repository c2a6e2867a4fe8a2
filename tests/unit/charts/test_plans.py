from __future__ import annotations

import itertools
from dataclasses import fields

import pytest

from llama_scale.charts.plans import LayoutPoint, cost_chart, memory_chart, memory_parts, ranking_chart
from llama_scale.charts.scene import Box, Dot, Label, Scene
from llama_scale.charts.timeline import pipeline_timeline
from llama_scale.plan.run_plan import make_plan
from llama_scale.plan.step_time import StepTime
from tests.unit.plan.specs import run_spec

_PARTS = [field.name for field in fields(StepTime)]


def step(seconds: float) -> StepTime:
    return StepTime(**(dict.fromkeys(_PARTS, 0.0) | {"gemm": seconds}))


def point(name: str, *, seconds: float, memory: float, fits: bool = True) -> LayoutPoint:
    return LayoutPoint(name=name, step=step(seconds), tokens_per_s=1 / seconds, memory=memory, fits=fits, reason="r")


def passes(scene: Scene) -> list[Box]:
    return [shape for shape in scene.shapes if isinstance(shape, Box) and "pass of" in shape.title]


@pytest.mark.parametrize(("pp", "vp", "m"), [(1, 1, 3), (2, 1, 4), (4, 1, 8), (2, 2, 4), (4, 2, 8)])
def test_timeline_has_each_pass_once_and_none_overlap(pp: int, vp: int, m: int) -> None:
    plan = make_plan(run_spec(pp=pp, accumulation=m, parallel={"virtual_stages": vp}))

    boxes = passes(pipeline_timeline(plan))

    assert len(boxes) == len({box.title for box in boxes}) == 2 * pp * vp * m
    by_stage: dict[float, list[Box]] = {}
    for box in boxes:
        by_stage.setdefault(box.y, []).append(box)
    assert len(by_stage) == pp
    for row in by_stage.values():
        row.sort(key=lambda box: box.x)
        assert all(a.x + a.width <= b.x + 1e-6 for a, b in itertools.pairwise(row))


def test_recomputation_makes_backward_passes_longer() -> None:
    plan = make_plan(run_spec(pp=2, accumulation=2))

    def ratio(recomputes: bool) -> float:
        boxes = passes(pipeline_timeline(plan, recomputes=recomputes))
        forward, backward = (next(b.width for b in boxes if kind in b.title) for kind in ("forward", "backward"))
        return (backward + 0.6) / (forward + 0.6)

    assert ratio(False) == pytest.approx(2.0)
    assert ratio(True) == pytest.approx(3.0)


@pytest.mark.parametrize("vp", [1, 2])
def test_very_long_steps_are_drawn_in_part_and_say_so(vp: int) -> None:
    plan = make_plan(run_spec(pp=4, accumulation=4096, parallel={"virtual_stages": vp}))

    scene = pipeline_timeline(plan)

    assert len(passes(scene)) <= 3000
    drawn = len(passes(scene)) // (2 * 4 * vp)
    assert drawn % 4 == 0 or vp == 1
    assert any(isinstance(s, Label) and f"{drawn} of 4096 micro-batches" in s.text for s in scene.shapes)


def test_memory_parts_are_all_of_it() -> None:
    plan = make_plan(run_spec(dp=2, pp=2))

    for memory in plan.memory:
        assert sum(memory_parts(memory).values()) == memory.total
    assert "stage 0" in memory_chart(plan, capacity=1e9).description


def test_every_layout_is_a_dot_and_the_best_is_named() -> None:
    points = [point(f"l{n}", seconds=1.0 + n, memory=1e9 * (n + 1), fits=n < 3) for n in range(5)]

    scene = cost_chart(points, capacity=3.5e9)

    dots = [shape for shape in scene.shapes if isinstance(shape, Dot)]
    assert len(dots) == 5
    assert sum(dot.fill == "series-8" for dot in dots) == 2
    assert any(isinstance(s, Label) and s.text == "best: l0" for s in scene.shapes)
    assert "3 of 5 layouts fit" in scene.description


def test_layouts_that_do_not_fit_are_faint_in_the_ranking() -> None:
    scene = ranking_chart([point("a", seconds=1, memory=1), point("b", seconds=2, memory=1, fits=False)])

    fills = [shape.fill for shape in scene.shapes if isinstance(shape, Box) and shape.title]
    assert fills == ["series-1", "grid"]


def test_no_layouts_at_all_is_said() -> None:
    assert cost_chart([], capacity=1.0).description == "Nothing is recorded."
