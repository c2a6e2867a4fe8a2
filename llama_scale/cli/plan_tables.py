"""The plan of a spec as tables for people."""

from __future__ import annotations

import io
import os
import sys
from dataclasses import fields
from typing import TYPE_CHECKING

from llama_scale.plan.estimate import Estimate
from llama_scale.plan.fit import capacity_bytes, stage_needs
from llama_scale.plan.flops import model_flops_per_token
from llama_scale.plan.parameters import model_numel
from llama_scale.plan.run_plan import RunPlan
from llama_scale.spec.engine import DeepSpeedEngine, MegatronEngine
from llama_scale.spec.model import InlineModel
from llama_scale.spec.recompute import FullRecompute
from llama_scale.spec.run import RunSpec

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rich.table import Table

_WIDTH = 80
_UNITS = ((1 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB"), (1, "B"))
_GIB = 1 << 30


def render(plan: RunPlan, *, spec: RunSpec, estimate: Estimate | None = None) -> str:
    """Return the plan's tables as text of at most 80 columns; coloured only on a terminal and without NO_COLOR."""
    tables = [_layout_table(plan, spec), _stage_table(plan), _memory_table(plan), _step_table(plan)]
    if capacity_bytes(spec) is not None:
        tables.append(_device_table(plan, spec))
    if estimate is not None:
        tables += [_time_table(estimate), _cost_table(estimate)]
    return show(tables)


def show(tables: Iterable[Table], *, width: int = _WIDTH) -> str:
    """Return tables as text of at most ``width`` columns."""
    from rich.console import Console  # lazy: keeps rich out of --help and validate

    buffer = io.StringIO()
    coloured = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    console = Console(
        file=buffer, width=width, force_terminal=coloured, no_color=not coloured, highlight=False, emoji=False
    )
    for table in tables:
        console.print(table)
    lines = [line.rstrip() for line in buffer.getvalue().splitlines()]
    return "\n".join(lines).strip("\n") + "\n"


def table(title: str, *columns: str, left: tuple[int, ...] = (0,)) -> Table:
    """Return an empty table."""
    from rich import box
    from rich.table import Table

    # MARKDOWN is the plain-ASCII box, so that tables survive any encoding and paste into issues.
    made = Table(title=title, title_justify="left", title_style="bold", box=box.MARKDOWN, header_style="bold")
    for index, column in enumerate(columns):
        made.add_column(column, justify="left" if index in left else "right", overflow="fold")
    return made


def _layout_table(plan: RunPlan, spec: RunSpec) -> Table:
    topology, shape = plan.topology, plan.shape
    made = table(f"Layout of {plan.name}", "what", "value", left=(0, 1))
    if isinstance(spec.model, InlineModel):
        made.add_row("model", spec.model.name)
    made.add_row("parameters", f"{model_numel(shape):,}")
    made.add_row("engine", f"{plan.engine}, {_sharding(spec)}")
    made.add_row("precision", f"{spec.precision.compute}, {spec.precision.gradients} gradients")
    made.add_row("recompute", _recompute(spec))
    made.add_row("nodes x processes", f"{plan.nodes} x {plan.devices_per_node}")
    made.add_row("ranks", f"{topology.world_size:,}")
    made.add_row("data x tensor x pipeline", f"{topology.dp_size} x {topology.tp_size} x {topology.pp_size}")
    made.add_row("virtual stages", str(plan.virtual_stages))
    made.add_row("sequence parallel", "yes" if spec.parallel.sequence else "no")
    made.add_row("rank order", "tensor innermost, then data, pipeline outermost")
    return made


def _stage_table(plan: RunPlan) -> Table:
    made = table("Stages", "stage", "ranks", "layers", "holds", "parameters/rank", left=(0, 1, 2, 3))
    per_stage = plan.topology.dp_size * plan.topology.tp_size
    for memory, stage in zip(plan.memory, plan.stages, strict=True):
        first = memory.pp_rank * per_stage
        extra = ["embedding"] * stage[0].has_embedding + ["head"] * stage[-1].has_head
        made.add_row(
            str(memory.pp_rank),
            _span(first, first + per_stage - 1),
            _layers(stage_layers=[chunk.layers for chunk in stage]),
            ", ".join(extra) or "-",
            f"{memory.parameters:,}",
        )
    return made


def _memory_table(plan: RunPlan) -> Table:
    size, unit = _unit(max(memory.total for memory in plan.memory))
    made = table(
        f"Memory of one rank by stage, {unit} (tensors only, at the peak of a step)",
        "stage", "weights", "grads", "optim", "buffers", "activ", "logits", "total",
    )  # fmt: skip
    for memory in plan.memory:
        states = memory.states
        parts = (
            states.weights,
            states.gradients,
            states.masters + states.moments,
            states.buffers,
            memory.activations,
            memory.logits,
            memory.total,
        )
        made.add_row(str(memory.pp_rank), *(_number(part / size) for part in parts))
    return made


def _step_table(plan: RunPlan) -> Table:
    batch, schedule = plan.batch, plan.schedule
    made = table("Batch and schedule", "what", "value", left=(0, 1))
    made.add_row("global batch", f"{batch.global_batch:,} samples of {batch.seq_length:,} tokens")
    made.add_row("micro x accumulation x data", f"{batch.micro_batch} x {batch.accumulation} x {plan.topology.dp_size}")
    made.add_row("tokens per step", f"{batch.tokens_per_step:,}")
    made.add_row("steps", f"{plan.steps:,}")
    made.add_row("tokens", f"{batch.tokens_per_step * plan.steps:,}")
    made.add_row("schedule", f"{schedule.kind}, {schedule.micro_batches} micro-batches")
    made.add_row("bubble / busy time", f"{schedule.bubble_fraction:.2%}")
    made.add_row("idle share of a step", f"{schedule.idle_share:.2%}")
    held = ", ".join(f"{n:g}" for n in schedule.in_flight)
    made.add_row("micro-batches held", f"{held} (stage by stage)")
    flops = model_flops_per_token(plan.shape, batch.seq_length, frozen=plan.frozen)
    made.add_row("model FLOPs per token", f"{flops:.4g} (PaLM's MFU: attention in full)")
    return made


def _device_table(plan: RunPlan, spec: RunSpec) -> Table:
    capacity = capacity_bytes(spec)
    assert capacity is not None
    made = table(
        f"Memory against one device of {spec.cluster.site}, GiB",
        "stage", "tensors", "allocator", "context", "total", "of", "",
    )  # fmt: skip
    for need in stage_needs(spec, plan):
        sizes = (need.tensors, need.slack, need.context, need.total, capacity)
        verdict = "fits" if need.total <= capacity else f"{(need.total - capacity) / _GIB:.1f} too much"
        made.add_row(str(need.pp_rank), *(_number(size / _GIB) for size in sizes), verdict)
    return made


def _time_table(estimate: Estimate) -> Table:
    made = table(f"Predicted step time on {estimate.hardware}", "part", "ms", "share")
    for field in fields(estimate.step):
        seconds = getattr(estimate.step, field.name)
        made.add_row(field.name, f"{seconds * 1e3:,.1f}", f"{seconds / estimate.step.total:.1%}")
    made.add_row("step", f"{estimate.step.total * 1e3:,.1f}", "100.0%")
    return made


def _cost_table(estimate: Estimate) -> Table:
    made = table("Predicted speed and cost", "what", "value", left=(0, 1))
    made.add_row("tokens/s", f"{estimate.tokens_per_s:,.0f}")
    made.add_row("tokens/s of one device", f"{estimate.tokens_per_s_per_device:,.0f}")
    made.add_row("MFU", f"{estimate.mfu:.1%} (PaLM: attention in full)")
    made.add_row("HFU", f"{estimate.hfu:.1%} (the same, with what is recomputed)")
    made.add_row("days for all tokens", f"{estimate.days:,.2f}")
    made.add_row("device hours", f"{estimate.device_hours:,.0f}")
    price = "no price known; give --usd-per-hour" if estimate.usd is None else f"{estimate.usd:,.0f} USD"
    made.add_row("cost", price)
    return made


def _sharding(spec: RunSpec) -> str:
    engine = spec.engine
    if isinstance(engine, MegatronEngine):
        return "distributed optimizer" if engine.distributed_optimizer else "optimizer on every replica"
    return f"ZeRO-{engine.zero}" if isinstance(engine, DeepSpeedEngine) else "optimizer on every replica"


def _recompute(spec: RunSpec) -> str:
    recompute = spec.recompute
    return f"full, {recompute.method}, {recompute.layers}" if isinstance(recompute, FullRecompute) else recompute.kind


def _unit(value: int) -> tuple[int, str]:
    return next((size, name) for size, name in _UNITS if value >= size or size == 1)


def _number(value: float) -> str:
    return f"{value:,.2f}" if value < 10 else f"{value:,.1f}"


def _span(first: int, last: int) -> str:
    return str(first) if first == last else f"{first}-{last}"


def _layers(*, stage_layers: list[tuple[int, ...]]) -> str:
    count = sum(map(len, stage_layers))
    return f"{', '.join(_span(layers[0], layers[-1]) for layers in stage_layers)} ({count})"
