"""What a failing rank leaves behind: its error file, and the kind of error, so that culprit and victims differ."""

from __future__ import annotations

import json
import os
import traceback
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from llama_scale.errors import PREEMPTED_EXIT, DataError, LaunchError, LlamaScaleError, PluginError, SpecError
from llama_scale.runs.rank_logs import stands_for_itself
from llama_scale.runs.reserve import write_report as write_with_reserve

Kind = Literal["crash", "collateral", "config", "data", "oom", "preempted", "infrastructure", "node-lost"]
"""crash: its own fault; collateral: it lost a peer or waited too long for one; config: the spec or the launch;
infrastructure: a host cannot be used; node-lost: a host went away meanwhile."""

_LOST_PEER = (
    "Connection closed by peer",
    "Connection reset by peer",
    "Broken pipe",
    "Socket closed",
    "Read error",
    "Timed out waiting",
    "Application timeout caused pair closure",
    "wait timeout after",
    "socket has timed out",
    "failed to recv",
    "failed to connect",
    "Connection refused",
    "NCCL communicator was aborted",
    "remote process exited",
    "ncclRemoteError",
    "ncclSystemError",
    "Watchdog caught collective operation timeout",
)
"""Words of gloo, TCPStore and NCCL for a peer that is gone or does not answer."""

_NO_MEMORY = ("can't allocate memory", "out of memory", "Cannot allocate memory")


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorReport:
    """Hold a rank's error file, ``attempts/NNN/error-rank-RRRRR.json``.

    Args:
        time_utc: When it was caught, ISO 8601 with microseconds.
        rank: Global rank.
        kind: See ``Kind``.
        error: One line: class and message.
        traceback: The whole of it; empty for an error that is the user's to mend, unless LLAMA_SCALE_DEBUG is set.
    """

    time_utc: str
    rank: int
    kind: Kind
    error: str
    traceback: str


def classify(error: BaseException) -> Kind:
    """Tell what kind of failure an exception is."""
    if isinstance(error, DataError):
        return "data"
    if isinstance(error, (SpecError, PluginError)):
        return "config"
    text = str(error)
    if isinstance(error, MemoryError) or any(words in text for words in _NO_MEMORY):
        return "oom"
    lost = isinstance(error, (RuntimeError, OSError)) and not isinstance(error, LlamaScaleError)
    if lost and any(words.lower() in text.lower() for words in _LOST_PEER):
        return "collateral"
    return "crash"


def exit_code(error: BaseException) -> int:
    """Return the exit status of a process that ends with this exception."""
    return error.exit_code if isinstance(error, LlamaScaleError) else LaunchError.exit_code


def exit_code_of_kind(kind: Kind) -> int:
    """Return the exit status of a run whose first failure is of this kind."""
    return {"config": SpecError.exit_code, "preempted": PREEMPTED_EXIT}.get(kind, LaunchError.exit_code)


def now_utc() -> str:
    """Return the time as error files have it."""
    return datetime.now(UTC).isoformat(timespec="microseconds")


def report(error: BaseException, *, rank: int) -> ErrorReport:
    """Describe an exception that a rank caught."""
    shown = not isinstance(error, LlamaScaleError) or bool(os.environ.get("LLAMA_SCALE_DEBUG"))
    return ErrorReport(
        time_utc=now_utc(),
        rank=rank,
        kind=classify(error),
        error=f"{type(error).__name__}: {error}".strip(),
        traceback="".join(traceback.format_exception(error)) if shown else "",
    )


def error_path(attempt_dir: Path, rank: int) -> Path:
    """Return the name of a rank's error file."""
    return attempt_dir / f"error-rank-{rank:05d}.json"


def write_json(path: Path, value: object) -> None:
    """Write a file whole or not at all.

    Raises:
        OSError: It cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        # RUN/attempts/NNN/FILE: the run keeps some room for such words.
        write_with_reserve(path.parents[2], lambda: _write_text(temporary, json.dumps(value, indent=1)))
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def write_report(attempt_dir: Path, found: ErrorReport) -> None:
    """Write a rank's error file.

    Raises:
        OSError: It cannot be written.
    """
    write_json(error_path(attempt_dir, found.rank), asdict(found))


def speaks(kind: Kind, *, local_rank: int, world_size: int) -> bool:
    """Tell whether a rank that failed so writes an error file.

    In a large run all ranks lose a peer at once: the first of each host speaks for it, and the others' logs have it.
    """
    return kind != "collateral" or stands_for_itself(local_rank=local_rank, world_size=world_size)


def read_reports(attempt_dir: Path, *, ranks: range | None = None) -> list[ErrorReport]:
    """Return the error files of an attempt, earliest first.

    Args:
        attempt_dir: Its folder.
        ranks: Only these; a large run's hosts each look at their own, not all at all.
    """
    every = attempt_dir.glob("error-rank-*.json")
    wanted = every if ranks is None else (error_path(attempt_dir, rank) for rank in ranks)
    texts = [path.read_text(encoding="utf-8") for path in wanted if ranks is None or path.exists()]
    return sorted((ErrorReport(**json.loads(text)) for text in texts), key=lambda item: item.time_utc)
