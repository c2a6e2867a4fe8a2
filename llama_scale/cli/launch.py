"""``llama-scale launch``: render a run's bundle, check what it needs, and run exactly that bundle."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from llama_scale.cli.output import emit, say
from llama_scale.cli.runs_dir import DEFAULT_RUNS, RunsDir
from llama_scale.errors import LaunchError, SpecError
from llama_scale.launchers.base import Bundle, load_launcher
from llama_scale.launchers.kubernetes_objects import RUN_NAME
from llama_scale.plan.fit import problems
from llama_scale.plan.run_plan import RunPlan, make_plan
from llama_scale.runs.folder import RunFolder, write_files
from llama_scale.runs.length import counted, examples_folder
from llama_scale.spec.length import any_length
from llama_scale.spec.load import load_spec
from llama_scale.spec.run import RunSpec

app = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False)


@app.command()
def launch(
    spec: Annotated[str, typer.Argument(help="The spec, a YAML file.")],
    *,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="a.b=VALUE", help="Replace a value of the spec; repeatable.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the bundle and start nothing.")] = False,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", metavar="DIR", help="New folder: with --dry-run for the bundle, with --simulate for everything."
        ),
    ] = None,
    simulated: Annotated[
        bool,
        typer.Option(
            "--simulate", help="Train, kill, resume, convert and verify a shrunk twin on this machine's CPUs instead."
        ),
    ] = False,
    detach: Annotated[bool, typer.Option("--detach", help="Return once the run has started.")] = False,
    runs_dir: RunsDir = DEFAULT_RUNS,
    name: Annotated[str | None, typer.Option("--name", help="Name of the run, instead of the spec's.")] = None,
    allow_oom: Annotated[
        bool,
        typer.Option("--allow-oom", help="Go on although the plan needs more memory than the site's devices have."),
    ] = False,
    no_doctor: Annotated[
        bool, typer.Option("--no-doctor", help="Do not ask the hosts first whether they can run it.")
    ] = False,
) -> None:
    """Validate, plan, render and run. The run folder is RUNS_DIR/<name>-<utc>-<4hex>.

    Example: `llama-scale launch run.yaml --set train.steps=100 --detach`.

    Exit status: 0 done, 3 the spec has errors or its plan does not fit, 5 the run could not start or failed (with
    --simulate 6 if a conversion did), 75 stopped after saving a checkpoint.
    """
    if out is not None and not (dry_run or simulated):
        raise typer.BadParameter(
            "--out DIR goes with --dry-run or --simulate; a run's own folder is chosen with --runs-dir"
        )
    if simulated and (dry_run or detach):
        raise typer.BadParameter("--simulate goes neither with --dry-run nor with --detach")
    if dry_run and detach:
        raise typer.BadParameter("--dry-run starts nothing that --detach could leave; give one of them")
    changes = [*(overrides or ()), *([f"name={name}"] if name is not None else ())]
    resolved = load_spec(spec, overrides=changes)
    sample = any_length(resolved)
    overflow = [] if allow_oom else problems(sample, make_plan(sample))
    if overflow:
        raise SpecError(overflow)
    if simulated:
        from llama_scale.cli.launch_simulate import simulate  # lazy: numpy, and what reads examples

        simulate(resolved, runs_dir=runs_dir, out=out)
        return
    if dry_run:
        with examples_folder(resolved) as examples:
            resolved = counted(resolved, examples=examples, tell=say)
        _show(_render(resolved, make_plan(resolved)), out)
        return
    from llama_scale.cli.start import begin  # lazy: a dry run starts nothing

    run, resolved, plan = _make_run(resolved, runs_dir=runs_dir, no_doctor=no_doctor)
    raise typer.Exit(begin(run, spec=resolved, plan=plan, detach=detach))


def _make_run(spec: RunSpec, *, runs_dir: Path, no_doctor: bool) -> tuple[RunFolder, RunSpec, RunPlan]:
    """Check what a run needs, count its rows, import its weights and make its folder; returns its final spec and plan.

    Raises:
        LaunchError: Something is missing, or the folder cannot be written.
    """
    from llama_scale.cli.base import start_of  # lazy: a dry run starts nothing
    from llama_scale.runs.preflight import check_inputs
    from llama_scale.runs.task_files import task_notes

    if spec.launcher.kind != "kubernetes":  # its images and claims have what a run needs, not this machine
        check_inputs(spec)
        for note in task_notes(spec):
            say(f"note: {note}")
    with examples_folder(spec, root=runs_dir) as examples:
        spec = counted(spec, examples=examples, tell=say)
        plan = make_plan(spec)
        bundle = _render(spec, plan)
        if not no_doctor:
            _ask_hosts(spec, plan, runs_dir)
        start = start_of(spec, plan, runs_dir=runs_dir)
        run = RunFolder.create(runs_dir, name=spec.name, files=bundle.files, start=start, examples=examples)
    return run, spec, plan


def _render(spec: RunSpec, plan: RunPlan) -> Bundle:
    return load_launcher(spec.launcher.kind).render(spec, plan, python=sys.executable)


_ASKED = ("local", "ssh")
"""Launchers whose hosts are known here and that do not ask them themselves."""


def _ask_hosts(spec: RunSpec, plan: RunPlan, runs_dir: Path) -> None:
    """Run the quick part of ``doctor``.

    Raises:
        DoctorError: A host cannot run it.
    """
    if spec.launcher.kind not in _ASKED:
        return
    from llama_scale.runs.doctor.examine import DoctorError, examine, failures  # lazy: a dry run asks nobody
    from llama_scale.runs.doctor.needs import needs_of

    timeout_s = getattr(spec.launcher, "ssh_timeout_s", 20.0)
    findings, _ = examine(needs_of(spec, plan), runs_dir=runs_dir, timeout_s=timeout_s)
    for finding in findings:
        if finding.level == "warning":
            say(f"warning: {finding}")
    if failures(findings):
        raise DoctorError(findings)


def _show(bundle: Bundle, out: Path | None) -> None:
    if out is None:
        for file, text in bundle.files.items():
            emit(f"==> {file} <==\n{text}")
        return
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        present = {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()} if out.is_dir() else {}
        if present == {file: text.encode() for file, text in bundle.files.items()}:
            say(f"{out} holds this bundle already ({bundle.digest[:12]})")
            return
        raise LaunchError(f"--out {out} exists and is not empty; nothing in it is overwritten: name a new folder")
    try:
        if out.is_dir():
            out.rmdir()
        write_files(out, bundle.files)
    except OSError as error:
        raise LaunchError(f"cannot write the bundle into {out}: {error.strerror}") from error
    say(f"bundle {bundle.digest[:12]} written: {out}; {_by_hand(bundle, shlex.quote(str(out)))}")


def _by_hand(bundle: Bundle, folder: str) -> str:
    """Say how a bundle is run without llama-scale."""
    if "job.yaml" in bundle.files:
        return f"apply it with: sed s/{RUN_NAME}/NAME/g {folder}/job.yaml | kubectl apply -f -"
    if "job.sh" in bundle.files:  # which needs a run folder, with status and attempts
        return (
            f"`llama-scale launch` submits it; in an allocation (salloc), run it with: bash {folder}/launch.sh RUN_DIR"
        )
    return f"run it with: bash {folder}/launch.sh RUN_DIR"
