"""One save, as every rank does it: snapshot, write the own shard, and let rank 0 make the whole count.

All communication goes through a gloo group of its own, so that a save can run in a thread beside the training.
"""

from __future__ import annotations

import logging
import shutil
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from llama_scale.checkpoint.retention import prune
from llama_scale.checkpoint.writer import (
    ShardWriter,
    WrittenShard,
    build_manifest,
    check_free_space,
    commit,
    sync_folder,
)
from llama_scale.errors import CheckpointError
from llama_scale.train.engine import LocalPiece

logger = logging.getLogger(__name__)
T = TypeVar("T")


class Ranks:
    """The ranks that save together, over gloo; with one process nothing is sent."""

    def __init__(self) -> None:
        self.rank = dist.get_rank() if dist.is_initialized() else 0
        self.size = dist.get_world_size() if dist.is_initialized() else 1
        self._group = dist.new_group(backend="gloo") if self.size > 1 else None

    def gather(self, value: T) -> list[T] | None:
        """Return every rank's value on rank 0, None elsewhere."""
        if self._group is None:
            return [value]
        found: list[Any] | None = [None] * self.size if self.rank == 0 else None
        dist.gather_object(value, found, dst=0, group=self._group)
        return found

    def share(self, value: T | None) -> T:
        """Return rank 0's value on every rank."""
        if self._group is None:
            return value  # type: ignore[return-value]
        box: list[Any] = [value]
        dist.broadcast_object_list(box, src=0, group=self._group)
        return box[0]  # type: ignore[no-any-return]

    def from_first(self, make: Callable[[], T]) -> T:
        """Return what ``make`` returns on rank 0, on every rank.

        Raises:
            CheckpointError: ``make`` raised it; on every rank.
        """
        answer: tuple[T | None, str | None] | None = None
        if self.rank == 0:
            try:
                answer = (make(), None)
            except CheckpointError as error:
                answer = (None, str(error))
        value, problem = self.share(answer)
        if problem is not None:
            raise CheckpointError(problem)
        return value  # type: ignore[return-value]

    def sum_int64(self, values: torch.Tensor) -> torch.Tensor:
        """Return the sum over the ranks, mod 2^64 (two's complement)."""
        if self._group is not None:
            dist.all_reduce(values, group=self._group)
        return values

    def first_error(self, error: str | None) -> str | None:
        """Return the error of the lowest rank that has one, on every rank."""
        errors = self.gather(error)
        return self.share(None if errors is None else next((e for e in errors if e), None))

    def close(self) -> None:
        """Give the group back; nothing can be sent afterwards."""
        if self._group is not None and dist.is_initialized():
            dist.destroy_process_group(self._group)
        self._group = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SaveRequest:
    """Describe one save; equal on all ranks.

    Args:
        final: Name of the finished checkpoint's folder.
        tmp: Folder it is written in.
        keep_last: Complete checkpoints to keep, this one included.
        keep_best: Keep the best one too.
        facts: Fields of the manifest that do not follow from the shards.
    """

    final: Path
    tmp: Path
    keep_last: int
    keep_best: bool
    facts: dict[str, Any]


def write_checkpoint(request: SaveRequest, pieces: Iterable[LocalPiece], ranks: Ranks) -> str | None:
    """Write this rank's pieces, then (rank 0) the manifest, and rename. Collective.

    Returns:
        None when the checkpoint is complete and on the disk; else why there is none (equal on all ranks). What was
        complete before is untouched then, and nothing of the failed one is left.
    """
    started = time.monotonic()
    writer = ShardWriter(request.tmp / f"shard-{ranks.rank:05d}.safetensors")
    for piece in pieces:
        writer.add(piece)
    sizes = ranks.gather(writer.data_bytes)
    problem = ranks.share(_attempt(lambda: _prepare(request, sizes)) if sizes is not None else None)
    if problem is not None:
        return problem
    written: list[WrittenShard] = []
    error = _attempt(lambda: written.append(writer.finish()))
    answers = ranks.gather((written[0] if written else None, error))
    if answers is None:
        return ranks.share(None)
    problem = next((e for _, e in answers if e), None)
    if problem is None:
        shards = [shard for shard, _ in answers if shard is not None]
        problem = _attempt(lambda: _complete(request, shards))
    if problem is None:
        size = sum(shard.entry.bytes for shard in shards)
        logger.info("saved %s: %d bytes in %.1f s", request.final.name, size, time.monotonic() - started)
    else:
        shutil.rmtree(request.tmp, ignore_errors=True)
    return ranks.share(problem)


def _attempt(action: Callable[[], object]) -> str | None:
    """Run an action that must not leave the other ranks waiting; return what went wrong as text."""
    try:
        action()
    except CheckpointError as error:
        return str(error)
    except Exception as error:
        logger.exception("saving a checkpoint failed")
        return f"saving a checkpoint failed: {type(error).__name__}: {error}"
    return None


def _prepare(request: SaveRequest, sizes: list[int]) -> None:
    try:
        request.tmp.parent.mkdir(parents=True, exist_ok=True)
        check_free_space(request.tmp.parent, needed_bytes=sizes)
        request.tmp.mkdir()
        sync_folder(request.tmp.parent)
    except OSError as error:
        raise CheckpointError(
            f"cannot save into {request.tmp.parent}: {error.strerror or error}; check the folder's permissions"
        ) from error


def _complete(request: SaveRequest, shards: list[WrittenShard]) -> None:
    commit(request.tmp, request.final, build_manifest(shards, **request.facts))
    removed = prune(request.final.parent, keep_last=request.keep_last, keep_best=request.keep_best)
    if removed:
        logger.info("removed %d old checkpoint(s)", len(removed))


class HostBuffers:
    """Host memory that snapshots are copied into, kept between saves: touching new pages costs more than the copy."""

    def __init__(self) -> None:
        self._buffers: dict[tuple[object, ...], torch.Tensor] = {}
        self._reserving: threading.Thread | None = None

    def reserve(self, pieces: Iterable[LocalPiece]) -> None:
        """Make the memory for such pieces ready in a thread, so that the first snapshot is as fast as the others."""
        wanted = [(_identity(piece), piece.tensor.detach()) for piece in pieces]

        def touch() -> None:
            for ident, like in wanted:
                self._buffers[ident] = _host_buffer(like).zero_()
            wanted.clear()

        self._reserving = threading.Thread(target=touch, name="checkpoint-memory", daemon=True)
        self._reserving.start()

    def snapshot(self, pieces: Iterable[LocalPiece]) -> list[LocalPiece]:
        """Copy pieces to the host; the returned ones stay valid until the next call."""
        if self._reserving is not None:
            self._reserving.join()
            self._reserving = None
        copies: list[LocalPiece] = []
        on_device = False
        for piece in pieces:
            source = piece.tensor.detach()
            ident = _identity(piece)
            buffer = self._buffers.get(ident)
            if buffer is None:
                buffer = self._buffers[ident] = _host_buffer(source)
            buffer.copy_(source, non_blocking=True)
            on_device |= source.is_cuda
            copies.append(replace(piece, tensor=buffer))
        if on_device:
            torch.cuda.current_stream().synchronize()
        return copies


def _identity(piece: LocalPiece) -> tuple[object, ...]:
    return (piece.group, piece.name, piece.box, piece.flat_start, piece.tensor.numel(), piece.tensor.dtype)


def _host_buffer(like: torch.Tensor) -> torch.Tensor:
    return torch.empty(like.shape, dtype=like.dtype, pin_memory=like.is_cuda)


class BackgroundSave:
    """A save that runs beside the training; at most one exists at a time."""

    def __init__(self, request: SaveRequest, pieces: list[LocalPiece], ranks: Ranks) -> None:
        self.request = request
        self._problem: str | None = None
        # Not a daemon: an interpreter that ends normally waits for the write.
        self._thread = threading.Thread(target=self._run, args=(pieces, ranks), name="checkpoint")
        self._thread.start()

    def _run(self, pieces: list[LocalPiece], ranks: Ranks) -> None:
        try:
            self._problem = write_checkpoint(self.request, pieces, ranks)
        except Exception as error:  # a peer died: the collective fails here, the training sees its own error
            self._problem = f"saving {self.request.final.name} was cut off: {error}"

    def wait(self) -> str | None:
        """Wait for the end; None if the checkpoint is complete, else why not."""
        self._thread.join()
        return self._problem
