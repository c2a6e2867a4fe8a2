"""Scenes as SVG: a file of its own, or a part of a page whose style sheet sets the colours."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape

from llama_scale.charts.palette import LIGHT, ROLES
from llama_scale.charts.scene import Box, Dot, Label, Line, Scene, Shape

FONT = "system-ui, 'Segoe UI', 'DejaVu Sans', Arial, sans-serif"
_PAGE_COLOURS = {role: f"var(--{role})" for role in ROLES}


def to_svg_file(scene: Scene) -> str:
    """Return a whole SVG document on white ground; its colours are plain, so that any program shows them."""
    ground = f'<rect width="100%" height="100%" fill="{LIGHT["surface"]}"/>'
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + _svg(scene, colours=LIGHT, ground=ground, key="figure") + "\n"


def to_svg_element(scene: Scene, *, key: str) -> str:
    """Return an ``svg`` element for an HTML page that defines a CSS variable for each role.

    Args:
        scene: The drawing.
        key: Makes the ids of its title and description unique in the page.
    """
    return _svg(scene, colours=_PAGE_COLOURS, ground="", key=key)


def _svg(scene: Scene, *, colours: Mapping[str, str], ground: str, key: str) -> str:
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_n(scene.width)} {_n(scene.height)}" '
        f'width="{_n(scene.width)}" height="{_n(scene.height)}" role="img" '
        f'aria-labelledby="{key}-title {key}-text" font-family="{FONT}">'
        f'<title id="{key}-title">{_text(scene.title)}</title><desc id="{key}-text">{_text(scene.description)}</desc>'
    )
    return head + ground + "".join(_shape(shape, colours) for shape in scene.shapes) + "</svg>"


def _shape(shape: Shape, colours: Mapping[str, str]) -> str:
    if isinstance(shape, Label):
        weight = ' font-weight="600"' if shape.bold else ""
        anchor = "" if shape.anchor == "start" else f' text-anchor="{shape.anchor}"'
        return (
            f'<text x="{_n(shape.x)}" y="{_n(shape.y)}" font-size="{_n(shape.size)}"{anchor}{weight} '
            f'fill="{colours[shape.fill]}">{_text(shape.text)}</text>'
        )
    if isinstance(shape, Box):
        tag = (
            f'rect x="{_n(shape.x)}" y="{_n(shape.y)}" width="{_n(shape.width)}" height="{_n(shape.height)}" '
            f'fill="{colours[shape.fill]}"'
        )
        return _closed("rect", tag, shape.title)
    if isinstance(shape, Dot):
        tag = f'circle cx="{_n(shape.x)}" cy="{_n(shape.y)}" r="{_n(shape.radius)}" fill="{colours[shape.fill]}"'
        return _closed("circle", tag, shape.title)
    assert isinstance(shape, Line)
    points = " ".join(f"{_n(x)},{_n(y)}" for x, y in shape.points)
    dashes = ' stroke-dasharray="5 4"' if shape.dashed else ""
    tag = (
        f'polyline points="{points}" fill="none" stroke="{colours[shape.stroke]}" '
        f'stroke-width="{_n(shape.width)}" stroke-linejoin="round"{dashes}'
    )
    return _closed("polyline", tag, shape.title)


def _closed(name: str, tag: str, title: str) -> str:
    return f"<{tag}><title>{_text(title)}</title></{name}>" if title else f"<{tag}/>"


def _text(text: str) -> str:
    # XML has no way to write control characters.
    return escape("".join(c if c.isprintable() else " " for c in text))


def _n(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".")
