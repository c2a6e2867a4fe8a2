"""``llama-scale plan``: what a run needs and how fast it is, which layout is best, and how right predictions are."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from llama_scale.cli.output import emit, emit_json, say
from llama_scale.cli.plan_site import site_hardware
from llama_scale.errors import SpecError
from llama_scale.plan.estimate import Estimate, estimate
from llama_scale.plan.fit import problems
from llama_scale.plan.flops import model_flops_per_token
from llama_scale.plan.hardware import Hardware
from llama_scale.plan.parameters import model_numel
from llama_scale.plan.run_plan import RunPlan, make_plan
from llama_scale.spec.load import load_spec
from llama_scale.spec.run import RunSpec

app = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False)


@app.command()
def plan(
    specs: Annotated[
        list[str] | None, typer.Argument(metavar="SPEC [SPEC]", help="The spec, a YAML file; two with --diff.")
    ] = None,
    *,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="a.b=VALUE", help="Replace a value of the spec; repeatable.")
    ] = None,
    search: Annotated[bool, typer.Option("--search", help="Rank all layouts that the engines can run.")] = False,
    gpus: Annotated[int | None, typer.Option(min=1, help="With --search: devices, instead of the spec's.")] = None,
    gpu: Annotated[str | None, typer.Option(help="Accelerator, e.g. h100, instead of the cluster profile's.")] = None,
    hardware_file: Annotated[
        Path | None, typer.Option("--hardware", metavar="FILE", help="YAML list of your own accelerators.")
    ] = None,
    objective: Annotated[
        Literal["tokens", "cost", "memory"] | None,
        typer.Option(help="With --search: most tokens/s (the default), fewest device hours, or least memory."),
    ] = None,
    top: Annotated[int | None, typer.Option(min=1, help="With --search: layouts to show; 10 by default.")] = None,
    usd_per_hour: Annotated[float | None, typer.Option(min=0, max=1e6, help="Price of one device for an hour.")] = None,
    diff: Annotated[bool, typer.Option("--diff", help="Compare the plans of two specs.")] = False,
    evaluate: Annotated[
        Path | None, typer.Option(metavar="ROWS.csv", help="Predict published measurements; no spec.")
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Also draw the plan or the search: .svg, or .png with Pillow.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print data as JSON.")] = False,
) -> None:
    """Show who computes what, memory, step time and cost; search for the best layout; no torch, no GPU needed.

    Example: `llama-scale plan run.yaml --search --gpus 64 --gpu h100 --top 5`.

    Exit status 3: the spec has errors; all of them are named on stderr.
    """
    names = list(specs or ())
    _check_options(names, search=search, diff=diff, evaluate=evaluate, plot=plot)
    for option, given in (("--gpus", gpus), ("--objective", objective), ("--top", top)):
        if given is not None and not search:
            raise typer.BadParameter(f"{option} goes with --search; a spec's own layout is set by cluster and parallel")
    if usd_per_hour is not None and (search or diff or evaluate is not None):
        raise typer.BadParameter("--usd-per-hour is for the plan of one spec; no other form shows a price")
    if evaluate is not None and (gpu is not None or hardware_file is not None or overrides):
        raise typer.BadParameter("rows of --evaluate name model and machine; leave out --set, --gpu and --hardware")
    changes = overrides or ()
    if evaluate is not None:
        from llama_scale.cli.plan_evaluate import run_evaluate  # lazy: only this form

        run_evaluate(evaluate, as_json=as_json)
        return
    resolved = [_load(name, changes) for name in names]
    hardware = [site_hardware(spec, gpu=gpu, file=hardware_file) for spec in resolved]
    if search:
        from llama_scale.cli.plan_search import run_search  # lazy: only this form

        run_search(
            resolved[0],
            hardware=hardware[0],
            gpus=gpus,
            objective=objective or "tokens",
            top=top or 10,
            as_json=as_json,
            plot=plot,
        )
        return
    if diff:
        from llama_scale.cli.plan_diff import run_diff  # lazy: only this form

        run_diff(resolved, hardware=hardware, as_json=as_json)
        return
    if usd_per_hour is not None and hardware[0] is None:
        raise SpecError("--usd-per-hour needs the speed of an accelerator: give --gpu (h100, ...) or cluster.profile")
    made = make_plan(resolved[0])
    speed = _speed(resolved[0], made, hardware=hardware[0], usd_per_hour=usd_per_hour)
    if plot is not None:
        from llama_scale.cli.plan_plot import plot_plan  # lazy: drawings are seldom asked for

        plot_plan(plot, made, spec=resolved[0], speed=speed)
    if as_json:
        emit_json(plan_document(made, spec=resolved[0], speed=speed))
    else:
        from llama_scale.cli.plan_tables import render  # lazy: rich

        emit(render(made, spec=resolved[0], estimate=speed))


def _load(name: str, overrides: Sequence[str]) -> RunSpec:
    """Read a spec and count its rows if its length is given in epochs."""
    spec = load_spec(name, overrides=overrides)
    if spec.train.epochs is None:
        return spec
    from llama_scale.runs.length import counted, examples_folder  # lazy: seldom needed

    with examples_folder(spec) as examples:
        return counted(spec, examples=examples, tell=say)


def _check_options(names: list[str], *, search: bool, diff: bool, evaluate: Path | None, plot: Path | None) -> None:
    forms = [name for name, given in (("--search", search), ("--diff", diff), ("--evaluate", evaluate)) if given]
    if len(forms) > 1:
        raise typer.BadParameter(f"{' and '.join(forms)} are different questions; ask one at a time")
    wanted = 2 if diff else 0 if evaluate is not None else 1
    if len(names) != wanted:
        form = forms[0] if forms else "a plan"
        compare = "; --diff compares two" if not forms and len(names) == 2 else ""
        raise typer.BadParameter(
            f"{form} takes {wanted} SPEC argument{'s' * (wanted != 1)}, and {len(names)} given{compare}"
        )
    if plot is not None:
        if diff or evaluate is not None:
            raise typer.BadParameter(f"--plot draws a plan or a search; {forms[0]} has no drawing")
        from llama_scale.cli.plan_plot import check_plot  # lazy: drawings are seldom asked for

        check_plot(plot)


def _speed(spec: RunSpec, made: RunPlan, *, hardware: Hardware | None, usd_per_hour: float | None) -> Estimate | None:
    return None if hardware is None else estimate(spec, made, hardware=hardware, usd_per_hour=usd_per_hour)


def plan_document(plan: RunPlan, *, spec: RunSpec, speed: Estimate | None) -> dict[str, Any]:
    """Return the plan as plain data, with what is derived from it under ``derived`` and ``predicted``."""
    document: dict[str, Any] = json.loads(plan.to_json())
    document["derived"] = {
        "world_size": plan.topology.world_size,
        "virtual_stages": plan.virtual_stages,
        "model_parameters": model_numel(plan.shape),
        "tokens_per_step": plan.batch.tokens_per_step,
        "tokens": plan.batch.tokens_per_step * plan.steps,
        "model_flops_per_token": model_flops_per_token(plan.shape, plan.batch.seq_length, frozen=plan.frozen),
    }
    if spec.cluster.site is not None:
        document["derived"]["fits"] = not problems(spec, plan)
    if speed is not None:
        document["predicted"] = asdict(speed) | {"step_s": speed.step.total}
    return document
