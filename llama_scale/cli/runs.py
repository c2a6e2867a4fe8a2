"""``llama-scale runs``: the runs of a folder, one line each."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from llama_scale.cli.output import emit, emit_json, say
from llama_scale.cli.runs_dir import DEFAULT_RUNS, RunsDir
from llama_scale.columns import columns
from llama_scale.runs.find import list_runs
from llama_scale.runs.view import look

app = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False)

_HEAD = ("RUN", "STATE", "STEP", "LOSS", "UPDATED UTC")


@app.command()
def runs(
    *,
    runs_dir: RunsDir = DEFAULT_RUNS,
    as_json: Annotated[bool, typer.Option("--json", help="Print the runs as JSON.")] = False,
    clean: Annotated[
        bool,
        typer.Option(
            "--clean-bases",
            help="Instead: remove imported weights that no run needs, or that can be imported again.",
        ),
    ] = False,
) -> None:
    """List the runs of a folder, oldest first.

    Example: `llama-scale runs --runs-dir /shared/runs`.
    """
    if clean:
        _clean_bases(runs_dir, as_json=as_json)
        return
    found = [look(run).to_dict() for run in list_runs(runs_dir)]
    if as_json:
        emit_json(found)
        return
    if not found:
        say(f"no runs in {runs_dir}")
        return
    emit(columns([_HEAD, *(_row(run) for run in found)]))


def _clean_bases(runs_dir: Path, *, as_json: bool) -> None:
    from llama_scale.runs.bases import clean_bases  # lazy: only this form

    found = clean_bases(runs_dir)
    if as_json:
        emit_json([asdict(one) for one in found])
        return
    for one in found:
        what = f"kept, as {one.kept}" if one.kept else "removed"
        emit(f"{one.folder} ({one.source or 'source not known'}, {one.size / 1e6:,.1f} MB): {what}")
    if not found:
        say(f"no imported weights in {runs_dir}")


def _row(run: dict[str, object]) -> tuple[str, ...]:
    loss = run["loss"]
    return (
        str(run["name"]),
        str(run["state"]),
        f"{run['step']}/{run.get('steps') or '?'}",
        f"{loss:.4f}" if isinstance(loss, float) else "-",
        _minute(str(run.get("updated_utc", "-"))),
    )


def _minute(time: str) -> str:
    """Return a time of a status without year and seconds, which names of runs have.

    >>> _minute("2026-11-30T15:02:25+00:00")
    '11-30 15:02'
    """
    return f"{time[5:10]} {time[11:16]}" if len(time) > 16 else time
