"""Read and write the safetensors of a Hugging Face folder one tensor at a time, whatever their total size.

Only safetensors are read: a pickled ``.bin`` runs code when it is loaded.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import torch

from llama_scale.checkpoint.safetensors_file import SafetensorsFile, encode_header, layout_arrays
from llama_scale.errors import CheckpointError, ConvertError

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"


def tensor_bytes(tensor: torch.Tensor) -> memoryview:
    """Return a contiguous CPU tensor's bytes without a copy."""
    flat: Any = tensor.detach().reshape(-1).view(torch.uint8).numpy()
    return memoryview(flat)


def tensor_sha256(tensor: torch.Tensor) -> str:
    """Return the SHA-256 of a contiguous tensor's bytes."""
    return hashlib.sha256(tensor_bytes(tensor)).hexdigest()


class HfWeights:
    """Know every tensor of a Hugging Face folder, and map them one by one.

    Args:
        folder: Folder with ``model.safetensors`` or ``model.safetensors.index.json`` and its shards.

    Raises:
        ConvertError: There are no safetensors, the index is damaged, or a file is missing, truncated or damaged.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._files: dict[str, SafetensorsFile] = {}
        for path, expected in _weight_files(folder).items():
            self._scan(path, expected)

    def _scan(self, path: Path, expected: set[str]) -> None:
        if not path.is_file():
            raise ConvertError(f"{path} is missing; download the folder again")
        try:
            file = SafetensorsFile(path)
        except CheckpointError as error:
            raise ConvertError(
                f"{error}: it is truncated, or no weights file that can be converted; download it again"
            ) from error
        for name in sorted(expected - file.arrays.keys()):
            raise ConvertError(f"{self.folder / INDEX} says that {path.name} holds {name!r}, but it does not")
        for name in file.arrays:
            if name in self._files:
                raise ConvertError(
                    f"{name!r} is stored twice in {self.folder}: in {self._files[name].path.name} and {path.name}"
                )
            self._files[name] = file

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all tensors."""
        return tuple(self._files)

    def shape(self, name: str) -> tuple[int, ...]:
        """Return a tensor's shape."""
        return self._files[name].arrays[name].shape

    def dtype(self, name: str) -> torch.dtype:
        """Return a tensor's element type."""
        return self._files[name].arrays[name].dtype

    def path(self, name: str) -> Path:
        """Return the file that holds a tensor."""
        return self._files[name].path

    def map(self, name: str) -> torch.Tensor:
        """Return a tensor as a view of its file; copy what is to be kept, then call ``release``."""
        return self._files[name].tensor(name)

    def release(self, name: str) -> None:
        """Let the kernel drop the pages of this tensor's file, to keep resident memory low."""
        self._files[name].release()

    @property
    def total_bytes(self) -> int:
        """Bytes of all files."""
        return sum(path.stat().st_size for path in {file.path for file in self._files.values()})


def _weight_files(folder: Path) -> dict[Path, set[str]]:
    """Return the folder's weight files with the names that the index expects in each (none without an index)."""
    if not folder.is_dir():
        raise ConvertError(f"{folder} is not a folder; give a Hugging Face model folder (config.json, *.safetensors)")
    single, index = folder / SINGLE, folder / INDEX
    if single.exists() and index.exists():
        raise ConvertError(f"{folder} holds both {SINGLE} and {INDEX}; remove the one that is not the model")
    if single.exists():
        return {single: set()}
    if index.exists():
        return _read_index(index)
    refuse_pickled(folder)
    raise ConvertError(f"{folder} has neither {SINGLE} nor {INDEX}; it is no complete Hugging Face model folder")


def refuse_pickled(folder: Path) -> None:
    """Refuse a folder whose weights are pickled: loading them runs code.

    Raises:
        ConvertError: There are such files, and no safetensors.
    """
    if not folder.is_dir() or any(folder.glob("*.safetensors")):
        return
    pickled = sorted(p.name for p in folder.iterdir() if p.suffix in (".bin", ".pt", ".pth", ".ckpt"))
    if pickled:
        raise ConvertError(
            f"{folder} has only pickled weights ({pickled[0]}), which run code when they are loaded; only safetensors "
            "are read. Convert them once, where you trust them: `AutoModelForCausalLM.from_pretrained(DIR)"
            ".save_pretrained(NEW_DIR)`"
        )


def _read_index(index: Path) -> dict[Path, set[str]]:
    try:
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        pairs = [(str(name), str(file)) for name, file in weight_map.items()]
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        raise ConvertError(f"{index} is no index of safetensors ({type(error).__name__}: {error})") from None
    files: dict[Path, set[str]] = {}
    for name, file in pairs:
        if Path(file).name != file:
            raise ConvertError(f"{index} names the file {file!r}; only files beside the index are read")
        files.setdefault(index.parent / file, set()).add(name)
    return files


@dataclass(frozen=True, slots=True, kw_only=True)
class Outline:
    """Announce a tensor that will be written: the header of a safetensors file comes before its data."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor."""
        return math.prod(self.shape) * int(self.dtype.itemsize)


class HfWriter:
    """Write the weights of a Hugging Face folder tensor by tensor, in the order that was announced.

    Several files with an index when they do not fit into ``shard_bytes``, else one file. Layout of the file:
    https://huggingface.co/docs/safetensors#format.

    Args:
        folder: Existing folder to write to.
        outlines: All tensors, in the order in which ``write`` will be called.
        shard_bytes: Most bytes of tensors in one file; a tensor that is bigger gets a file of its own.
    """

    def __init__(self, folder: Path, *, outlines: Sequence[Outline], shard_bytes: int) -> None:
        self._folder = folder
        self._outlines = list(outlines)
        groups = _group(self._outlines, shard_bytes)
        count = len(groups)
        self._files = {
            outline.name: SINGLE if count == 1 else f"model-{number:05d}-of-{count:05d}.safetensors"
            for number, group in enumerate(groups, 1)
            for outline in group
        }
        self._first = {group[0].name: group for group in groups}
        self._next = 0
        self._file: BinaryIO | None = None

    def __enter__(self) -> HfWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()

    def write(self, name: str, tensor: torch.Tensor) -> None:
        """Append one tensor; it must be the next one announced, with that shape and dtype."""
        outline = self._outlines[self._next]
        assert (name, tuple(tensor.shape), tensor.dtype) == (outline.name, outline.shape, outline.dtype)
        if name in self._first:
            if self._file is not None:
                self._file.close()
            self._file = (self._folder / self._files[name]).open("wb")
            self._file.write(_header(self._first[name]))
        assert self._file is not None
        self._file.write(tensor_bytes(tensor))
        self._next += 1

    def finish(self) -> None:
        """Close the last file and write the index if there is more than one."""
        assert self._next == len(self._outlines)
        if self._file is not None:
            self._file.close()
        if len(self._first) > 1:
            index = {
                "metadata": {"total_size": sum(o.nbytes for o in self._outlines)},
                "weight_map": dict(sorted(self._files.items())),
            }
            (self._folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")

    @property
    def files(self) -> Mapping[str, str]:
        """Tensor name -> file name."""
        return self._files


def _group(outlines: Sequence[Outline], shard_bytes: int) -> list[list[Outline]]:
    groups: list[list[Outline]] = []
    size = 0
    for outline in outlines:
        if not groups or size + outline.nbytes > shard_bytes:
            groups.append([])
            size = 0
        groups[-1].append(outline)
        size += outline.nbytes
    return groups


def _header(outlines: Sequence[Outline]) -> bytes:
    arrays = layout_arrays((o.name, o.dtype, o.shape) for o in outlines)
    assert list(arrays) == [o.name for o in outlines], "files of mixed element types are not written"
    return encode_header(arrays, metadata={"format": "pt"})
