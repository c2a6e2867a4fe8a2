"""Threads of a conversion: the kernel and the hashes work beside each other, torch's own threads stay out of it.

Torch cuts every large copy over its thread pool and waits for the slowest; on a machine with other work that wait is
most of the time (measured on 2 cores: 2.5 s of waiting for 0.1 s of copying). Whole shards are written beside each
other instead, and sources are hashed while targets are written: hashing, writing and flushing hold no Python lock.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch

from llama_scale.checkpoint.writer import ShardWriter, WrittenShard

_BESIDE = 2  # shards written at a time
_BUDGET_BYTES = 800_000_000  # most memory for that; more than this, and shards are written one after the other


@contextlib.contextmanager
def one_torch_thread() -> Iterator[None]:
    """Let torch copy with the calling thread alone inside the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def shards_at_once(piece_bytes: int) -> int:
    """Return how many shards to write beside each other.

    Args:
        piece_bytes: Memory that the largest piece takes while it is written, copies included.
    """
    return _BESIDE if _BESIDE * piece_bytes <= _BUDGET_BYTES else 1


def finish_shards(writers: Sequence[ShardWriter], *, at_once: int) -> list[WrittenShard]:
    """Write shards, ``at_once`` beside each other; return them in order.

    Raises:
        CheckpointError: The first shard that failed; shards not begun by then are left out.
    """
    with one_torch_thread(), ThreadPoolExecutor(at_once, thread_name_prefix="shard") as pool:
        running = [pool.submit(writer.finish) for writer in writers]
        try:
            return [shard.result() for shard in running]
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
