"""Reshard: the same weights and optimizer state, cut for another layout, bit by bit equal."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from llama_scale.checkpoint.manifest import Manifest
from llama_scale.checkpoint.pieces import Piece
from llama_scale.checkpoint.reader import CheckpointReader
from llama_scale.checkpoint.writer import ShardWriter, WrittenShard, build_manifest, commit
from llama_scale.convert.folders import (
    Progress,
    Silence,
    check_space,
    check_target,
    checkpoint_faults,
    new_folder,
)
from llama_scale.convert.origin import keep_with
from llama_scale.convert.shards import Layout, check_layout, shard_parts, topology_record
from llama_scale.convert.threads import finish_shards, shards_at_once
from llama_scale.errors import ConvertError
from llama_scale.layout.boxes import Box
from llama_scale.layout.parameters import iter_parameters


@checkpoint_faults()
def reshard(source: Path, target: Path, *, layout: Layout, progress: Progress | None = None) -> Manifest:
    """Write a checkpoint cut for another layout.

    Training can resume from any layout's checkpoint without this; it saves the first load of a big model on many
    ranks from reading parts of many files.

    Args:
        source: A complete checkpoint.
        target: New checkpoint folder; it appears when everything is written.
        layout: The new layout.
        progress: Is told of the bytes written.

    Raises:
        ConvertError: The source is damaged, the layout does not divide the model, or writing failed; or the copy's
            digests differ from the source's.
    """
    check_target(target)
    reader = CheckpointReader(source, verify="hashes")
    stages = check_layout(reader.manifest.shape, layout)
    with new_folder(target) as tmp:
        check_space(tmp, needed=reader.manifest.total_bytes)
        written = _write(reader, tmp, layout=layout, progress=progress or Silence())
        manifest = build_manifest(
            written,
            **{
                name: getattr(reader.manifest, name)
                for name in Manifest.model_fields
                if name
                not in ("tensors", "shards", "parameter_digest", "versions", "created_utc", "topology", "format")
            },
            topology=topology_record(layout, stages),
        )
        if manifest.tensors != reader.manifest.tensors:
            raise ConvertError(f"the copy of {source} has other digests than the original; this is a bug")
        keep_with(tmp, made_of=source)
        commit(tmp, target, manifest)
    return manifest


def _write(reader: CheckpointReader, folder: Path, *, layout: Layout, progress: Progress) -> list[WrittenShard]:
    manifest = reader.manifest
    shape = manifest.shape
    stages = check_layout(shape, layout)
    table = {p.name for p in iter_parameters(shape)}
    progress.start("resharding", manifest.total_bytes)
    writers = []
    largest = 0
    for rank, rows in enumerate(shard_parts(shape, layout, stages)):
        parts = [
            (group, parameter.name, box)
            for group, tensors in manifest.tensors.items()
            for parameter, box in rows
            if parameter.name in tensors
        ]
        if rank == 0:  # what no layout cuts: random states, tensors of extensions
            parts += [
                (group, name, Box.whole(entry.shape))
                for group, tensors in manifest.tensors.items()
                for name, entry in tensors.items()
                if name not in table
            ]
        writer = ShardWriter(folder / f"shard-{rank:05d}.safetensors")
        for group, name, box in parts:
            entry = reader.entry(group, name)
            dtype: torch.dtype = getattr(torch, entry.dtype)
            piece = Piece(group=group, name=name, box=box, flat_start=None, numel=box.numel)
            load = _loader(reader, piece, progress=progress)
            largest = max(largest, piece.numel * dtype.itemsize)
            writer.add_lazy(piece, global_shape=entry.shape, dtype=dtype, load=load)
        writers.append(writer)
    return finish_shards(writers, at_once=shards_at_once(2 * largest))


def _loader(reader: CheckpointReader, piece: Piece, *, progress: Progress) -> Callable[[], torch.Tensor]:
    def load() -> torch.Tensor:
        tensor = reader.read(piece.group, piece.name, piece.box)
        reader.release()
        progress.advance(tensor.numel() * tensor.element_size())
        return tensor

    return load
