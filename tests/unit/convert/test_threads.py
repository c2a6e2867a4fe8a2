"""Shards written beside each other, and torch's own threads kept out of it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from llama_scale.checkpoint.pieces import Piece
from llama_scale.checkpoint.writer import ShardWriter
from llama_scale.convert.threads import finish_shards, one_torch_thread, shards_at_once
from llama_scale.errors import CheckpointError
from llama_scale.layout.boxes import Box


def writer(path: Path, value: float) -> ShardWriter:
    tensor = torch.full((4, 4), value)
    found = ShardWriter(path)
    piece = Piece(group="model", name=f"w{value}", box=Box.whole((4, 4)), flat_start=None, numel=16)
    found.add_lazy(piece, global_shape=(4, 4), dtype=torch.float32, load=lambda: tensor)
    return found


def test_torch_gets_its_threads_back() -> None:
    before = torch.get_num_threads()
    with pytest.raises(KeyError), one_torch_thread():
        assert torch.get_num_threads() == 1
        raise KeyError
    assert torch.get_num_threads() == before


@pytest.mark.parametrize("at_once", [1, 2, 5])
def test_shards_come_back_in_order_however_many_are_written_at_once(tmp_path: Path, at_once: int) -> None:
    writers = [writer(tmp_path / f"shard-{n}", float(n)) for n in range(5)]
    written = finish_shards(writers, at_once=at_once)
    assert [shard.entry.file for shard in written] == [f"shard-{n}" for n in range(5)]
    assert [list(shard.tensors) for shard in written] == [[("model", f"w{float(n)}")] for n in range(5)]


@pytest.mark.parametrize("at_once", [1, 2])
def test_a_shard_that_fails_is_raised(tmp_path: Path, at_once: int) -> None:
    writers = [writer(tmp_path / f"shard-{n}", float(n)) for n in range(6)]
    (tmp_path / "shard-1").touch()
    with pytest.raises(CheckpointError, match="shard-1 exists; another process is writing"):
        finish_shards(writers, at_once=at_once)


def test_pieces_that_fill_the_memory_are_written_one_at_a_time() -> None:
    assert shards_at_once(50_000_000) == 2
    assert shards_at_once(500_000_000) == 1
