"""Safetensors files at the level of bytes: headers written before the data is there, tensors read through mmap.

The library writes a file only from tensors that are all in memory; a checkpoint is larger than that. The format is
https://github.com/huggingface/safetensors#format; files of either side are read by the other (tested).
"""

from __future__ import annotations

import json
import math
import mmap
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from llama_scale.errors import CheckpointError

_DTYPES: dict[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_CODES = {dtype: code for code, dtype in _DTYPES.items()}
_MAX_HEADER_BYTES = 100_000_000  # the library's own limit


@dataclass(frozen=True, slots=True, kw_only=True)
class ArraySpec:
    """Describe one array of a file: element type, shape, and its bytes counted from the end of the header."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    begin: int
    end: int


def dtype_name(dtype: torch.dtype) -> str:
    """Return a dtype's name as manifests have it: ``float32``."""
    return str(dtype).removeprefix("torch.")


def flat_view(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return a tensor's bytes, row-major on the CPU, as a flat tensor of another type; a view where possible."""
    flat = tensor.detach().cpu().reshape(-1)
    if flat.stride(0) != 1:  # a single element keeps its old stride through `contiguous`
        flat = flat.clone(memory_format=torch.contiguous_format)
    return flat.view(dtype)


def layout_arrays(arrays: Iterable[tuple[str, torch.dtype, tuple[int, ...]]]) -> dict[str, ArraySpec]:
    """Place arrays one behind the other, widest elements first, so that each is aligned to its element size.

    Returns:
        Key -> place, in the order in which the bytes must be written.
    """
    placed: dict[str, ArraySpec] = {}
    begin = 0
    for key, dtype, shape in sorted(arrays, key=lambda a: -a[1].itemsize):  # stable: keeps the order of adding
        end = begin + dtype.itemsize * math.prod(shape)
        placed[key] = ArraySpec(dtype=dtype, shape=shape, begin=begin, end=end)
        begin = end
    return placed


def encode_header(arrays: Mapping[str, ArraySpec], *, metadata: Mapping[str, str]) -> bytes:
    """Return length word and JSON header, padded with spaces so that the data starts at a multiple of 8."""
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    for key, spec in arrays.items():
        header[key] = {"dtype": _CODES[spec.dtype], "shape": spec.shape, "data_offsets": (spec.begin, spec.end)}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


class SafetensorsFile:
    """One file, mapped into memory; pages are read when a tensor's elements are, and dropped by the kernel at will.

    Args:
        path: The file.

    Raises:
        CheckpointError: It cannot be opened, or is no whole safetensors file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with path.open("rb") as file:
                size = path.stat().st_size
                # Private and writable: torch refuses read-only memory with a warning; nothing is ever written.
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY) if size else None
        except OSError as error:
            raise CheckpointError(f"cannot open {path}: {error.strerror or error}; restore the file") from error
        self.metadata: dict[str, str] = {}
        self.arrays: dict[str, ArraySpec] = {}
        self._data_at = 0
        try:
            self._parse(self._map if self._map is not None else b"", size=size)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise CheckpointError(
                f"{path} is damaged: its safetensors header is not valid ({error}); restore the file from a copy"
            ) from None

    def _parse(self, data: mmap.mmap | bytes, *, size: int) -> None:
        length = int.from_bytes(data[:8], "little")
        if size < 8 or length > min(size - 8, _MAX_HEADER_BYTES):
            raise ValueError(f"the header should have {length} bytes, the file has {size}")
        header = json.loads(data[8 : 8 + length])
        self.metadata = header.pop("__metadata__", None) or {}
        self._data_at = 8 + length
        at = 0
        for key, row in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
            begin, end = row["data_offsets"]
            shape = tuple(int(n) for n in row["shape"])
            if row["dtype"] not in _DTYPES:
                raise ValueError(f"{key}: element type {row['dtype']!r} is not supported")
            spec = ArraySpec(dtype=_DTYPES[row["dtype"]], shape=shape, begin=begin, end=end)
            if begin != at or end - begin != spec.dtype.itemsize * math.prod(shape) or min(shape, default=0) < 0:
                raise ValueError(f"{key}: offsets {begin}:{end} do not fit shape {list(shape)}")
            self.arrays[key] = spec
            at = end
        if at != size - self._data_at:
            raise ValueError(f"the data should have {at} bytes, the file has {size - self._data_at}")

    def tensor(self, key: str) -> torch.Tensor:
        """Return an array as a view of the mapped file; copy what must outlive it.

        Raises:
            CheckpointError: The file has no such array.
        """
        spec = self.arrays.get(key)
        if spec is None:
            raise CheckpointError(f"{self.path} has no tensor {key!r}; the file was replaced or is damaged")
        numel = math.prod(spec.shape)
        if numel == 0 or self._map is None:
            return torch.empty(spec.shape, dtype=spec.dtype)
        flat = torch.frombuffer(self._map, dtype=spec.dtype, count=numel, offset=self._data_at + spec.begin)
        return flat.view(spec.shape)

    def release(self) -> None:
        """Let the kernel drop the pages read so far (they stay in the page cache)."""
        if self._map is not None:
            self._map.madvise(mmap.MADV_DONTNEED)
