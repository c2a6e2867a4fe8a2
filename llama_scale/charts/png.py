"""Scenes as PNG, through Pillow (the extra ``plot``)."""

from __future__ import annotations

import io
import math
from typing import TYPE_CHECKING, Any

from llama_scale.charts.palette import LIGHT
from llama_scale.charts.scene import Box, Dot, Label, Line, Scene
from llama_scale.errors import ReportError

if TYPE_CHECKING:
    from collections.abc import Iterator

_SCALE = 2
_LARGEST = 16_000
_DASH, _GAP = 5.0, 4.0
_ANCHORS = {"start": "ls", "middle": "ms", "end": "rs"}


def to_png(scene: Scene) -> bytes:
    """Return the drawing as PNG, two pixels for each unit.

    Raises:
        ReportError: Pillow is not installed.
    """
    try:
        from PIL import Image, ImageDraw, ImageFont  # lazy: SVG needs no package
    except ImportError:
        raise ReportError(
            "a PNG needs the package Pillow: pip install 'llama-scale[plot]', or name a file that ends in .svg"
        ) from None
    scale = min(_SCALE, _LARGEST / max(scene.width, scene.height))
    size = (math.ceil(scene.width * scale), math.ceil(scene.height * scale))
    image = Image.new("RGB", size, LIGHT["surface"])
    draw = ImageDraw.Draw(image)
    fonts: dict[float, Any] = {}
    for shape in scene.shapes:
        if isinstance(shape, Box):
            corner = (shape.x + shape.width, shape.y + shape.height)
            pixels = [round(v * scale) for v in (shape.x, shape.y, *corner)]
            draw.rectangle(
                (*pixels[:2], max(pixels[0], pixels[2] - 1), max(pixels[1], pixels[3] - 1)), LIGHT[shape.fill]
            )
        elif isinstance(shape, Dot):
            draw.circle((shape.x * scale, shape.y * scale), shape.radius * scale, LIGHT[shape.fill])
        elif isinstance(shape, Line):
            for piece in _pieces(shape):
                points = [(x * scale, y * scale) for x, y in piece]
                draw.line(points, LIGHT[shape.stroke], width=max(1, round(shape.width * scale)), joint="curve")
        else:
            font = fonts.setdefault(shape.size, None) or ImageFont.load_default(shape.size * scale)
            fonts[shape.size] = font
            _write(draw, shape, font=font, scale=scale)
    file = io.BytesIO()
    image.save(file, "PNG", optimize=True)
    return file.getvalue()


def _write(draw: Any, label: Label, *, font: Any, scale: float) -> None:
    # Pillow's own font lacks some signs; a missing one would be drawn as a box.
    text = label.text.replace("…", "...").encode("latin-1", "replace").decode("latin-1")
    place = (label.x * scale, label.y * scale)
    heavier = round(0.4 * scale) if label.bold else 0
    draw.text(place, text, LIGHT[label.fill], font, _ANCHORS[label.anchor], stroke_width=heavier)


def _pieces(line: Line) -> Iterator[tuple[tuple[float, float], ...]]:
    """Yield a line's dashes; the whole line if it has none."""
    if not line.dashed:
        if len(line.points) > 1:
            yield line.points
        return
    for (x0, y0), (x1, y1) in zip(line.points, line.points[1:], strict=False):
        length = math.hypot(x1 - x0, y1 - y0)
        at = 0.0
        while at < length:
            a, b = at / length, min(1.0, (at + _DASH) / length)
            yield ((x0 + a * (x1 - x0), y0 + a * (y1 - y0)), (x0 + b * (x1 - x0), y0 + b * (y1 - y0)))
            at += _DASH + _GAP
