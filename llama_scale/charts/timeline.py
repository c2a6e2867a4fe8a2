"""When each pipeline stage computes which micro-batch: the plan's schedule on a clock."""

from __future__ import annotations

from llama_scale.charts.lines import swatch
from llama_scale.charts.scene import Box, Label, Scene, Shape, text_width
from llama_scale.plan.run_plan import RunPlan
from llama_scale.plan.schedule import TimedOp, simulate

_MOST_PASSES = 3000
"""Passes that one drawing shows; a longer step is drawn with fewer micro-batches."""
_MOST_ROW, _LEAST_ROW = 26.0, 7.0
_LEFT, _RIGHT, _TOP = 74.0, 12.0, 26.0
_FORWARD = ("series-1", "series-5")
_BACKWARD = ("series-2", "series-6")


def pipeline_timeline(plan: RunPlan, *, recomputes: bool = False, width: float = 720.0) -> Scene:
    """Draw one step of one replica, or its beginning with fewer micro-batches where there are too many to see.

    A pass takes time in proportion to its layers, a backward pass twice as much, or three times where all layers are
    computed again; less where adapters freeze the base. Transfers take none.

    Args:
        plan: The plan.
        recomputes: Whole layers are computed again in the backward pass.
        width: Of the drawing.
    """
    stages = plan.topology.pp_size
    drawn = _drawn(plan)
    forward, backward = plan.pass_times(recomputes=recomputes)
    lines = simulate(micro_batches=drawn, forward_time=forward, backward_time=backward)
    length = max(line[-1].end for line in lines)
    row = max(_LEAST_ROW, min(_MOST_ROW, 420.0 / stages))
    scale = (width - _LEFT - _RIGHT) / length
    shapes = _legend(virtual=plan.virtual_stages)
    for stage, line in enumerate(lines):
        y = _TOP + row * stage
        if row >= 11 or stage % max(1, round(14 / row)) == 0:
            shapes.append(Label(x=12, y=y + row / 2 + 4, text=f"stage {stage}", size=11, fill="muted"))
        shapes.append(Box(x=_LEFT, y=y, width=length * scale, height=row - 1.5, fill="idle"))
        for timed in line:
            shapes += _pass(timed, stage=stage, y=y, row=row, scale=scale)
    idle = 1 - sum(timed.end - timed.start for line in lines for timed in line) / (length * stages)
    total = plan.batch.accumulation
    shown = f"all {total}" if drawn == total else f"{drawn} of {total}"
    foot = _TOP + row * stages + 18
    whole = f"the whole step idles {plan.schedule.idle_share:.1%}"
    note = f"time to the right; {shown} micro-batches of a step are drawn; {whole}"
    shapes.append(Label(x=12, y=foot, text=note, size=11, fill="muted"))
    return Scene(
        title="Pipeline timeline",
        description=f"{stages} stages, schedule {plan.schedule.kind}, {shown} micro-batches; stages idle {idle:.1%} of "
        f"the time drawn; {whole}.",
        width=width,
        height=foot + 10,
        shapes=tuple(shapes),
    )


def _drawn(plan: RunPlan) -> int:
    """Return how many micro-batches are drawn: whole groups of the stages where the schedule interleaves."""
    total, stages = plan.batch.accumulation, plan.topology.pp_size
    room = max(1, _MOST_PASSES // (2 * stages * plan.virtual_stages))
    if total <= room:
        return total
    return max(stages, room // stages * stages) if plan.virtual_stages > 1 else room


def _pass(timed: TimedOp, *, stage: int, y: float, row: float, scale: float) -> list[Shape]:
    op = timed.op
    x, width = _LEFT + timed.start * scale, (timed.end - timed.start) * scale
    fill = (_BACKWARD if op.backward else _FORWARD)[op.virtual_rank % 2]
    kind = "backward" if op.backward else "forward"
    tip = f"stage {stage}: {kind} pass of micro-batch {op.micro_batch}, chunk {op.virtual_rank}"
    shapes: list[Shape] = [Box(x=x, y=y, width=max(0.4, width - 0.6), height=row - 1.5, fill=fill, title=tip)]
    text = str(op.micro_batch)
    if row >= 13 and width > text_width(text, size=10) + 4:
        shapes.append(Label(x=x + width / 2, y=y + row / 2 + 3, text=text, size=10, anchor="middle", fill="surface"))
    return shapes


def _legend(*, virtual: int) -> list[Shape]:
    entries = [("forward", _FORWARD[0]), ("backward", _BACKWARD[0]), ("idle", "idle")]
    if virtual > 1:
        entries[1:1] = [("forward, odd chunks", _FORWARD[1])]
        entries[3:3] = [("backward, odd chunks", _BACKWARD[1])]
    shapes: list[Shape] = []
    x = 12.0
    for name, role in entries:
        shapes += [swatch(x, 4, role=role), Label(x=x + 18, y=14, text=name)]
        x += 18 + text_width(name, size=12) + 16
    return shapes
