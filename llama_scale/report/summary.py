"""The head of a report: what each run is, how it went, and in what the runs differ."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import yaml

from llama_scale.charts.axes import seconds
from llama_scale.plan.parameters import model_numel
from llama_scale.report.collect import RunFacts
from llama_scale.report.sections import Table
from llama_scale.spec.run import RunSpec


def summary_table(runs: Sequence[RunFacts]) -> Table:
    """Return one column a run."""
    columns = [dict(_facts(run)) for run in runs]
    names = list(dict.fromkeys(name for column in columns for name in column))
    rows = tuple((name, *(column.get(name, "") for column in columns)) for name in names)
    return Table(caption="Summary", columns=("", *(run.name for run in runs)), rows=rows)


def _facts(run: RunFacts) -> Iterator[tuple[str, str]]:
    plan, curves, spec = run.plan, run.curves, run.spec
    topology = plan.topology
    yield "state", run.view.state
    yield "message", run.view.message
    yield "folder", str(run.view.run.path)
    if spec is not None and spec.model.kind == "inline":
        yield "model", spec.model.name
    start = run.view.run.load_start()
    if start is not None:
        yield "weights", f"{start.words()}{'' if plan.base_trainable else ' (frozen base)'}"
    yield "parameters", f"{model_numel(plan.shape):,}"
    yield "engine", plan.engine
    yield "data x tensor x pipeline", f"{topology.dp_size} x {topology.tp_size} x {topology.pp_size}"
    yield "virtual stages", str(plan.virtual_stages)
    if spec is not None:
        yield "precision", spec.precision.compute
        yield "recompute", spec.recompute.kind
        yield "seed", str(spec.seed)
    yield "global batch", f"{plan.batch.global_batch:,} x {plan.batch.seq_length:,} tokens"
    steps = curves.values.get("loss", [])
    yield "steps", f"{steps[-1][0] if steps else 0:,.0f} of {plan.steps:,}"
    loss, validation = curves.last("loss"), curves.last("validation_loss")
    yield "last training loss", "none" if loss is None else f"{loss:.4f}"
    if validation is not None:
        best = min(y for _, y in curves.values["validation_loss"] if math.isfinite(y))
        yield "last / best validation loss", f"{validation:.4f} / {best:.4f}"
    yield from _speed(run)
    yield "attempts", str(len(run.attempts))
    if run.view.status is not None and run.view.status.checkpoint:
        yield "newest checkpoint", run.view.status.checkpoint
    if curves.broken:
        yield "unreadable records", f"{curves.broken} of {curves.lines} lines of metrics.jsonl are left out"
    if run.problem:
        yield "not shown", run.problem


def _speed(run: RunFacts) -> Iterator[tuple[str, str]]:
    speed, step, mfu = (run.curves.typical(name) for name in ("tokens_per_s", "step_time_s", "mfu"))
    if speed is not None:
        yield "tokens/s (median)", f"{speed:,.0f}"
    if step is not None:
        yield "step time (median)", seconds(step)
    if mfu is not None:
        yield "MFU (median)", f"{mfu:.1%}"
    if run.predicted is not None:
        yield "predicted tokens/s", f"{run.predicted.tokens_per_s:,.0f} on {run.predicted.hardware}"


def differences(runs: Sequence[RunFacts]) -> Table | None:
    """Return the fields in which the runs' specs differ; None for one run, or where none differs."""
    known = [run for run in runs if run.spec is not None]
    if len(known) < 2:
        return None
    columns = [dict(_flat(_dumped(run.spec))) for run in known if run.spec is not None]
    names = list(dict.fromkeys(name for column in columns for name in column))
    rows = []
    for name in names:
        values = [_word(column.get(name)) for column in columns]
        if len(set(values)) > 1:
            rows.append((name, *values))
    if not rows:
        return None
    return Table(caption="Where the specs differ", columns=("field", *(run.name for run in known)), rows=tuple(rows))


def _dumped(spec: RunSpec) -> Mapping[str, Any]:
    return spec.model_dump(mode="json", by_alias=True)


def _flat(value: Any, *, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and value:
        for name, item in value.items():
            yield from _flat(item, path=f"{path}.{name}" if path else str(name))
    else:
        yield path, value


def _word(value: Any) -> str:
    return (
        ""
        if value is None
        else value
        if isinstance(value, str)
        else yaml.safe_dump(value, default_flow_style=True).removesuffix("...\n").strip()
    )
