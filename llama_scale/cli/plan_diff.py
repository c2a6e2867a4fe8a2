"""``llama-scale plan --diff A B``: what differs between the plans of two specs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from llama_scale.cli.output import emit, emit_json
from llama_scale.plan.estimate import estimate
from llama_scale.plan.fit import stage_needs
from llama_scale.plan.hardware import Hardware
from llama_scale.plan.parameters import model_numel
from llama_scale.plan.run_plan import make_plan
from llama_scale.spec.run import RunSpec

_GIB = float(1 << 30)


def run_diff(specs: Sequence[RunSpec], *, hardware: Sequence[Hardware | None], as_json: bool) -> None:
    """Print what differs; figures that need an accelerator are left out where a spec names none."""
    first, second = (facts(spec, hardware=one) for spec, one in zip(specs, hardware, strict=True))
    names = list(dict.fromkeys((*first, *second)))
    changed = {name: (first.get(name), second.get(name)) for name in names if first.get(name) != second.get(name)}
    if as_json:
        emit_json({name: {"a": a, "b": b} for name, (a, b) in changed.items()})
        return
    if not changed:
        emit("the plans are equal")
        return
    from llama_scale.cli.plan_tables import show, table  # lazy: rich

    made = table(f"{specs[0].name} (a) against {specs[1].name} (b)", "what", "a", "b", "b/a", left=(0,))
    for name, (a, b) in changed.items():
        made.add_row(name, _text(a), _text(b), _ratio(a, b))
    emit(show([made]))


def facts(spec: RunSpec, *, hardware: Hardware | None) -> dict[str, Any]:
    """Return the figures of a spec's plan by name."""
    plan = make_plan(spec)
    needs = stage_needs(spec, plan)
    found: dict[str, Any] = {
        "parameters": model_numel(plan.shape),
        "engine": plan.engine,
        "data": plan.topology.dp_size,
        "tensor": plan.topology.tp_size,
        "pipeline": plan.topology.pp_size,
        "virtual stages": plan.virtual_stages,
        "sequence parallel": spec.parallel.sequence,
        "recompute": spec.recompute.kind,
        "precision": spec.precision.compute,
        "global batch": plan.batch.global_batch,
        "micro batch": plan.batch.micro_batch,
        "sequence length": plan.batch.seq_length,
        "steps": plan.steps,
        "bubble": round(plan.schedule.bubble_fraction, 4),
        "memory of the fullest stage, GiB": round(max(need.total for need in needs) / _GIB, 2),
    }
    if hardware is None:
        return found
    speed = estimate(spec, plan, hardware=hardware)
    found["accelerator"] = speed.hardware
    for field in fields(speed.step):
        found[f"{field.name}, ms"] = round(getattr(speed.step, field.name) * 1e3, 1)
    return found | {
        "step, ms": round(speed.step.total * 1e3, 1),
        "tokens/s": round(speed.tokens_per_s),
        "MFU": round(speed.mfu, 4),
        "days": round(speed.days, 3),
        "device hours": round(speed.device_hours),
    }


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,}" if isinstance(value, int | float) else "-" if value is None else str(value)


def _ratio(a: Any, b: Any) -> str:
    numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in (a, b))
    return f"{b / a:.3f}" if numbers and a else ""
