"""``llama-scale status``: how one run is doing."""

from __future__ import annotations

import time
from typing import Annotated

import typer

from llama_scale.cli.output import emit, emit_json
from llama_scale.cli.runs_dir import DEFAULT_RUNS, RunName, RunsDir
from llama_scale.runs.find import find_run
from llama_scale.runs.outcome import describe
from llama_scale.runs.records import ENDED
from llama_scale.runs.view import GONE, NEVER, RunView, look

app = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False)

_WATCH_S = 1.0


@app.command()
def status(
    run: RunName,
    *,
    runs_dir: RunsDir = DEFAULT_RUNS,
    as_json: Annotated[bool, typer.Option("--json", help="Print the status as JSON.")] = False,
    watch: Annotated[bool, typer.Option("--watch", help="Print it again when it changes, until the run ends.")] = False,
) -> None:
    """Show how a run is doing: state, step, loss, newest checkpoint, and the first failure if it failed.

    Example: `llama-scale status first --watch`.
    """
    folder = find_run(run, root=runs_dir)
    shown = ""
    while True:
        view = look(folder)
        text = describe_run(view)
        if text != shown:
            if as_json:
                emit_json(view.to_dict())
            else:
                emit(text + ("\n" if watch else ""))
            shown = text
        if not watch or view.state in ENDED or view.state in (GONE, NEVER):
            return
        time.sleep(_WATCH_S)


def describe_run(view: RunView) -> str:
    """Return the lines that ``status`` prints for people."""
    facts = view.to_dict()
    rows = [
        ("run", view.run.name),
        ("folder", str(view.run.path)),
        ("state", view.state),
        ("message", view.message),
        ("step", f"{facts['step']}/{facts.get('steps') or '?'}"),
    ]
    start = view.run.load_start()
    if start is not None:
        rows.append(("weights", start.words()))
    if facts["loss"] is not None:
        rows.append(("loss", f"{facts['loss']:.4f}"))
    if facts["tokens_per_s"] is not None:
        rows.append(("tokens/s", f"{facts['tokens_per_s']:,.0f}"))
    status = view.status
    if status is not None:
        rows.append(("checkpoint", status.checkpoint or "none"))
        rows.append(("attempt", f"{status.attempt} ({status.restarts} restarts)"))
        rows.append(("supervisor", f"{status.supervisor_pid} on {status.supervisor_host}"))
        if status.first_failure is not None:
            rows.append(("failed", describe(status.first_failure)))
        if status.victims:
            rows.append(("victims", ", ".join(f"rank {rank}" for rank in status.victims)))
        rows.append(("updated", status.updated_utc))
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name.ljust(width)}  {value}" for name, value in rows)
