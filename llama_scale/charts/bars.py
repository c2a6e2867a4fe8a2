"""Stacked bars: what a sum is made of, one row a stage, a run or a layout."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from llama_scale.charts.axes import byte_unit, gibibytes, make_axis
from llama_scale.charts.lines import nothing, swatch
from llama_scale.charts.palette import series_role
from llama_scale.charts.scene import Box, Label, Line, Scene, Shape, shorten, text_width

_FAR = 6.0
_ROW, _LEGEND_ROW, _BOTTOM, _GAP = 24.0, 20.0, 36.0, 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """One row.

    Args:
        name: Beside the bar.
        parts: Part -> its size, no less than zero.
        note: Behind the bar, instead of its sum.
        faint: Drawn without its colours: a layout that cannot run.
    """

    name: str
    parts: Mapping[str, float]
    note: str = ""
    faint: bool = False

    @property
    def total(self) -> float:
        """Length of the bar."""
        return sum(self.parts.values())


def stacked_bars(
    bars: Sequence[Bar],
    *,
    title: str,
    word: Callable[[float], str],
    limit: tuple[str, float] | None = None,
    unit: float = 1.0,
    width: float = 720.0,
) -> Scene:
    """Draw bars from parts.

    Args:
        bars: The rows, from top to bottom.
        title: What they show.
        word: Words a size.
        limit: Name and size of a line that no bar should cross; left out where it lies far beyond all bars.
        unit: Ticks are at round multiples of it.
        width: Of the drawing.
    """
    if not bars:
        return nothing(title, width=width)
    longest = max(bar.total for bar in bars)
    if limit is not None and limit[1] > _FAR * longest:
        limit = None
    names = [shorten(bar.name, width=width * 0.34, size=12) for bar in bars]
    notes = [bar.note or word(bar.total) for bar in bars]
    left = 12 + max(text_width(name, size=12) for name in names) + 10
    right = 16 + min(width * 0.35, max(text_width(note, size=11) for note in notes))
    parts = {part: index for index, part in enumerate(dict.fromkeys(p for bar in bars for p in bar.parts))}
    used = [part for part in parts if any(bar.parts.get(part, 0) > 0 for bar in bars)]
    legend, top = _legend(used, colours=parts, limit=limit, width=width)
    high = max(longest, limit[1] if limit else 0.0) / unit or 1.0
    axis = make_axis(0.0, high, start=left, end=width - right, count=4, zero=True)
    bottom = top + _ROW * len(bars)
    shapes: list[Shape] = list(legend)
    for tick in axis.ticks:
        shapes.append(Line(points=((axis.place(tick), top), (axis.place(tick), bottom)), stroke="grid"))
        shapes.append(
            Label(x=axis.place(tick), y=bottom + 16, text=word(tick * unit), anchor="middle", size=10, fill="muted")
        )
    for row, bar in enumerate(bars):
        y = top + _ROW * row
        shapes.append(Label(x=left - 10, y=y + 16, text=names[row], anchor="end"))
        at = 0.0
        for part, size in bar.parts.items():
            x, end = axis.place(at / unit), axis.place((at + size) / unit)
            at += size
            fill = "grid" if bar.faint else series_role(parts[part])
            if end > x:
                tip = f"{bar.name}, {part}: {word(size)}"
                shapes.append(Box(x=x, y=y + _GAP, width=end - x, height=_ROW - 2 * _GAP, fill=fill, title=tip))
        text = shorten(notes[row], width=right, size=11)
        shapes.append(Label(x=axis.place(at / unit) + 6, y=y + 16, text=text, size=11, fill="muted"))
    if limit:
        x = axis.place(limit[1] / unit)
        shapes.append(Line(points=((x, top - 2), (x, bottom)), stroke="warning", width=2, dashed=True, title=limit[0]))
    rows = "; ".join(f"{bar.name} {bar.note or word(bar.total)}" for bar in bars[:12])
    return Scene(title=title, description=f"{rows}.", width=width, height=bottom + _BOTTOM, shapes=tuple(shapes))


def memory_bars(bars: Sequence[Bar], *, title: str, capacity: float | None = None) -> Scene:
    """Draw bytes, against the bytes of a device where these are known."""
    unit = byte_unit(max((bar.total for bar in bars), default=0.0))
    limit = None if capacity is None else (f"device: {gibibytes(capacity)}", capacity)
    return stacked_bars(bars, title=title, word=gibibytes, limit=limit, unit=unit)


def _legend(
    parts: Sequence[str], *, colours: Mapping[str, int], limit: tuple[str, float] | None, width: float
) -> tuple[list[Shape], float]:
    shapes: list[Shape] = []
    x, y = 12.0, 14.0
    for name, role in [(part, series_role(colours[part])) for part in parts] + ([(limit[0], "")] if limit else []):
        room = 18 + text_width(name, size=12) + 16
        if x > 12 and x + room > width:
            x, y = 12.0, y + _LEGEND_ROW
        if role:
            shapes.append(swatch(x, y - 10, role=role))
        else:
            shapes.append(Line(points=((x + 6, y - 11), (x + 6, y + 3)), stroke="warning", width=2, dashed=True))
        shapes.append(Label(x=x + 18, y=y, text=name))
        x += room
    return shapes, y + 12
