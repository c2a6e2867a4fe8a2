"""Drawings of a plan and of a search."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

from llama_scale.charts.axes import gibibytes, make_axis, number, seconds
from llama_scale.charts.bars import Bar, memory_bars, stacked_bars
from llama_scale.charts.lines import nothing
from llama_scale.charts.scene import Dot, Label, Line, Scene, Shape
from llama_scale.plan.memory import StageMemory
from llama_scale.plan.run_plan import RunPlan
from llama_scale.plan.step_time import StepTime

_MOST_DOTS = 3000


def memory_chart(plan: RunPlan, *, capacity: float | None = None) -> Scene:
    """Draw the tensors of one rank of each stage, by part; the bytes of a device as a line where they are known."""
    bars = [Bar(name=f"stage {memory.pp_rank}", parts=memory_parts(memory)) for memory in plan.memory]
    return memory_bars(bars, title="Memory of one rank, by stage", capacity=capacity)


def memory_parts(memory: StageMemory) -> dict[str, float]:
    """Return the bytes of a stage's rank by part."""
    states = memory.states
    return {
        "weights": states.weights,
        "gradients": states.gradients,
        "optimizer": states.masters + states.moments,
        "buffers": states.buffers,
        "activations": memory.activations,
        "logits": memory.logits,
    }


def step_parts(step: StepTime) -> dict[str, float]:
    """Return the seconds of a predicted step by part, without parts that take none."""
    return {part: size for part, size in asdict(step).items() if size > 0}


def step_chart(bars: Sequence[tuple[str, StepTime]]) -> Scene:
    """Draw predicted steps by part."""
    made = [Bar(name=name, parts=step_parts(step)) for name, step in bars]
    return stacked_bars(made, title="Predicted step time by part", word=seconds)


@dataclass(frozen=True, slots=True, kw_only=True)
class LayoutPoint:
    """One layout of a search.

    Args:
        name: The layout in a few words.
        step: Its predicted step by part.
        tokens_per_s: Predicted speed of the run.
        memory: Bytes of its fullest rank.
        fits: The layout fits its devices.
        reason: Why it is not the best.
    """

    name: str
    step: StepTime
    tokens_per_s: float
    memory: float
    fits: bool
    reason: str


def ranking_chart(points: Sequence[LayoutPoint]) -> Scene:
    """Draw the step time of the first layouts by part, with the reason why each loses."""
    bars = [
        Bar(
            name=f"{rank}. {point.name}",
            parts=step_parts(point.step),
            note=f"{number(point.tokens_per_s)} tokens/s; {point.reason or 'best'}",
            faint=not point.fits,
        )
        for rank, point in enumerate(points, start=1)
    ]
    return stacked_bars(bars, title="Step time of the best layouts, by part", word=seconds, width=960)


def cost_chart(points: Sequence[LayoutPoint], *, capacity: float) -> Scene:
    """Draw every layout's memory and step time; the best is named, those beyond the device's memory are grey.

    Args:
        points: The layouts, best first.
        capacity: Bytes of a device.
    """
    title = "Cost of each layout"
    if not points:
        return nothing(title, width=960)
    shown = _thinned(points)
    width, height, left, top = 960.0, 380.0, 70.0, 44.0
    fastest = min(point.step.total for point in points)
    # A few layouts are a hundred times slower than the best: they would flatten what matters.
    slowest = min(max(point.step.total for point in points), 8 * fastest)
    most = min(max([point.memory for point in points] + [capacity]), 3 * capacity)
    x_axis = make_axis(0.0, most / (1 << 30), start=left, end=width - 20, count=6, zero=True)
    y_axis = make_axis(0.0, slowest, start=height - 46, end=top, zero=True)
    shapes: list[Shape] = []
    for tick in y_axis.ticks:
        y = y_axis.place(tick)
        shapes.append(Line(points=((left, y), (width - 20, y)), stroke="grid"))
        shapes.append(Label(x=left - 8, y=y + 4, text=seconds(tick), anchor="end", size=11, fill="muted"))
    for tick in x_axis.ticks:
        x = x_axis.place(tick)
        shapes.append(Label(x=x, y=height - 28, text=number(tick), anchor="middle", size=11, fill="muted"))
    middle = (left + width) / 2
    shapes.append(Label(x=middle, y=height - 8, text="GiB of the fullest rank", anchor="middle", size=11, fill="muted"))
    shapes.append(Label(x=12, y=30, text="step time (dots at the edge lie beyond it)", size=11, fill="muted"))
    edge = x_axis.place(capacity / (1 << 30))
    shapes.append(Line(points=((edge, top), (edge, height - 46)), stroke="warning", width=2, dashed=True))
    shapes.append(Label(x=edge - 6, y=top + 10, text="device", anchor="end", size=11, fill="warning"))
    shapes += _dots(shown, place=lambda p: (x_axis.place(p.memory / (1 << 30)), y_axis.place(p.step.total)))
    fitting = sum(point.fits for point in points)
    text = f"{fitting} of {len(points)} layouts fit; the fastest step takes {seconds(fastest)}; best: {points[0].name}."
    return Scene(title=title, description=text, width=width, height=height, shapes=tuple(shapes))


def _dots(points: Sequence[LayoutPoint], *, place: Callable[[LayoutPoint], tuple[float, float]]) -> list[Shape]:
    shapes: list[Shape] = []
    for point in reversed(points[1:]):
        x, y = place(point)
        tip = f"{point.name}: {seconds(point.step.total)}, {gibibytes(point.memory)}; {point.reason}"
        fill = "series-1" if point.fits else "series-8"
        shapes.append(Dot(x=x, y=y, radius=2.6, fill=fill, title=tip))
    x, y = place(points[0])
    shapes.append(Dot(x=x, y=y, radius=6, fill="series-2", title=f"best: {points[0].name}"))
    # The label lies where few dots are: below the fastest layouts.
    shapes.append(Label(x=x, y=y + 20, text=f"best: {points[0].name}", anchor="start" if x < 560 else "end", bold=True))
    return shapes


def _thinned(points: Sequence[LayoutPoint]) -> Sequence[LayoutPoint]:
    """Return the points, or evenly chosen ones of very many, the best always."""
    step = -(-len(points) // _MOST_DOTS)
    return points[::step]
