"""``llama-scale logs``: what the ranks of a run print."""

from __future__ import annotations

import subprocess
import sys
import time
from collections import deque
from pathlib import Path
from typing import Annotated

import typer

from llama_scale.cli.output import emit, say
from llama_scale.cli.runs_dir import DEFAULT_RUNS, RunName, RunsDir
from llama_scale.errors import LaunchError, SpecError
from llama_scale.plan.run_plan import RunPlan
from llama_scale.runs.find import find_run
from llama_scale.runs.folder import RunFolder
from llama_scale.runs.progress import Follower
from llama_scale.runs.rank_logs import rank_log_path
from llama_scale.runs.records import ENDED
from llama_scale.runs.submission import load_submission, log_command
from llama_scale.runs.view import GONE, NEVER, look

app = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False)

_POLL_S = 0.2


@app.command()
def logs(
    run: RunName,
    *,
    runs_dir: RunsDir = DEFAULT_RUNS,
    rank: Annotated[
        str, typer.Option("--rank", metavar="R", help="Rank; or agent or supervisor, for the processes above them.")
    ] = "0",
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Go on until the run ends.")] = False,
    lines: Annotated[int, typer.Option("--lines", "-n", min=0, help="Last lines to print; 0 prints all.")] = 0,
) -> None:
    """Print the log of one rank (rank 0 by default), or follow it until the run ends.

    Example: `llama-scale logs first --rank 3 --lines 20 --follow`.
    """
    folder = find_run(run, root=runs_dir)
    path = _log_file(folder, rank)
    if not path.exists() and (command := _schedulers_log(folder, rank, follow=follow)):
        raise typer.Exit(subprocess.call(command))
    # What is read now is printed through the follower, so that no line falls between two readings.
    follower = Follower(path)
    first = follower.lines()
    for line in deque(first, maxlen=min(lines, sys.maxsize)) if lines else first:
        _print(line)
    if not follow:
        if not path.exists():
            say(f"{path} does not exist yet: nothing was printed")
        return
    try:
        while True:
            ended = look(folder).state in (*ENDED, GONE, NEVER)
            for line in follower.lines():
                _print(line)
            if ended:
                return
            time.sleep(_POLL_S)
    except KeyboardInterrupt:
        raise typer.Exit(130) from None


def _schedulers_log(run: RunFolder, rank: str, *, follow: bool) -> list[str] | None:
    """Return the command that prints a log which only a scheduler has: that of rank 0 and its agent."""
    submission = load_submission(run)
    return log_command(submission, follow=follow) if submission is not None and rank in ("0", "agent") else None


def _print(line: bytes) -> None:
    emit(line.decode("utf-8", errors="replace"))


def _log_file(run: RunFolder, rank: str) -> Path:
    if rank == "agent":
        return run.agent_log
    if rank == "supervisor":
        return run.supervisor_log
    if rank.isdecimal() and run.rank_log(int(rank)).exists():
        return run.rank_log(int(rank))
    world = _world(run)
    if not rank.isdecimal() or int(rank) >= world:
        raise LaunchError(
            f"--rank {rank}: the run has ranks 0 to {world - 1}; agent and supervisor name the processes above them"
        )
    return rank_log_path(run, int(rank))


def _world(run: RunFolder) -> int:
    """Return how many ranks a run has.

    Raises:
        LaunchError: Its plan cannot be read.
    """
    try:
        return RunPlan.from_json(run.plan.read_text(encoding="utf-8")).topology.world_size
    except (OSError, UnicodeDecodeError, SpecError) as error:
        why = str(error).splitlines()[0].partition(";")[0]
        raise LaunchError(f"{run.plan} is damaged ({why}); the logs themselves are in {run.logs}") from None
