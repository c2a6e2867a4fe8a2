"""``llama-scale runs``: the runs of a folder, one line each."""

from __future__ import annotations

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
) -> None:
    """List the runs of a folder, oldest first.

    Example: `llama-scale runs --runs-dir /shared/runs`.
    """
    found = [look(run).to_dict() for run in list_runs(runs_dir)]
    if as_json:
        emit_json(found)
        return
    if not found:
        say(f"no runs in {runs_dir}")
        return
    emit(columns([_HEAD, *(_row(run) for run in found)]))


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
