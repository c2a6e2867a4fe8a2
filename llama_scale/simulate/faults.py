"""Word how a command of a simulation failed: the first failing rank, where in the code, and which log."""

from __future__ import annotations

import re
from pathlib import Path

from llama_scale.runs.folder import RunFolder
from llama_scale.runs.outcome import describe
from llama_scale.runs.rank_logs import rank_log_path
from llama_scale.runs.records import RankFailure, Status, load_record
from llama_scale.simulate.commands import Done

_FRAME = re.compile(r'^\s*File "(?P<file>[^"]+)", line (?P<line>\d+), in (?P<name>.+)$', re.MULTILINE)
_INNER = ("/site-packages/torch/", "/site-packages/megatron/", "/site-packages/deepspeed/", "<string>", "<frozen")


def explain(done: Done, run: RunFolder | None) -> str:
    """Say why a command failed.

    Args:
        done: The command.
        run: The run that it started or went on with; None if it came to none.
    """
    status = None if run is None else load_record(run.status, Status)
    if run is None or status is None or status.state not in ("failed", "stopped", "preempted"):
        return f"{done.error}; its log: {done.log}"
    failure = status.first_failure
    if failure is None:
        return f"{status.message}; logs: {run.logs}"
    if failure.rank is None:
        return f"{describe(failure)}; logs: {run.logs}"
    where = place(failure)
    return f"{describe(failure)} first{f' ({where})' if where else ''}; its log: {rank_log_path(run, failure.rank)}"


def place(failure: RankFailure) -> str:
    """Return the innermost place of a traceback that is no library's: ``vera.py:31, in forward``."""
    frames = [frame for frame in _FRAME.finditer(failure.traceback) if not _is_inner(frame["file"])]
    return f"{frames[-1]['file']}:{frames[-1]['line']}, in {frames[-1]['name']}" if frames else ""


def _is_inner(file: str) -> bool:
    return any(part in Path(file).as_posix() for part in _INNER)
