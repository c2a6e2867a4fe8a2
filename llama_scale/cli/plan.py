"""``llama-scale plan``: the plan of a spec as tables for people or as JSON for programs."""

from __future__ import annotations

import io
import json
import os
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llama_scale.cli.output import emit, emit_json
from llama_scale.plan.flops import model_flops_per_token
from llama_scale.plan.parameters import model_numel
from llama_scale.plan.run_plan import RunPlan, make_plan
from llama_scale.spec.engine import DeepSpeedEngine, MegatronEngine
from llama_scale.spec.load import load_spec
from llama_scale.spec.model import InlineModel
from llama_scale.spec.recompute import FullRecompute
from llama_scale.spec.run import RunSpec

if TYPE_CHECKING:
    from rich.table import Table

app = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False)

_WIDTH = 80
_UNITS = ((1 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB"), (1, "B"))


@app.command()
def plan(
    spec: Annotated[str, typer.Argument(help="The spec, a YAML file.")],
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="a.b=VALUE", help="Replace a value of the spec; repeatable.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the plan as JSON.")] = False,
) -> None:
    """Show who computes what, memory by part and stage, and the pipeline's bubble; no torch, no GPU needed.

    Exit status 3: the spec has errors; all of them are named on stderr.
    """
    resolved = load_spec(spec, overrides=overrides or ())
    made = make_plan(resolved)
    if as_json:
        emit_json(plan_document(made))
    else:
        emit(render(made, spec=resolved))


def plan_document(plan: RunPlan) -> dict[str, Any]:
    """Return the plan as plain data, with what is derived from it under ``derived``."""
    document: dict[str, Any] = json.loads(plan.to_json())
    document["derived"] = {
        "world_size": plan.topology.world_size,
        "virtual_stages": plan.virtual_stages,
        "model_parameters": model_numel(plan.shape),
        "tokens_per_step": plan.batch.tokens_per_step,
        "tokens": plan.batch.tokens_per_step * plan.steps,
        "model_flops_per_token": model_flops_per_token(plan.shape, plan.batch.seq_length),
    }
    return document


def render(plan: RunPlan, *, spec: RunSpec) -> str:
    """Return the plan's tables as text of at most 80 columns; coloured only on a terminal and without NO_COLOR."""
    from rich.console import Console  # lazy: keeps rich out of --help and validate

    buffer = io.StringIO()
    coloured = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    console = Console(
        file=buffer, width=_WIDTH, force_terminal=coloured, no_color=not coloured, highlight=False, emoji=False
    )
    for table in (_layout_table(plan, spec), _stage_table(plan), _memory_table(plan), _step_table(plan)):
        console.print(table)
    lines = [line.rstrip() for line in buffer.getvalue().splitlines()]
    return "\n".join(lines).strip("\n") + "\n"


def _table(title: str, *columns: str, left: tuple[int, ...] = (0,)) -> Table:
    from rich import box
    from rich.table import Table

    # MARKDOWN is the plain-ASCII box, so that tables survive any encoding and paste into issues.
    table = Table(title=title, title_justify="left", title_style="bold", box=box.MARKDOWN, header_style="bold")
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index in left else "right", overflow="fold")
    return table


def _layout_table(plan: RunPlan, spec: RunSpec) -> Table:
    topology, shape = plan.topology, plan.shape
    table = _table(f"Layout of {plan.name}", "what", "value", left=(0, 1))
    if isinstance(spec.model, InlineModel):
        table.add_row("model", spec.model.name)
    table.add_row("parameters", f"{model_numel(shape):,}")
    table.add_row("engine", f"{plan.engine}, {_sharding(spec)}")
    table.add_row("precision", f"{spec.precision.compute}, {spec.precision.gradients} gradients")
    table.add_row("recompute", _recompute(spec))
    table.add_row("nodes x processes", f"{plan.nodes} x {plan.devices_per_node}")
    table.add_row("ranks", f"{topology.world_size:,}")
    table.add_row("data x tensor x pipeline", f"{topology.dp_size} x {topology.tp_size} x {topology.pp_size}")
    table.add_row("virtual stages", str(plan.virtual_stages))
    table.add_row("sequence parallel", "yes" if spec.parallel.sequence else "no")
    table.add_row("rank order", "tensor innermost, then data, pipeline outermost")
    return table


def _stage_table(plan: RunPlan) -> Table:
    table = _table("Stages", "stage", "ranks", "layers", "holds", "parameters/rank", left=(0, 1, 2, 3))
    per_stage = plan.topology.dp_size * plan.topology.tp_size
    for memory, stage in zip(plan.memory, plan.stages, strict=True):
        first = memory.pp_rank * per_stage
        extra = ["embedding"] * stage[0].has_embedding + ["head"] * stage[-1].has_head
        table.add_row(
            str(memory.pp_rank),
            _span(first, first + per_stage - 1),
            _layers(stage_layers=[chunk.layers for chunk in stage]),
            ", ".join(extra) or "-",
            f"{memory.parameters:,}",
        )
    return table


def _memory_table(plan: RunPlan) -> Table:
    size, unit = _unit(max(memory.total for memory in plan.memory))
    table = _table(
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
        table.add_row(str(memory.pp_rank), *(_number(part / size) for part in parts))
    return table


def _step_table(plan: RunPlan) -> Table:
    batch, schedule = plan.batch, plan.schedule
    table = _table("Batch and schedule", "what", "value", left=(0, 1))
    table.add_row("global batch", f"{batch.global_batch:,} samples of {batch.seq_length:,} tokens")
    table.add_row(
        "micro x accumulation x data", f"{batch.micro_batch} x {batch.accumulation} x {plan.topology.dp_size}"
    )
    table.add_row("tokens per step", f"{batch.tokens_per_step:,}")
    table.add_row("steps", f"{plan.steps:,}")
    table.add_row("tokens", f"{batch.tokens_per_step * plan.steps:,}")
    table.add_row("schedule", f"{schedule.kind}, {schedule.micro_batches} micro-batches")
    table.add_row("bubble / busy time", f"{schedule.bubble_fraction:.2%}")
    table.add_row("idle share of a step", f"{schedule.idle_share:.2%}")
    held = ", ".join(f"{n:g}" for n in schedule.in_flight)
    table.add_row("micro-batches held", f"{held} (stage by stage)")
    flops = model_flops_per_token(plan.shape, batch.seq_length)
    table.add_row("model FLOPs per token", f"{flops:.4g} (PaLM's MFU: attention in full)")
    return table


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
