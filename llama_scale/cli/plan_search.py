"""``llama-scale plan --search``: layouts ranked, and why the others lose."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from llama_scale.cli.output import emit, emit_json, say
from llama_scale.errors import SpecError
from llama_scale.plan.hardware import Hardware, scale_up_domain
from llama_scale.plan.search import Objective, Ranked, search, with_reasons
from llama_scale.plan.search_space import describe
from llama_scale.spec.run import RunSpec

_GIB = float(1 << 30)


def run_search(
    spec: RunSpec,
    *,
    hardware: Hardware | None,
    gpus: int | None,
    objective: Objective,
    top: int,
    as_json: bool,
    plot: Path | None = None,
) -> None:
    """Print the best layouts, and draw all of them if ``plot`` names a file.

    Raises:
        SpecError: no accelerator is named, the devices do not fill hosts, or no layout is allowed.
    """
    if hardware is None:
        raise SpecError("the search needs an accelerator: give --gpu (h100, ...), --hardware FILE or cluster.profile")
    devices = gpus or spec.cluster.world_size
    node = scale_up_domain(hardware, devices=devices, devices_per_node=spec.cluster.devices_per_node)
    if devices % node:
        raise SpecError(f"--gpus {devices} does not fill hosts of {node} devices; use {devices // node * node} or more")
    result = search(spec, hardware=hardware, devices=devices, devices_per_node=node, objective=objective)
    if not result.ranked:
        raise SpecError(
            f"no layout of {devices} devices divides the model, its batch of {spec.batch.global_} samples and the "
            "devices evenly; change --gpus or batch.global"
        )
    shown = with_reasons(result, top=top, objective=objective)
    if not result.fitting:
        say(f"warning: none of {len(result.ranked)} layouts fits {devices} x {hardware.name}; the nearest are shown")
    if plot is not None:
        from llama_scale.cli.plan_plot import plot_search  # lazy: drawings are seldom asked for

        plot_search(plot, result, shown=shown)
    if as_json:
        emit_json(
            {
                "hardware": hardware.name,
                "devices": devices,
                "objective": objective,
                "layouts": len(result.ranked),
                "fitting": result.fitting,
                "ranked": [_document(one) for one in shown],
            }
        )
        return
    emit(_tables(result.fitting, len(result.ranked), shown, hardware=hardware, devices=devices))


def _document(one: Ranked) -> dict[str, Any]:
    return describe(one.candidate) | {
        "devices": one.devices,
        "tokens_per_s": one.tokens_per_s,
        "tokens_per_s_per_device": one.tokens_per_s_per_device,
        "step_s": one.step.total,
        "step": asdict(one.step),
        "memory_gib": one.memory.used / _GIB,
        "capacity_gib": one.memory.capacity / _GIB,
        "fits": one.memory.fits,
        "reason": one.reason,
    }


def _tables(fitting: int, layouts: int, shown: tuple[Ranked, ...], *, hardware: Hardware, devices: int) -> str:
    from llama_scale.cli.plan_tables import show, table  # lazy: rich

    made = table(
        f"{fitting:,} of {layouts:,} layouts fit {devices:,} x {hardware.name}; degrees are data x tensor x pipeline",
        "#", "engine", "layout", "micro", "recompute", "tokens/s", "GiB",
        left=(1, 2, 4),
    )  # fmt: skip
    # A table of its own: beside the layouts the reasons would not fit 80 columns.
    reasons = table("Why not these, against the first", "#", "why not", left=(1,))
    for number, one in enumerate(shown, start=1):
        made.add_row(
            str(number),
            _engine(one.candidate.engine),
            _layout(one),
            str(one.candidate.batch.micro),
            _recompute(one.candidate.recompute),
            f"{one.tokens_per_s:,.0f}",
            f"{one.memory.used / _GIB:.1f}",
        )
        if one.reason:
            reasons.add_row(str(number), one.reason)
    return show([made, reasons] if reasons.row_count else [made])


def layout_name(one: Ranked) -> str:
    """Return a layout in a few words: engine, degrees, micro-batch, recomputation."""
    candidate = one.candidate
    words = [_engine(candidate.engine), _layout(one), f"micro {candidate.batch.micro}"]
    if candidate.recompute.kind != "none":
        words.append(_recompute(candidate.recompute))
    return " ".join(words)


def _layout(one: Ranked) -> str:
    parallel = one.candidate.parallel
    virtual = f" v{parallel.virtual_stages}" if parallel.virtual_stages > 1 else ""
    sequence = " seq" if parallel.sequence else ""
    return f"{parallel.data}x{parallel.tensor}x{parallel.pipeline}{virtual}{sequence}"


def _recompute(recompute: Any) -> str:
    return f"block {recompute.layers}" if getattr(recompute, "method", "") == "block" else str(recompute.kind)


def _engine(engine: Any) -> str:
    if engine.kind == "megatron":
        return "megatron" if engine.distributed_optimizer else "megatron whole"
    return f"zero-{engine.zero}" if engine.kind == "deepspeed" else str(engine.kind)
