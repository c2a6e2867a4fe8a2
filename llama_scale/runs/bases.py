"""Remove imported weights that no run of a folder needs any more, or that can be imported again."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from llama_scale.checkpoint.bases import BASES, Busy, bases_in, locked, remove, remove_unfinished, source_key
from llama_scale.checkpoint.manifest import load_manifest, newest_complete
from llama_scale.errors import CheckpointError, LaunchError
from llama_scale.runs.find import list_runs
from llama_scale.runs.folder import RunFolder
from llama_scale.runs.records import ENDED
from llama_scale.runs.view import GONE, NEVER, look


@dataclass(frozen=True, slots=True, kw_only=True)
class CleanedBase:
    """Tell what became of one folder of imported weights.

    Args:
        folder: The folder.
        source: Hugging Face folder that it was made of; empty if that cannot be told.
        size: Its bytes.
        kept: Why it stays; empty: it was removed.
    """

    folder: str
    source: str
    size: int
    kept: str = ""


def clean_bases(runs_dir: Path) -> list[CleanedBase]:
    """Remove the imported weights of a folder of runs, except those that a run may still have to read from here.

    Raises:
        LaunchError: The folder cannot be read or changed.
    """
    bases = bases_in(runs_dir)
    try:
        keys = {path.name.removeprefix(".").partition(".")[0] for path in bases.iterdir()} if bases.is_dir() else set()
        runs = list_runs(runs_dir)
        return [cleaned for key in sorted(keys) if (cleaned := _clean(bases, key, runs)) is not None]
    except OSError as error:
        raise LaunchError(f"cannot clean {error.filename or bases}: {error.strerror}") from error


def _clean(bases: Path, key: str, runs: Sequence[RunFolder]) -> CleanedBase | None:
    folder = bases / key
    source = _source(folder)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    found = CleanedBase(folder=str(folder), source=source, size=size)
    try:
        with locked(bases, key, wait=False):
            remove_unfinished(bases, key)
            if not folder.exists():
                return None
            kept = _reason_to_keep(key, source, list(_users(key, runs)))
            if not kept:
                remove(bases, key)
    except Busy:
        kept = "it is being imported"
    return CleanedBase(folder=found.folder, source=found.source, size=found.size, kept=kept)


def _source(folder: Path) -> str:
    try:
        return str(json.loads((folder / "report.json").read_bytes())["source"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def _reason_to_keep(key: str, source: str, users: Sequence[RunFolder]) -> str:
    running = [run.name for run in users if look(run).state not in {*ENDED, GONE, NEVER}]
    if running:
        return f"{running[0]} is running on it"
    try:
        same = bool(source) and source_key(Path(source)) == key
    except OSError:
        same = False
    if users and not same:
        return f"{users[0].name} needs it, and {source or 'its source'} is gone or has changed"
    return ""


def _users(key: str, runs: Sequence[RunFolder]) -> Iterator[RunFolder]:
    """Yield the runs that would read these weights again: to begin, or because their base is frozen."""
    for run in runs:
        start = run.load_start()
        place = Path(start.weights) if start is not None and start.weights is not None else None
        if place is None or place.name != key or place.parent.name != BASES:
            continue
        try:
            newest = newest_complete(run.checkpoints)
            if newest is None or load_manifest(newest).base is not None:
                yield run
        except CheckpointError:
            yield run
