"""Which checkpoints stay, and what dead attempts left behind. No torch."""

from __future__ import annotations

import logging
import os
import shutil
from pathlib import Path

from llama_scale.checkpoint.manifest import list_complete, load_manifest
from llama_scale.errors import CheckpointError

logger = logging.getLogger(__name__)

BEST_BY = "validation_loss"
"""The manifest's metric whose lowest value marks the best checkpoint."""

ROWS_KEY = "validation_rows"
"""The manifest's metric that says how many rows it was measured on; losses over other rows are not compared."""


def temporary_folder(final: Path, *, token: str) -> Path:
    """Return the folder a checkpoint is written in before it gets its name ``final``."""
    return final.with_name(f"{final.name}.tmp-{token}")


def clean_unfinished(checkpoints_dir: Path) -> list[Path]:
    """Remove what killed saves left behind; call it only while nothing is being saved.

    A checkpoint that was being replaced (``step-N.old-TOKEN``) gets its name back if the new one did not come.

    Returns:
        The folders removed.

    Raises:
        CheckpointError: The folder exists and cannot be read.
    """
    removed: list[Path] = []
    list_complete(checkpoints_dir)  # raises if the folder cannot be read; glob would find nothing
    for folder in sorted(checkpoints_dir.glob("step-*.old-*")):
        final = folder.with_name(folder.name.partition(".old-")[0])
        if final.exists():
            _remove(folder, removed)
        else:
            folder.rename(final)
    for folder in sorted(checkpoints_dir.glob("step-*.tmp-*")):
        _remove(folder, removed)
    return removed


def prune(checkpoints_dir: Path, *, keep_last: int, keep_best: bool) -> list[Path]:
    """Remove complete checkpoints beyond the newest ``keep_last`` and, with ``keep_best``, the best one.

    Args:
        checkpoints_dir: The run's folder of checkpoints.
        keep_last: At least 1, so that the newest one is never removed.
        keep_best: Keep the one of the lowest validation loss too (of equals, the newest).

    Returns:
        The folders removed. What cannot be removed is logged and left.
    """
    assert keep_last >= 1
    complete = list_complete(checkpoints_dir)
    keep = set(complete[-keep_last:])
    if keep_best and len(complete) > keep_last:
        best = best_checkpoint(checkpoints_dir)
        keep |= {best} if best else set()
    removed: list[Path] = []
    for folder in complete:
        if folder not in keep:
            # Renamed first: a kill while its files go must not leave a folder that looks complete.
            doomed = temporary_folder(folder, token=f"gone-{os.urandom(4).hex()}")
            try:
                folder.rename(doomed)
            except OSError as error:
                logger.warning("cannot remove the old checkpoint %s: %s", folder, error.strerror)
                continue
            _remove(doomed, removed)
    return removed


def best_checkpoint(checkpoints_dir: Path) -> Path | None:
    """Return the complete checkpoint of the lowest validation loss, the newest of equals; None if none has one.

    Those that were validated on other rows than the newest one are left out.
    """
    best: tuple[float, Path] | None = None
    rows: float | None = None
    for folder in list_complete(checkpoints_dir):
        try:
            metrics = load_manifest(folder).metrics
        except CheckpointError as error:
            logger.warning("left out of the search for the best checkpoint: %s", error)
            continue
        loss = metrics.get(BEST_BY)
        if loss is None:
            continue
        if best is None or loss <= best[0] or metrics.get(ROWS_KEY) != rows:
            best = (loss, folder)
        rows = metrics.get(ROWS_KEY)
    return best[1] if best else None


def _remove(folder: Path, removed: list[Path]) -> None:
    try:
        shutil.rmtree(folder)
        removed.append(folder)
    except OSError as error:
        logger.warning("cannot remove %s: %s", folder, error.strerror)
