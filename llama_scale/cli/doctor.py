"""``llama-scale doctor``: examine this machine, or every host of a spec, before a run is started there."""

from __future__ import annotations

from typing import Annotated

import typer

from llama_scale.cli.output import emit, emit_json, say
from llama_scale.cli.runs_dir import DEFAULT_RUNS, RunsDir
from llama_scale.errors import LaunchError
from llama_scale.runs.doctor.examine import examine, failures
from llama_scale.runs.doctor.links import test_links
from llama_scale.runs.doctor.records import Finding, Needs

app = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False)

_MARKS = {"ok": "ok     ", "warning": "WARNING", "failed": "FAILED "}


@app.command()
def doctor(
    spec: Annotated[str | None, typer.Argument(help="The spec, a YAML file; without it: this machine.")] = None,
    *,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="a.b=VALUE", help="Replace a value of the spec; repeatable.")
    ] = None,
    runs_dir: RunsDir = DEFAULT_RUNS,
    quick: Annotated[bool, typer.Option("--quick", help="Leave out the rendezvous and the links.")] = False,
    timeout: Annotated[
        float,
        typer.Option("--timeout", metavar="SECONDS", min=1, max=3600, help="Time in which each host has to answer."),
    ] = 30.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False,
) -> None:
    """Ask every host at once what could keep the run from working, and name the culprit and the remedy.

    Example: `llama-scale doctor run.yaml --quick`.

    Reachable, same packages, GPUs, network, port, clock, shared folder, data, disk, memory; then a timed rendezvous and
    an all-reduce between pairs of hosts.

    Exit status: 0 all is well (warnings included), 3 the spec has errors, 5 a check failed.
    """
    if overrides and spec is None:
        raise typer.BadParameter("--set goes with a SPEC")
    needs = _needs(spec, overrides or [])
    for note in needs.notes:
        say(note)
    findings, answers = examine(needs, runs_dir=runs_dir, timeout_s=timeout)
    if not quick and not failures(findings):
        findings += test_links(needs, answers, timeout_s=timeout)
    failed = failures(findings)
    if as_json:
        emit_json({"healthy": not failed, "findings": [finding.to_dict() for finding in findings]})
    else:
        emit("\n".join(_line(finding, width=max(len(f.host) for f in findings)) for finding in findings))
    if failed:
        names = dict.fromkeys(f"{finding.host or 'all hosts'} ({finding.check})" for finding in failed)
        raise LaunchError(f"{len(failed)} check{'s' if len(failed) != 1 else ''} failed: {', '.join(names)}")
    say(f"{len(answers)} host{'s' if len(answers) != 1 else ''} examined, all is well")


def _needs(spec: str | None, overrides: list[str]) -> Needs:
    if spec is None:
        from llama_scale.runs.doctor.here import needs_here

        return needs_here()
    from llama_scale.plan.run_plan import make_plan  # lazy: this machine alone needs no spec
    from llama_scale.runs.doctor.needs import needs_of
    from llama_scale.spec.length import any_length
    from llama_scale.spec.load import load_spec

    resolved = load_spec(spec, overrides=overrides)
    return needs_of(resolved, make_plan(any_length(resolved)))


def _line(finding: Finding, *, width: int) -> str:
    text = f"{_MARKS[finding.level]}  {finding.host.ljust(width)}  {finding.check}: {finding.message}"
    return text + (f"\n{' ' * (width + 11)}-> {finding.remedy}" if finding.remedy else "")
