"""Reading: any box of any logical tensor out of a checkpoint of any layout, one tensor at a time."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

import torch

from llama_scale.checkpoint.manifest import TensorEntry, load_manifest, verify_files
from llama_scale.checkpoint.pieces import Piece, check_cover, range_boxes
from llama_scale.checkpoint.safetensors_file import SafetensorsFile, dtype_name
from llama_scale.errors import CheckpointError
from llama_scale.layout.boxes import Box

_HASH_THREADS = min(4, os.cpu_count() or 1)


class CheckpointReader:
    """Assemble boxes of logical tensors from the pieces that overlap them.

    Files are mapped when first needed and never copied whole: memory is the boxes that are asked for.

    Args:
        folder: A complete checkpoint, e.g. ``RUN/checkpoints/step-00000100``.
        verify: ``sizes`` checks that every shard is there with its size; ``hashes`` its SHA-256 as well (which reads
            everything once: ranks that load together share that work, see ``train.checkpointing``).

    Raises:
        CheckpointError: The manifest or a shard is missing or damaged; the message names it.
    """

    def __init__(self, folder: Path, *, verify: Literal["sizes", "hashes"] = "sizes") -> None:
        self.folder = Path(folder)
        self.manifest = load_manifest(self.folder)
        verify_files(self.folder, manifest=self.manifest, hashes=verify == "hashes", threads=_HASH_THREADS)
        self._files: dict[int, SafetensorsFile] = {}
        self._covered: set[tuple[str, str]] = set()  # tensors whose pieces were found to be whole

    def tensors(self, group: str) -> tuple[str, ...]:
        """Name the tensors of a group; empty if the checkpoint has none."""
        return tuple(self.manifest.tensors.get(group, {}))

    def entry(self, group: str, name: str) -> TensorEntry:
        """Return shape, dtype and digest of a tensor.

        Raises:
            CheckpointError: The checkpoint does not have it.
        """
        entry = self.manifest.tensors.get(group, {}).get(name)
        if entry is None:
            held = ", ".join(sorted(self.manifest.tensors)) or "nothing"
            raise CheckpointError(
                f"checkpoint {self.folder} has no tensor {group}/{name} (it has the groups {held}); "
                "it was made for another model, or without optimizer state"
            )
        return entry

    def read(self, group: str, name: str, box: Box | None = None, out: torch.Tensor | None = None) -> torch.Tensor:
        """Return one box of a tensor, in its stored dtype unless ``out`` has another.

        Args:
            group: Kind of tensor.
            name: Its name.
            box: The part wanted; default: all of it.
            out: Box-shaped tensor to fill, on any device; default: a new one on the CPU.

        Raises:
            CheckpointError: There is no such tensor, the box lies outside it, or pieces are missing.
        """
        entry = self.entry(group, name)
        whole = Box.whole(entry.shape)
        box = whole if box is None else box
        if len(box.shape) != len(entry.shape) or (box.numel and whole.intersect(box) != box):
            raise CheckpointError(
                f"{group}/{name} has the shape {list(entry.shape)} in {self.folder}; the model wants offset "
                f"{list(box.offset)}, shape {list(box.shape)}: the checkpoint is of another model"
            )
        if out is None:
            out = torch.empty(box.shape, dtype=getattr(torch, entry.dtype))
        assert out.shape == box.shape, f"out has shape {list(out.shape)}, the box {list(box.shape)}"
        located = self.manifest.locations.get((group, name), [])
        if (group, name) not in self._covered:
            try:
                check_cover(entry.shape, (piece for _, piece in located))
            except CheckpointError as error:
                raise CheckpointError(f"checkpoint {self.folder} is damaged: {error}") from None
            self._covered.add((group, name))
        for index, piece in located:
            self._copy(index, piece, box, out, dtype=entry.dtype)
        return out

    def read_range(self, group: str, name: str, box: Box, *, start: int, numel: int) -> torch.Tensor:
        """Return the flat range ``start .. start + numel`` of a box's elements, row-major: ``[numel]``.

        Raises:
            CheckpointError: As for ``read``.
        """
        out = torch.empty(numel, dtype=getattr(torch, self.entry(group, name).dtype))
        for part, at in range_boxes(box, start=start, numel=numel):
            self.read(group, name, part, out=out[at : at + part.numel].view(part.shape))
        return out

    def _copy(self, index: int, piece: Piece, box: Box, out: torch.Tensor, *, dtype: str) -> None:
        """Copy what ``piece`` holds of ``box`` into ``out``, if anything."""
        if box.numel == 0 or piece.box.intersect(box) is None:
            return
        stored: torch.Tensor | None = None
        for part, at in piece.sub_boxes():
            common = part.intersect(box)
            if common is None:
                continue
            if stored is None:
                stored = self._stored(index, piece, dtype=dtype)
            source = stored[at : at + part.numel].view(part.shape)
            out[common.slices_within(box)].copy_(source[common.slices_within(part)])

    def _stored(self, index: int, piece: Piece, *, dtype: str) -> torch.Tensor:
        file = self._files.get(index)
        if file is None:
            file = self._files[index] = SafetensorsFile(self.folder / self.manifest.shards[index].file)
        tensor = file.tensor(piece.key)
        if dtype_name(tensor.dtype) != dtype or tuple(tensor.shape) != piece.stored_shape:
            raise CheckpointError(
                f"{file.path} is damaged: {piece.key} has {dtype_name(tensor.dtype)} {list(tensor.shape)}, the "
                f"manifest says {dtype} {list(piece.stored_shape)}"
            )
        return tensor.view(-1)

    def release(self) -> None:
        """Let the kernel drop the pages read so far, to keep resident memory low."""
        for file in self._files.values():
            file.release()
