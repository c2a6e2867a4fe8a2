"""Read a GGUF file: metadata, and tensors of the few types that the test model uses, as fp32.

Source of the format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md; of the blocks: ggml-quants.c.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9

Array = npt.NDArray[np.float32]


def _f32(raw: npt.NDArray[np.uint8], count: int) -> Array:
    return raw[: count * 4].view(np.float32)


def _q4_1(raw: npt.NDArray[np.uint8], count: int) -> Array:
    """32 elements in 20 bytes: scale and minimum (fp16), then the low nibbles' half and the high nibbles' half."""
    blocks = raw[: count // 32 * 20].reshape(-1, 20)
    scale, minimum = blocks[:, :4].copy().view(np.float16).astype(np.float32).T[..., None]
    packed = blocks[:, 4:]
    levels = np.concatenate((packed & 15, packed >> 4), axis=1).astype(np.float32)
    return (levels * scale + minimum).reshape(-1)


def _q8_0(raw: npt.NDArray[np.uint8], count: int) -> Array:
    """32 elements in 34 bytes: scale (fp16), then int8."""
    blocks = raw[: count // 32 * 34].reshape(-1, 34)
    scale = blocks[:, :2].copy().view(np.float16).astype(np.float32)
    return (blocks[:, 2:].copy().view(np.int8).astype(np.float32) * scale).reshape(-1)


_TYPES: dict[int, Callable[[npt.NDArray[np.uint8], int], Array]] = {0: _f32, 3: _q4_1, 8: _q8_0}


class GgufFile:
    """A GGUF file of version 3, mapped into memory."""

    def __init__(self, path: Path) -> None:
        self._bytes = np.memmap(path, dtype=np.uint8, mode="r")
        self._at = 0
        magic, version = self._scalar("I"), self._scalar("I")
        assert (magic, version) == (0x46554747, 3), f"{path} is no GGUF file of version 3"
        tensors, pairs = self._scalar("Q"), self._scalar("Q")
        self.metadata: dict[str, Any] = {}
        for _ in range(pairs):
            key = self._string()
            self.metadata[key] = self._value(self._scalar("I"))
        self._tensors: dict[str, tuple[tuple[int, ...], int, int]] = {}
        for _ in range(tensors):
            name = self._string()
            shape = tuple(self._scalar("Q") for _ in range(self._scalar("I")))
            self._tensors[name] = (shape[::-1], self._scalar("I"), self._scalar("Q"))
        alignment = self.metadata.get("general.alignment", 32)
        self._data_at = -(-self._at // alignment) * alignment

    @property
    def names(self) -> list[str]:
        return list(self._tensors)

    def tensor(self, name: str) -> Array:
        """Return a tensor as fp32, slowest dim first."""
        shape, kind, offset = self._tensors[name]
        return _TYPES[kind](self._bytes[self._data_at + offset :], int(np.prod(shape))).reshape(shape)

    def _scalar(self, code: str) -> Any:
        (value,) = struct.unpack_from(f"<{code}", self._bytes, self._at)
        self._at += struct.calcsize(f"<{code}")
        return value

    def _string(self) -> str:
        length = self._scalar("Q")
        self._at += length
        return bytes(self._bytes[self._at - length : self._at]).decode()

    def _value(self, kind: int) -> Any:
        if kind == _STRING:
            return self._string()
        if kind == _ARRAY:
            inner, count = self._scalar("I"), self._scalar("Q")
            return [self._value(inner) for _ in range(count)]
        return self._scalar(_SCALARS[kind])
