"""A drawing as plain shapes, whatever it becomes: a file or a part of a page. In CSS pixels; y grows downwards."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

Anchor = Literal["start", "middle", "end"]

CHARACTER_WIDTH = 0.56
"""Mean width of a character over the font's size, for what must fit beside or inside something."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Box:
    """A filled rectangle.

    Args:
        x: Left edge.
        y: Upper edge.
        width: Width.
        height: Height.
        fill: Role of its colour (``palette.ROLES``).
        title: What a pointer on it shows.
    """

    x: float
    y: float
    width: float
    height: float
    fill: str
    title: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """A line through points.

    Args:
        points: (x, y) of each.
        stroke: Role of its colour.
        width: Its width.
        dashed: Broken, for limits and predictions.
        title: What a pointer on it shows.
    """

    points: tuple[tuple[float, float], ...]
    stroke: str
    width: float = 1.0
    dashed: bool = False
    title: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Dot:
    """A filled circle around (x, y).

    Args:
        x: Centre.
        y: Centre.
        radius: Radius.
        fill: Role of its colour.
        title: What a pointer on it shows.
    """

    x: float
    y: float
    radius: float
    fill: str
    title: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Label:
    """One line of text.

    Args:
        x: Where its anchor lies.
        y: Its base line.
        text: The text.
        anchor: Which end of the text lies at x.
        size: Size of the font.
        fill: Role of its colour.
        bold: Heavier.
    """

    x: float
    y: float
    text: str
    anchor: Anchor = "start"
    size: float = 12.0
    fill: str = "ink"
    bold: bool = False

    @property
    def width(self) -> float:
        """Estimated width."""
        return text_width(self.text, size=self.size)


Shape = Box | Line | Dot | Label


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """A drawing.

    Args:
        title: What it shows, in a few words.
        description: What a reader who cannot see it must know.
        width: Its width.
        height: Its height.
        shapes: In the order of painting.
    """

    title: str
    description: str
    width: float
    height: float
    shapes: tuple[Shape, ...]


def text_width(text: str, *, size: float) -> float:
    """Estimate the width of a text."""
    return CHARACTER_WIDTH * size * len(text)


def shorten(text: str, *, width: float, size: float) -> str:
    """Cut a text so that it fits, with an ellipsis where something is missing."""
    room = max(1, int(width / (CHARACTER_WIDTH * size)))
    return text if len(text) <= room else text[: max(1, room - 1)] + "…"


def stack(scenes: Sequence[Scene], *, title: str, gap: float = 28.0) -> Scene:
    """Put drawings below each other, each under its title."""
    heading = 30.0
    shapes: list[Shape] = []
    top = 0.0
    for scene in scenes:
        shapes.append(Label(x=12, y=top + 20, text=scene.title, size=15, bold=True))
        shapes += [moved(shape, dy=top + heading) for shape in scene.shapes]
        top += heading + scene.height + gap
    return Scene(
        title=title,
        description=" ".join(f"{scene.title}: {scene.description}" for scene in scenes),
        width=max(scene.width for scene in scenes),
        height=top - gap,
        shapes=tuple(shapes),
    )


def moved(shape: Shape, *, dy: float) -> Shape:
    """Return a shape further down."""
    if isinstance(shape, Line):
        return replace(shape, points=tuple((x, y + dy) for x, y in shape.points))
    return replace(shape, y=shape.y + dy)
