"""Write token files in Megatron-Core's IndexedDataset format (.bin/.idx), one sequence a document.

Format: ``megatron/core/datasets/indexed_dataset.py``, ``_IndexWriter`` (version 1, no mode bytes).
"""

from __future__ import annotations

import hashlib
import os
import struct
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import numpy as np

from llama_scale.data.output import explain_os_errors, scratch_path
from llama_scale.errors import DataError

_MAGIC = b"MMIDIDX\x00\x00"
_UINT16_LIMIT = 65500
"""Largest vocabulary stored in 16 bits (``DType.optimal_dtype`` there)."""


def token_dtype(vocab_size: int) -> type[np.uint16] | type[np.int32]:
    """Return the type that Megatron-Core stores ids of this vocabulary in."""
    return np.uint16 if vocab_size < _UINT16_LIMIT else np.int32


class TokenFileWriter:
    """Write PREFIX.bin and PREFIX.idx; nothing appears under these names before ``commit``.

    Args:
        prefix: Path without suffix; its folder must exist.
        vocab_size: Decides the integer type.

    Attributes:
        counts: int64 ``[vocab_size]``, how often each id was written.
    """

    def __init__(self, prefix: Path, *, vocab_size: int) -> None:
        self.bin = prefix.with_name(prefix.name + ".bin")
        self.idx = prefix.with_name(prefix.name + ".idx")
        self.dtype = token_dtype(vocab_size)
        self.counts: np.ndarray = np.zeros(vocab_size, np.int64)
        self.lengths: list[int] = []
        self._digest = hashlib.sha256()
        self._scratch = {path: scratch_path(path) for path in (self.bin, self.idx)}
        with explain_os_errors(self.bin):
            self._file: BinaryIO = self._scratch[self.bin].open("wb")

    def __enter__(self) -> TokenFileWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with suppress(OSError):  # closing flushes, which fails once more on a full disk
            self._file.close()
        for scratch in self._scratch.values():
            scratch.unlink(missing_ok=True)

    def add(self, ids: np.ndarray, lengths: list[int]) -> None:
        """Append documents.

        Args:
            ids: Their ids one after the other, int64, all below ``vocab_size``.
            lengths: Ids of each document, at least one.

        Raises:
            DataError: The disk is full.
        """
        content = ids.astype(self.dtype).tobytes()
        self.counts += np.bincount(ids, minlength=len(self.counts))
        self.lengths += lengths
        self._digest.update(content)
        with explain_os_errors(self.bin):
            self._file.write(content)

    def commit(self) -> dict[str, str]:
        """Finish both files and give them their names, the index last.

        Returns:
            Suffix -> SHA-256 hex of ``bin`` and ``idx``.

        Raises:
            DataError: There is no token, or the disk is full.
        """
        if not self.lengths:
            raise DataError("the input holds no text: every document is empty; nothing was written")
        index = self._index()
        with explain_os_errors(self.bin):
            self._file.flush()
            os.fsync(self._file.fileno())
            with self._scratch[self.idx].open("wb") as file:
                file.write(index)
                file.flush()
                os.fsync(file.fileno())
            self.idx.unlink(missing_ok=True)  # an old index never stands beside new tokens
            self._scratch[self.bin].replace(self.bin)
            self._scratch[self.idx].replace(self.idx)
        return {"bin": self._digest.hexdigest(), "idx": hashlib.sha256(index).hexdigest()}

    def _index(self) -> bytes:
        lengths = np.array(self.lengths, np.int32)
        pointers = (np.cumsum(lengths, dtype=np.int64) - lengths) * np.dtype(self.dtype).itemsize
        code = {np.uint16: 8, np.int32: 4}[self.dtype]
        head = _MAGIC + struct.pack("<QBQQ", 1, code, len(lengths), len(lengths) + 1)
        index: bytes = (
            head + lengths.tobytes() + pointers.tobytes() + np.arange(len(lengths) + 1, dtype=np.int64).tobytes()
        )
        return index
