"""``llama-scale plan --plot FILE``: the plan or the search as a drawing."""

from __future__ import annotations

from pathlib import Path

import typer

from llama_scale.charts.plans import LayoutPoint, cost_chart, memory_chart, ranking_chart, step_chart
from llama_scale.charts.png import to_png
from llama_scale.charts.scene import Scene, stack
from llama_scale.charts.svg import to_svg_file
from llama_scale.charts.timeline import pipeline_timeline
from llama_scale.cli.output import say
from llama_scale.cli.plan_search import layout_name
from llama_scale.errors import ReportError
from llama_scale.plan.estimate import Estimate
from llama_scale.plan.fit import capacity_bytes
from llama_scale.plan.run_plan import RunPlan
from llama_scale.plan.search import Ranked, SearchResult
from llama_scale.runs.atomic import write_bytes_atomically
from llama_scale.spec.run import RunSpec

FORMATS = (".svg", ".png")


def check_plot(file: Path) -> None:
    """Refuse a file name that names no format.

    Raises:
        typer.BadParameter: it ends in neither .svg nor .png.
    """
    if file.suffix.lower() not in FORMATS:
        raise typer.BadParameter(f"{str(file)!r} ends in neither .svg nor .png", param_hint="--plot")


def plot_plan(file: Path, plan: RunPlan, *, spec: RunSpec, speed: Estimate | None) -> None:
    """Draw a plan: pipeline timeline, memory by stage, and step time by part where an accelerator is known.

    Raises:
        ReportError: the file cannot be written, or PNG needs a package that is missing.
    """
    scenes = [
        pipeline_timeline(plan, recomputes=spec.recompute.kind == "full"),
        memory_chart(plan, capacity=capacity_bytes(spec)),
    ]
    if speed is not None:
        scenes.append(step_chart([(speed.hardware, speed.step)]))
    _write(file, stack(scenes, title=f"Plan of {plan.name}"))


def plot_search(file: Path, result: SearchResult, *, shown: tuple[Ranked, ...]) -> None:
    """Draw a search: memory and step time of each layout, and the first ones by part.

    Raises:
        ReportError: see :func:`plot_plan`.
    """
    first = [_point(one) for one in shown]
    rest = [_point(one) for one in result.ranked[len(shown) :]]
    capacity = result.ranked[0].memory.capacity
    _write(file, stack([cost_chart([*first, *rest], capacity=capacity), ranking_chart(first)], title="Layouts"))


def _point(one: Ranked) -> LayoutPoint:
    return LayoutPoint(
        name=layout_name(one),
        step=one.step,
        tokens_per_s=one.tokens_per_s,
        memory=one.memory.used,
        fits=one.memory.fits,
        reason=one.reason if one.memory.fits else one.reason or "does not fit",
    )


def _write(file: Path, scene: Scene) -> None:
    png = file.suffix.lower() == ".png"
    data = to_png(scene) if png else to_svg_file(scene).encode("utf-8")
    try:
        write_bytes_atomically(file, data)
    except OSError as error:
        raise ReportError(f"cannot write {file}: {error.strerror}; choose another file with --plot") from None
    say(f"wrote {file}")
