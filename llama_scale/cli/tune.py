"""``llama-scale tune``: launch the best predicted layouts for a few steps and pick the fastest."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from llama_scale.cli.output import emit, emit_json, say
from llama_scale.cli.plan_search import layout_name
from llama_scale.cli.plan_site import site_hardware
from llama_scale.errors import LaunchError, SpecError
from llama_scale.runs.atomic import write_atomically
from llama_scale.spec.length import any_length
from llama_scale.spec.load import check_text, load_spec
from llama_scale.spec.run import RunSpec
from llama_scale.spec.section_text import replace_sections
from llama_scale.spec.start import from_seed
from llama_scale.tune.layouts import KEEPABLE, tunable_layouts
from llama_scale.tune.machine import machine_key, workload_key
from llama_scale.tune.records import Trials, cache_folder
from llama_scale.tune.trial import run_trial
from llama_scale.tune.tuner import Outcome, Tuned, Tuner

app = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False)


@app.command()
def tune(
    spec: Annotated[str, typer.Argument(help="The spec, a YAML file.")],
    *,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="a.b=VALUE", help="Replace a value of the spec; repeatable.")
    ] = None,
    top: Annotated[int, typer.Option(min=1, metavar="K", help="Layouts to launch at least.")] = 6,
    most: Annotated[int, typer.Option(min=1, metavar="N", help="Layouts to launch at most.")] = 24,
    steps: Annotated[int, typer.Option(min=2, help="Steps to measure of each launch, after two that are not.")] = 6,
    repeats: Annotated[
        int, typer.Option(min=1, help="Launches of the closest layouts, in turns; half of them go on to each turn.")
    ] = 3,
    keep: Annotated[
        list[str] | None,
        typer.Option(metavar="SECTION", help="Section that stays: parallel, engine, recompute or batch; repeatable."),
    ] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Measure again what was measured before.")] = False,
    write: Annotated[bool, typer.Option("--write", help="Write the fastest layout into SPEC.")] = False,
    gpu: Annotated[str | None, typer.Option(help="Accelerator, e.g. h100, instead of the cluster profile's.")] = None,
    hardware_file: Annotated[
        Path | None, typer.Option("--hardware", metavar="FILE", help="YAML list of your own accelerators.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print data as JSON.")] = False,
) -> None:
    """Launch the best predicted layouts for a few steps each, correct the predictions, and pick the fastest.

    Example: `llama-scale tune run.yaml --keep batch --write`.

    Measurements are kept and used again. Exit status 3: the spec has errors or no layout fits; 5: none could be run.
    """
    from llama_scale.cli.tune_progress import open_progress  # lazy: rich
    from llama_scale.runs.preflight import check_inputs

    wrong = [name for name in keep or () if name not in KEEPABLE]
    if wrong:
        raise typer.BadParameter(f"{wrong[0]!r} is none of {', '.join(KEEPABLE)}", param_hint="--keep")
    if most < top:
        raise typer.BadParameter(f"{most} is fewer than --top {top}, which are launched at least", param_hint="--most")
    if write and overrides:
        raise typer.BadParameter("--write goes into SPEC, which has other values than --set gives; write these first")
    loaded = load_spec(spec, overrides=overrides or ())
    resolved = any_length(loaded)
    if resolved.launcher.kind != "local":
        raise SpecError(
            f"launcher.kind={resolved.launcher.kind!r}: trials start on this machine; set launcher.kind=local"
        )
    hardware = site_hardware(resolved, gpu=gpu, file=hardware_file)
    tried = from_seed(resolved)
    if resolved.model.init_from is not None:
        say("trials draw the weights from the seed: how long a step takes does not depend on them")
    check_inputs(tried)
    ranked = tunable_layouts(tried, hardware=hardware, keep=tuple(keep or ()))
    folder = cache_folder() / "tune" / machine_key()
    trials = Trials(folder / f"{workload_key(tried)}.json", fresh=fresh)
    with open_progress(most=min(most, len(ranked)), layouts=len(ranked)) as progress:

        def measure(sections: Any) -> Any:
            name = next(layout_name(one) for one in ranked if describe_of(one) == sections)
            progress.begin(name)
            trial = run_trial(tried, sections, steps=steps, folder=folder / "runs", tick=progress.tick)
            progress.end(trial)
            return trial

        tuner = Tuner(ranked, trials=trials, measure=measure, least=top, most=most, repeats=repeats)
        outcome = tuner.run()
    best = outcome.best
    if as_json:
        emit_json(_document(outcome, layouts=len(ranked)))
    else:
        emit(_table(outcome, layouts=len(ranked), top=top))
    if best is None:
        problems = {one.trial.problem for one in outcome.layouts if one.trial is not None and one.trial.problem}
        raise LaunchError("none of the launched layouts ran: " + "; ".join(sorted(problems)[:3]))
    if write:
        _write(Path(spec), best, loaded)
    elif not as_json:
        say("write it into the spec with: --write")


def describe_of(one: Any) -> dict[str, Any]:
    """Return a ranked layout's sections."""
    from llama_scale.plan.search_space import describe  # lazy: with the search

    return describe(one.candidate)


def _write(path: Path, best: Tuned, spec: RunSpec) -> None:
    """Replace the layout in the spec's file, if the file then says exactly that.

    Raises:
        SpecError: it is written in a way that sections cannot be replaced in, or cannot be written.
    """
    try:
        text = replace_sections(path.read_text(encoding="utf-8"), best.sections)
        loaded = check_text(text, name=str(path), folder=str(path.absolute().parent))
        others = set(type(spec).model_fields) - set(best.sections)
        if loaded.spec is None or any(getattr(loaded.spec, name) != getattr(spec, name) for name in others):
            raise SpecError(
                f"{path} is not block YAML with its sections at the left margin, so nothing was written; put these in "
                f"by hand: {dict(best.sections)}"
            )
        write_atomically(path, text)
    except OSError as error:
        raise SpecError(f"{path} cannot be written: {error.strerror}") from None
    say(f"wrote the fastest layout into {path}: {layout_name(best.ranked)}")


def _document(outcome: Outcome, *, layouts: int) -> dict[str, Any]:
    return {
        "layouts": layouts,
        "launched": outcome.launched,
        "correction": {
            **outcome.correction.factors,
            "overheads_s": {name: list(each) for name, each in outcome.correction.overheads.items()},
            "spread": outcome.correction.spread,
        },
        "best": dict(outcome.best.sections) if outcome.best else None,
        "measured": [
            dict(one.sections)
            | {
                "step_s": one.step_s,
                "launches_s": list(one.trial.seconds),
                "predicted_s": one.corrected_s,
                "uncorrected_s": one.ranked.step.total,
                "problem": one.trial.problem,
            }
            for one in outcome.layouts
            if one.trial is not None
        ],
    }


def _table(outcome: Outcome, *, layouts: int, top: int) -> str:
    from llama_scale.cli.plan_tables import show, table  # lazy: rich

    known = [one for one in outcome.layouts if one.trial is not None]
    made = table(
        f"{len(known)} of {layouts} layouts measured on this machine, {outcome.launched} launches now",
        "#", "layout", "step ms", "corrected ms", "launches", "",
        left=(1, 5),
    )  # fmt: skip
    for number, one in enumerate([*known, *outcome.layouts[len(known) :][:top]], start=1):
        measured = "" if one.step_s is None else f"{one.step_s * 1e3:,.1f}"
        note = "best" if one is outcome.best else "not launched" if one.trial is None else one.trial.problem[:60]
        launches = str(len(one.trial.seconds)) if one.trial is not None else ""
        made.add_row(str(number), layout_name(one.ranked), measured, f"{one.corrected_s * 1e3:,.1f}", launches, note)
    return show([made])
