"""The report and the drawings as a headless browser shows them."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.recorded_runs import record_run
from tests.unit.cli.calling import call

sync_api = pytest.importorskip("playwright.sync_api", reason="******** REPORT NOT LOOKED AT: no playwright ********")
_BROWSERS = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")


class BrowserMissing(UserWarning):
    """Say in pytest's summary that nobody looked at the report."""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    found = next((path for name in _BROWSERS if (path := shutil.which(name))), None)
    if found is None:
        message = f"REPORT NOT LOOKED AT: none of {', '.join(_BROWSERS)} is installed; .ci/run installs the first"
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.warn(message, BrowserMissing, stacklevel=1)
        pytest.skip(f"******** {message} ********")
    with sync_api.sync_playwright() as play:
        # Root may not use Chromium's sandbox; the pages are our own.
        opened = play.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    one = record_run(folder / "a", adapters=("math", "code"), failed=1)
    other = record_run(folder / "b", "parallel.tensor=1", "parallel.data=2", name="another-run-with-a-long-name")
    page = folder / "report.html"
    assert call("report", one.path, other.path, "--gpu", "h100", "--output", page) == 0
    return page


@pytest.fixture(params=["light", "dark"])
def page(browser: Any, report: Path, request: pytest.FixtureRequest) -> Iterator[Any]:
    """Open the report; anything that it asks for or complains about is a failure."""
    context = browser.new_context(color_scheme=request.param, viewport={"width": 1100, "height": 900})
    opened = context.new_page()
    trouble: list[str] = []
    opened.on("console", lambda message: trouble.append(message.text))
    opened.on("pageerror", lambda error: trouble.append(str(error)))
    opened.on("request", lambda asked: None if asked.url == report.as_uri() else trouble.append(asked.url))
    opened.goto(report.as_uri())
    yield opened
    assert trouble == []
    context.close()


_LUMINANCE = """() => {
  const [r, g, b] = getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number);
  return (r + g + b) / 765;
}"""
_OUTSIDE = """() => [...document.querySelectorAll('svg')].flatMap(svg => {
  const frame = svg.getBoundingClientRect();
  return [...svg.querySelectorAll('text, rect, circle, polyline')].filter(shape => {
    const box = shape.getBoundingClientRect();
    return box.left < frame.left - 1 || box.right > frame.right + 1
      || box.top < frame.top - 1 || box.bottom > frame.bottom + 1;
  }).map(shape => shape.textContent);
})"""
_OVERLAPS = """() => [...document.querySelectorAll('svg')].flatMap(svg => {
  const boxes = [...svg.querySelectorAll('text')].map(text => [text.textContent, text.getBoundingClientRect()]);
  return boxes.flatMap(([one, a], n) => boxes.slice(n + 1).filter(([, b]) =>
    a.left < b.right - 2 && b.left < a.right - 2 && a.top < b.bottom - 3 && b.top < a.bottom - 3
  ).map(([other]) => one + ' / ' + other));
})"""


def test_page_follows_the_readers_colours(page: Any, request: pytest.FixtureRequest) -> None:
    light = page.evaluate("matchMedia('(prefers-color-scheme: light)').matches")

    assert page.evaluate(_LUMINANCE) > 0.9 if light else page.evaluate(_LUMINANCE) < 0.2


def test_every_section_is_seen_and_reached(page: Any) -> None:
    for link in page.locator("nav a").all():
        link.click()
        heading = page.locator(f"{link.get_attribute('href')} h2")
        assert heading.is_visible()
    titles = page.locator("main h2").all_inner_texts()
    assert titles == [
        "Summary", "Loss", "Throughput", "Step time", "Memory by stage", "Pipeline timeline", "Adapters", "Tasks",
        "Attempts and restarts", "Spec",
    ]  # fmt: skip


def test_drawings_are_seen_whole_and_named(page: Any) -> None:
    drawings = page.get_by_role("img").all()

    assert len(drawings) >= 10
    for drawing in drawings:
        box = drawing.bounding_box()
        assert box["width"] > 300
        assert box["height"] > 20
        assert drawing.locator("title").first.text_content()
        assert drawing.locator("desc").text_content()
    assert page.evaluate(_OUTSIDE) == []
    assert page.evaluate(_OVERLAPS) == []


def test_nothing_is_wider_than_the_window(page: Any) -> None:
    for width in (1100, 380):
        page.set_viewport_size({"width": width, "height": 800})
        assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_numbers_behind_a_drawing_open_by_keyboard(page: Any) -> None:
    summary = page.locator("#memory details summary")
    table = page.locator("#memory table")
    assert not table.is_visible()

    summary.focus()
    page.keyboard.press("Enter")

    assert table.is_visible()
    assert "40 KiB resident" in table.inner_text()


def test_pixels_of_a_curve_are_there(page: Any) -> None:
    """Colours from variables come out as paint: a missing one would be black, or nothing."""
    colours = page.evaluate(
        "[...document.querySelectorAll('#loss polyline, #memory rect')]"
        ".map(s => getComputedStyle(s).stroke + getComputedStyle(s).fill)"
    )

    assert len(set(colours)) > 5
    assert "none" + "rgb(0, 0, 0)" not in colours


@pytest.mark.parametrize("form", [(), ("--search", "--gpu", "h100", "--top", "5")], ids=["plan", "search"])
def test_drawing_files_show_in_a_browser(browser: Any, tmp_path: Path, form: tuple[str, ...]) -> None:
    spec = record_run(tmp_path).spec
    file = tmp_path / "plan.svg"

    assert call("plan", spec, *form, "--plot", file) == 0

    shown = browser.new_page()
    shown.set_content(file.read_text(encoding="utf-8").partition("?>")[2])
    assert shown.locator("svg").bounding_box()["width"] > 300
    assert shown.evaluate(_OUTSIDE) == []
    assert shown.evaluate(_OVERLAPS) == []
    shown.close()
