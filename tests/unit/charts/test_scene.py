from __future__ import annotations

from xml.etree import ElementTree

import pytest

from llama_scale.charts.palette import DARK, LIGHT, ROLES, SERIES
from llama_scale.charts.png import to_png
from llama_scale.charts.scene import Box, Dot, Label, Line, Scene, shorten, stack, text_width
from llama_scale.charts.svg import to_svg_element, to_svg_file

SCENE = Scene(
    title="a <b> & \x07",
    description="d",
    width=100,
    height=50,
    shapes=(
        Box(x=1, y=2, width=30, height=10, fill="series-1", title="tip & 'quote'"),
        Line(points=((0, 0), (50, 40)), stroke="grid", dashed=True),
        Line(points=((0, 10), (50, 10)), stroke="ink", width=2),
        Dot(x=5, y=6, radius=2, fill="warning"),
        Label(x=50, y=40, text="text < … é", anchor="middle", bold=True),
    ),
)


def luminance(colour: str) -> float:
    parts = [int(colour[n : n + 2], 16) / 255 for n in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("colours", [LIGHT, DARK], ids=["light", "dark"])
def test_colours_stand_out_from_their_ground(colours: dict[str, str]) -> None:
    assert tuple(colours) == ROLES
    for role in ("ink", "muted", "warning"):
        assert contrast(colours[role], colours["surface"]) >= 4.5, role
    for role in SERIES:
        assert contrast(colours[role], colours["surface"]) >= 3.0, role
    assert len(set(colours.values())) == len(colours)


def test_svg_is_well_formed_and_escapes_what_it_shows() -> None:
    root = ElementTree.fromstring(to_svg_file(SCENE).encode())

    space = "{http://www.w3.org/2000/svg}"
    assert root.find(f"{space}title").text == "a <b> &  "  # type: ignore[union-attr]
    assert root.find(f"{space}rect/{space}title").text == "tip & 'quote'"  # type: ignore[union-attr]
    assert [text.text for text in root.iter(f"{space}text")] == ["text < … é"]


def test_element_takes_its_colours_from_the_page() -> None:
    text = to_svg_element(SCENE, key="k-1")

    assert 'fill="var(--series-1)"' in text
    assert 'aria-labelledby="k-1-title k-1-text"' in text
    assert not any(colour in text for colour in LIGHT.values())


def test_png_has_two_pixels_a_unit_and_the_colours() -> None:
    image_module = pytest.importorskip("PIL.Image")
    import io

    data = to_png(SCENE)

    image = image_module.open(io.BytesIO(data))
    assert image.format == "PNG"
    assert image.size == (200, 100)
    assert "#{:02x}{:02x}{:02x}".format(*image.getpixel((40, 16))) == LIGHT["series-1"]
    assert "#{:02x}{:02x}{:02x}".format(*image.getpixel((199, 99))) == LIGHT["surface"]


def test_stacked_scenes_lie_below_each_other() -> None:
    both = stack([SCENE, SCENE], title="two")

    boxes = [shape for shape in both.shapes if isinstance(shape, Box)]
    assert boxes[1].y - boxes[0].y > SCENE.height
    assert both.height >= 2 * SCENE.height
    assert all(isinstance(shape, Line) or shape.y <= both.height for shape in both.shapes)


def test_long_text_is_cut_to_its_room() -> None:
    assert shorten("short", width=200, size=12) == "short"
    cut = shorten("a very long name of a layout", width=60, size=12)
    assert cut.endswith("…")
    assert text_width(cut, size=12) <= 60
