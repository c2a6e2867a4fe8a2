"""The report as one HTML page: no script, nothing from elsewhere, light or dark as the reader's system is."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from llama_scale.charts.palette import DARK, LIGHT
from llama_scale.charts.svg import to_svg_element
from llama_scale.report.collect import RunFacts
from llama_scale.report.sections import make_sections
from llama_scale.report.summary import differences, summary_table

MARK = '<meta name="generator" content="llama-scale report">'
"""In every page, so that a report may be replaced by a newer one, and nothing else is."""

_FOLDER = Path(__file__).parent


def render_page(runs: Sequence[RunFacts]) -> str:
    """Return the page.

    Args:
        runs: At least one run, in the order of the columns.
    """
    import jinja2  # lazy: only rendering needs it

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_FOLDER),
        undefined=jinja2.StrictUndefined,
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals["svg"] = to_svg_element
    title = runs[0].name if len(runs) == 1 else f"{len(runs)} runs"
    return environment.get_template("page.html.j2").render(
        mark=MARK,
        title=f"llama-scale: {title}",
        heading=title,
        summary=summary_table(runs),
        differences=differences(runs),
        sections=make_sections(runs),
        specs=[(run.name, _printable(run.spec_text)) for run in runs],
        light=LIGHT,
        dark=DARK,
        style=(_FOLDER / "page.css").read_text(encoding="utf-8"),
    )


def _printable(text: str) -> str:
    """Return text without control characters, which no page may hold."""
    return "".join(c if c.isprintable() or c in "\n\t" else "\ufffd" for c in text)
