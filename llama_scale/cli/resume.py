"""``llama-scale resume``: go on in the same run folder, also on another layout; --plan only says how."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from typing import Annotated

import typer

from llama_scale.checkpoint.manifest import load_manifest, newest_complete, verify_files
from llama_scale.cli.output import emit, emit_json, say
from llama_scale.cli.runs_dir import DEFAULT_RUNS, RunName, RunsDir
from llama_scale.errors import CheckpointError, LaunchError
from llama_scale.launchers.base import Bundle, load_launcher
from llama_scale.launchers.processes import list_marked
from llama_scale.plan.run_plan import RunPlan, make_plan
from llama_scale.runs.find import find_run
from llama_scale.runs.folder import RUN_VARIABLE, RunFolder
from llama_scale.runs.length import counted, examples_folder
from llama_scale.runs.lock import RunLock
from llama_scale.runs.preflight import check_inputs
from llama_scale.runs.resume_plan import ResumePlan, decide_resume
from llama_scale.runs.resume_spec import load_resumed
from llama_scale.runs.submission import check_idle
from llama_scale.spec.length import any_length
from llama_scale.spec.load import load_run_spec
from llama_scale.spec.run import RunSpec

app = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Continuation:
    """How a run would go on."""

    spec: RunSpec
    plan: RunPlan
    decision: ResumePlan
    notes: tuple[str, ...]


@app.command()
def resume(
    run: RunName,
    *,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="a.b=VALUE", help="Change the spec, e.g. parallel.tensor=1; repeatable."),
    ] = None,
    plan_only: Annotated[
        bool, typer.Option("--plan", help="Say reuse, reshard or refuse (and why); start nothing.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="With --plan: print it as JSON.")] = False,
    detach: Annotated[bool, typer.Option("--detach", help="Return once the run has started.")] = False,
    runs_dir: RunsDir = DEFAULT_RUNS,
) -> None:
    """Go on from the newest complete checkpoint of a run, in the same run folder.

    Example: `llama-scale resume first --set parallel.tensor=1 --plan`.

    Exit status: 0 done, 3 the changed spec has errors, 5 the run cannot be resumed or failed, 75 stopped after saving
    a checkpoint.
    """
    folder = find_run(run, root=runs_dir)
    if as_json and not plan_only:
        raise typer.BadParameter("--json goes with --plan; a run's progress is in `status --json`")
    if plan_only:
        found = _continue(folder, overrides or [])
        _show(found, as_json=as_json)
        if found.decision.kind == "refuse":
            raise typer.Exit(LaunchError.exit_code)
        return
    from llama_scale.cli.base import start_of  # lazy: --plan starts nothing
    from llama_scale.cli.start import begin

    lock = RunLock.acquire(folder)
    try:
        check_idle(folder)
        _wait_for_leftovers(folder)
        found = _continue(folder, overrides or [])
        if found.decision.kind == "refuse":
            raise LaunchError(f"cannot resume {folder.path}:\n  " + "\n  ".join(found.decision.reasons))
        if found.spec.launcher.kind == "kubernetes":  # what a run needs is in its images and claims
            say("the pods go on from the newest checkpoint on the claim, whatever is said below of this folder")
        else:
            needs_start = found.decision.kind == "start" or bool(found.spec.adapters)
            check_inputs(
                found.spec,
                warm_start=found.decision.kind == "start",
                start=folder.load_start(),
                prepared=folder.examples,
            )
            start = start_of(found.spec, found.plan, runs_dir=folder.path.parent, run=folder) if needs_start else None
            if start is not None:
                folder.save_start(start)
        for line in _describe(found):
            say(line)
        bundle = load_launcher(found.spec.launcher.kind).render(found.spec, found.plan, python=sys.executable)
        _put(folder, bundle)
    except BaseException:
        lock.release()
        raise
    raise typer.Exit(begin(folder, spec=found.spec, plan=found.plan, detach=detach, lock=lock))


def _continue(run: RunFolder, overrides: list[str]) -> _Continuation:
    """Decide how a run would go on; damage of the checkpoint is a refusal."""
    spec, notes = load_resumed(run.spec, overrides=overrides)
    newest = newest_complete(run.checkpoints)
    try:
        manifest = load_manifest(newest) if newest else None
        if newest:
            verify_files(newest, manifest=manifest, hashes=False)  # the ranks share the hashing when they load
    except CheckpointError as error:
        spec = any_length(spec)
        plan = make_plan(spec)
        name = newest.name if newest else None
        refusal = ResumePlan(kind="refuse", checkpoint=name, step=0, steps=plan.steps, reasons=(str(error),))
        return _Continuation(spec=spec, plan=plan, decision=refusal, notes=notes)
    done = (0, 0) if manifest is None else (manifest.step, manifest.samples)
    with examples_folder(spec) as examples:
        spec = counted(spec, examples=examples, known=run.examples, tell=say, step=done[0], samples=done[1])
    plan = make_plan(spec)
    decision = decide_resume(
        manifest, checkpoint=newest.name if newest else None, old=load_run_spec(run.spec), new=spec, plan=plan
    )
    return _Continuation(spec=spec, plan=plan, decision=decision, notes=notes)


def _show(found: _Continuation, *, as_json: bool) -> None:
    if as_json:
        emit_json(found.decision.to_dict() | {"followed": list(found.notes)})
    else:
        emit("\n".join(_describe(found)))


def _describe(found: _Continuation) -> list[str]:
    decision = found.decision
    where = f"{decision.checkpoint}, step {decision.step} of {decision.steps}" if decision.checkpoint else "step 0"
    lines = [f"{decision.kind}: from {where}: {'; '.join(decision.reasons)}"]
    lines += [f"  follows: {note}" for note in found.notes]
    lines += [f"  from the next step: {change}" for change in decision.changes]
    return lines


def _put(run: RunFolder, bundle: Bundle) -> None:
    """Replace the bundle if it changes; the old one is kept."""
    present = {path.name: path.read_bytes() for path in run.bundle.iterdir()} if run.bundle.is_dir() else {}
    same = present == {name: text.encode() for name, text in bundle.files.items()}
    if same and run.spec.read_bytes() == present["spec.yaml"] and run.plan.read_bytes() == present["plan.json"]:
        return
    kept = run.replace_bundle(bundle.files)
    say(f"new bundle; the one before is kept in {kept}")


def _wait_for_leftovers(run: RunFolder, *, patience_s: float = 30.0) -> None:
    """Wait until processes of a run whose supervisor died have saved and ended.

    Raises:
        LaunchError: They do not end.
    """
    marker = f"{RUN_VARIABLE}={run.path}"
    deadline = time.monotonic() + patience_s
    while left := list_marked(marker):
        if time.monotonic() > deadline:
            raise LaunchError(
                f"processes {left} of {run.path} still run though their supervisor is gone; end them with kill -KILL"
            )
        time.sleep(0.2)
