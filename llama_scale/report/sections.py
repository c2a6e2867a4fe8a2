"""What a report shows, section by section, as plain data for the page's template."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from llama_scale.charts.axes import gibibytes, seconds
from llama_scale.charts.bars import Bar, memory_bars, stacked_bars
from llama_scale.charts.lines import Series, line_chart
from llama_scale.charts.palette import SERIES
from llama_scale.charts.plans import memory_parts, step_parts
from llama_scale.charts.scene import Scene
from llama_scale.charts.timeline import pipeline_timeline
from llama_scale.plan.run_plan import RunPlan
from llama_scale.report.collect import RunFacts
from llama_scale.report.metrics import Points


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """A table.

    Args:
        caption: What it shows.
        columns: Heads, the first over the rows' names.
        rows: Cells, a row's name first.
    """

    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """A part of the page.

    Args:
        key: Its anchor.
        title: Its heading.
        text: What a reader must know of it.
        figures: Drawings.
        tables: The numbers behind them.
    """

    key: str
    title: str
    text: str = ""
    figures: tuple[Scene, ...] = ()
    tables: tuple[Table, ...] = field(default=())


def make_sections(runs: Sequence[RunFacts]) -> tuple[Section, ...]:
    """Return the sections with curves and drawings; those about adapters only where a run has any."""
    return (
        _loss(runs),
        _throughput(runs),
        _step_time(runs),
        _memory(runs),
        _timelines(runs),
        *_adapters(runs),
        *_examples(runs),
        _attempts(runs),
    )


def _curves(runs: Sequence[RunFacts], value: str, *, suffix: str = "", dashed: bool = False) -> Iterator[Series]:
    for colour, run in enumerate(runs):
        name = _name(run, runs, suffix) or value
        yield Series(name=name, points=run.curves.curve(value), colour=colour, dashed=dashed, marked=dashed)


def _name(run: RunFacts, runs: Sequence[RunFacts], suffix: str) -> str:
    """Return a curve's name: the run's where there are several."""
    return " ".join(part for part in (run.name if len(runs) > 1 else "", suffix) if part)


def _loss(runs: Sequence[RunFacts]) -> Section:
    series = [
        *_curves(runs, "loss", suffix="training loss"),
        *_curves(runs, "validation_loss", suffix="validation loss", dashed=True),
    ]
    figure = line_chart(series, title="Loss", x_label="step", y_label="nats a token")
    return Section(key="loss", title="Loss", figures=(figure,), tables=(_step_table(runs),))


def _step_table(runs: Sequence[RunFacts]) -> Table:
    """Return a few steps of each run as numbers."""
    rows = []
    for run in runs:
        losses, speeds = run.curves.values.get("loss", []), dict(run.curves.values.get("tokens_per_s", []))
        validation = dict(run.curves.values.get("validation_loss", []))
        for step, loss in _few(losses):
            near = max((at for at in validation if at <= step), default=None)
            rows.append(
                (
                    f"{_name(run, runs, '')} {step:,.0f}".strip(),
                    _worded(loss),
                    "" if near is None else _worded(validation[near]),
                    _worded(speeds.get(step, math.nan), digits=0),
                )
            )
    columns = ("step", "training loss", "last validation loss", "tokens/s")
    return Table(caption="Some of the steps", columns=columns, rows=tuple(rows))


def _few(points: Sequence[tuple[float, float]], *, most: int = 12) -> Sequence[tuple[float, float]]:
    if len(points) <= most:
        return points
    return [points[round(n * (len(points) - 1) / (most - 1))] for n in range(most)]


def _worded(value: float, *, digits: int = 4) -> str:
    return f"{value:,.{digits}f}" if math.isfinite(value) else "not finite"


def _throughput(runs: Sequence[RunFacts]) -> Section:
    series = list(_curves(runs, "tokens_per_s", suffix="measured"))
    for colour, run in enumerate(runs):
        if run.predicted is not None and (points := run.curves.curve("tokens_per_s")):
            ends = ((points[0][0], run.predicted.tokens_per_s), (points[-1][0], run.predicted.tokens_per_s))
            series.append(Series(name=_name(run, runs, "predicted"), points=ends, colour=colour, dashed=True))
    figure = line_chart(series, title="Throughput", x_label="step", y_label="tokens/s", zero=True)
    return Section(key="throughput", title="Throughput", figures=(figure,))


def _step_time(runs: Sequence[RunFacts]) -> Section:
    curves = [*_curves(runs, "step_time_s", suffix="step")]
    over_steps = line_chart(
        curves, title="Step time", x_label="step", y_label="time of a step", zero=True, word=seconds
    )
    bars, rows = [], []
    for run in runs:
        measured = run.curves.typical("step_time_s")
        if run.predicted is not None:
            bars.append(Bar(name=f"{_name(run, runs, '')} predicted".strip(), parts=step_parts(run.predicted.step)))
        if measured is not None:
            data = min(measured, run.curves.typical("data_s") or 0.0)
            parts = {"reading samples": data, "computing and waiting for others": measured - data}
            bars.append(Bar(name=f"{_name(run, runs, '')} measured".strip(), parts=parts))
        rows.append(_against(run, measured))
    figure = stacked_bars(bars, title="Step time by part, predicted and measured", word=seconds)
    columns = ("run", "measured step (median)", "predicted step", "predicted / measured", "between steps in all")
    text = (
        "The measured step is the median without the first. Between steps lie validation, checkpoints and restarts. "
        "A prediction needs to know the accelerator: the cluster profile's, or report --gpu NAME."
    )
    table = Table(caption="Measured against predicted", columns=columns, rows=tuple(rows))
    return Section(key="step-time", title="Step time", text=text, figures=(over_steps, figure), tables=(table,))


def _against(run: RunFacts, measured: float | None) -> tuple[str, ...]:
    predicted = None if run.predicted is None else run.predicted.step.total
    return (
        run.name,
        "none recorded" if measured is None else seconds(measured),
        "no accelerator known" if predicted is None else seconds(predicted),
        f"{predicted / measured:.2f}" if predicted is not None and measured else "",
        seconds(run.curves.between_steps()),
    )


def _memory(runs: Sequence[RunFacts]) -> Section:
    figures, rows = [], []
    for run in runs:
        bars = []
        for stage in run.plan.memory:
            name, peak = f"stage {stage.pp_rank}", run.peaks.get(stage.pp_rank)
            bars.append(Bar(name=f"{name} planned", parts=memory_parts(stage)))
            if peak is not None:
                bars.append(Bar(name=f"{name} measured", parts={f"measured ({peak.kind})": peak.used}))
            rows.append(
                (
                    f"{_name(run, runs, '')} {name}".strip(),
                    f"{stage.parameters:,}",
                    gibibytes(stage.total),
                    "" if peak is None else f"{gibibytes(peak.used)} {peak.kind}",
                )
            )
        title = f"Memory of one rank, by stage{_of(run, runs)}"
        figures.append(memory_bars(bars, title=title, capacity=run.capacity))
    text = (
        "Planned are tensors at the peak of a step. Measured is what torch allocated on the device, or on a CPU the "
        "growth of the process since before the model was built, with the libraries that were loaded then."
    )
    table = Table(
        caption="Memory by stage", columns=("stage", "parameters of a rank", "planned", "measured"), rows=tuple(rows)
    )
    return Section(key="memory", title="Memory by stage", text=text, figures=tuple(figures), tables=(table,))


def _of(run: RunFacts, runs: Sequence[RunFacts]) -> str:
    return f" of {run.name}" if len(runs) > 1 else ""


def _timelines(runs: Sequence[RunFacts]) -> Section:
    figures = tuple(
        pipeline_timeline(run.plan, recomputes=run.spec is not None and run.spec.recompute.kind == "full")
        for run in _distinct(runs)
    )
    text = "As planned: forward and backward passes of each stage; numbers are micro-batches, gaps are the bubble."
    if len(figures) < len(runs):
        text += " Runs with the same schedule share a drawing."
    return Section(key="timeline", title="Pipeline timeline", text=text, figures=figures)


def _distinct(runs: Sequence[RunFacts]) -> list[RunFacts]:
    """Return the first run of each schedule."""
    first: dict[tuple[object, ...], RunFacts] = {}
    for run in runs:
        first.setdefault(_schedule_of(run.plan), run)
    return list(first.values())


def _schedule_of(plan: RunPlan) -> tuple[object, ...]:
    return (plan.stages, plan.batch.accumulation)


def _adapters(runs: Sequence[RunFacts]) -> Iterator[Section]:
    shares, losses, rows = [], [], []
    for run in runs:
        for name, points in sorted(run.curves.responsibilities.items()):
            shares.append((_name(run, runs, name), run.curves.share_curve(name)))
            known = [y for _, y in points if math.isfinite(y)]
            if known:
                rows.append((_name(run, runs, name), f"{known[-1]:.1%}", f"{run.curves.mean_share(name):.1%}"))
        losses += [(_name(run, runs, name), run.curves.task_curve(name)) for name in sorted(run.curves.task_losses)]
    if shares:
        figure = line_chart(
            _numbered(shares), title="Responsibilities of the adapters", x_label="step", y_label="share", zero=True
        )
        table = Table(caption="Responsibilities", columns=("adapter", "last step", "whole run"), rows=tuple(rows))
        text = "The share of the training tokens that each adapter answers for."
        yield Section(key="adapters", title="Adapters", text=text, figures=(figure,), tables=(table,))
    if losses:
        figure = line_chart(_numbered(losses), title="Loss by task", x_label="step", y_label="nats a token")
        yield Section(key="tasks", title="Tasks", figures=(figure,))


def _numbered(curves: Sequence[tuple[str, Points]]) -> list[Series]:
    return [
        Series(name=name, points=points, colour=n, dashed=n >= len(SERIES))  # colours repeat then
        for n, (name, points) in enumerate(curves)
    ]


_COUNTS = ("examples", "features", "rows", "tokens", "cut", "dropped")


def _examples(runs: Sequence[RunFacts]) -> Iterator[Section]:
    """Yield what became of the tasks' examples, where a run has any."""
    rows = []
    for run in runs:
        for name, record in run.examples:
            counts = [f"{record[key]:,}" if isinstance(record.get(key), int) else "" for key in _COUNTS]
            told = [", ".join(map(str, record.get("unread") or ())), " ".join(map(str, record.get("notes") or ()))]
            rows.append((_name(run, runs, name), *counts, *told))
    if rows:
        columns = ("task, split", *_COUNTS[:1], "sequences", *_COUNTS[2:], "fields not read", "notes")
        table = Table(caption="What became of the tasks' examples", columns=columns, rows=tuple(rows))
        yield Section(key="examples", title="Examples", tables=(table,))


def _attempts(runs: Sequence[RunFacts]) -> Section:
    rows = []
    for run in runs:
        for attempt in run.attempts:
            failure = attempt.failure
            cause = "" if failure is None else f"rank {failure.rank}, {failure.kind}: {failure.error}"
            rows.append((f"{_name(run, runs, '')} {attempt.number}".strip(), attempt.state, attempt.message, cause))
    columns = ("attempt", "ended", "message", "first failure")
    restarts = sum(max(0, len(run.attempts) - 1) for run in runs)
    text = f"{restarts} restart{'s' * (restarts != 1)} in all." if rows else "Nothing was started."
    table = Table(caption="Starts of the run's processes", columns=columns, rows=tuple(rows))
    return Section(key="attempts", title="Attempts and restarts", text=text, tables=(table,) if rows else ())
