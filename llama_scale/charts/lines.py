"""Curves over steps: one line a series, with legend, ticks and gaps where a value is missing."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from llama_scale.charts.axes import Axis, make_axis, number
from llama_scale.charts.palette import series_role
from llama_scale.charts.scene import Box, Dot, Label, Line, Scene, Shape, shorten, text_width

_LEFT, _RIGHT, _BOTTOM, _ROW = 64.0, 16.0, 40.0, 20.0
_MARKED = 40
"""Up to so many points each gets a dot."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """One curve.

    Args:
        name: For the legend.
        points: (x, y); a y that is not finite leaves a gap.
        colour: Number of its colour.
        dashed: Broken line, for predictions and limits.
        marked: A dot at each point, for values measured now and then.
    """

    name: str
    points: tuple[tuple[float, float], ...]
    colour: int
    dashed: bool = False
    marked: bool = False


def line_chart(
    series: Sequence[Series],
    *,
    title: str,
    x_label: str,
    y_label: str,
    zero: bool = False,
    width: float = 720.0,
    height: float = 300.0,
    word: Callable[[float], str] = number,
) -> Scene:
    """Draw curves.

    Args:
        series: The curves; those without a finite point are left out.
        title: What they show.
        x_label: What the horizontal axis is.
        y_label: What the vertical axis is, with its unit.
        zero: The vertical axis begins at zero.
        width: Of the drawing.
        height: Of the drawing without its legend.
        word: Words a value of the vertical axis.
    """
    shown = [one for one in series if any(math.isfinite(y) for _, y in one.points)]
    if not shown:
        return nothing(title, width=width)
    legend, top = _legend(shown, width=width)
    finite = [(x, y) for one in shown for x, y in one.points if math.isfinite(y)]
    top += 22
    x_axis = make_axis(*_span(x for x, _ in finite), start=_LEFT, end=width - _RIGHT, count=6)
    y_axis = make_axis(*_span(y for _, y in finite), start=top + height - _BOTTOM, end=top, zero=zero)
    shapes: list[Shape] = [*legend, Label(x=12, y=top - 9, text=y_label, size=11, fill="muted")]
    shapes += _frame(x_axis, y_axis, x_label=x_label, word=word, width=width, height=top + height)
    for one in shown:
        shapes += _curve(one, x_axis, y_axis, word=word)
    return Scene(
        title=title,
        description=_describe(shown, y_label, word=word),
        width=width,
        height=top + height,
        shapes=tuple(shapes),
    )


def nothing(title: str, *, width: float = 720.0, why: str = "Nothing is recorded.") -> Scene:
    """Return a drawing that says that there is nothing to draw."""
    shapes = (Label(x=12, y=24, text=why, fill="muted"),)
    return Scene(title=title, description=why, width=width, height=36, shapes=shapes)


def _span(values: Iterator[float] | Sequence[float]) -> tuple[float, float]:
    known = list(values)
    return min(known), max(known)


def _legend(series: Sequence[Series], *, width: float) -> tuple[list[Shape], float]:
    """Return the legend and its height."""
    shapes: list[Shape] = []
    x, y = 12.0, 14.0
    for one in series:
        name = shorten(one.name, width=width - 60, size=12)
        room = 30 + text_width(name, size=12) + 16
        if x > 12 and x + room > width:
            x, y = 12.0, y + _ROW
        role = series_role(one.colour)
        shapes.append(Line(points=((x, y - 4), (x + 22, y - 4)), stroke=role, width=2.5, dashed=one.dashed))
        shapes.append(Label(x=x + 28, y=y, text=name))
        x += room
    return shapes, y + 8


def _frame(
    x_axis: Axis, y_axis: Axis, *, x_label: str, word: Callable[[float], str], width: float, height: float
) -> list[Shape]:
    shapes: list[Shape] = []
    for tick in y_axis.ticks:
        y = y_axis.place(tick)
        shapes.append(Line(points=((_LEFT, y), (width - _RIGHT, y)), stroke="grid"))
        shapes.append(Label(x=_LEFT - 8, y=y + 4, text=word(tick), anchor="end", size=11, fill="muted"))
    for tick in x_axis.ticks:
        text, x = number(tick), x_axis.place(tick)
        shapes.append(Label(x=x, y=y_axis.start + 17, text=text, anchor="middle", size=11, fill="muted"))
    middle = (_LEFT + width - _RIGHT) / 2
    shapes.append(Label(x=middle, y=height - 6, text=x_label, anchor="middle", size=11, fill="muted"))
    return shapes


def _curve(one: Series, x_axis: Axis, y_axis: Axis, *, word: Callable[[float], str]) -> list[Shape]:
    role = series_role(one.colour)
    shapes: list[Shape] = []
    for run in _runs(one.points):
        places = tuple((x_axis.place(x), y_axis.place(y)) for x, y in run)
        if len(run) > 1:
            shapes.append(Line(points=places, stroke=role, width=1.8, dashed=one.dashed, title=one.name))
        if len(run) == 1 or one.marked or (len(one.points) <= _MARKED and not one.dashed):
            shapes += [
                Dot(x=px, y=py, radius=3, fill=role, title=f"{one.name}: {word(y)} at {number(x)}")
                for (px, py), (x, y) in zip(places, run, strict=True)
            ]
    return shapes


def _runs(points: Sequence[tuple[float, float]]) -> Iterator[list[tuple[float, float]]]:
    """Yield the points between gaps."""
    run: list[tuple[float, float]] = []
    for point in points:
        if math.isfinite(point[1]):
            run.append(point)
        elif run:
            yield run
            run = []
    if run:
        yield run


def _describe(series: Sequence[Series], y_label: str, *, word: Callable[[float], str]) -> str:
    parts = []
    for one in series:
        known = [y for _, y in one.points if math.isfinite(y)]
        parts.append(f"{one.name} from {word(known[0])} to {word(known[-1])}")
    return f"{y_label}: {'; '.join(parts)}."


def swatch(x: float, y: float, *, role: str) -> Box:
    """Return the square that stands beside a name in a legend."""
    return Box(x=x, y=y, width=12, height=12, fill=role)
