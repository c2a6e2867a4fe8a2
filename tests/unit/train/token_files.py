"""Token files for tests, written by hand in Megatron-Core's format."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np


def write_token_file(prefix: Path, documents: Sequence[Sequence[int] | np.ndarray], *, code: int = 8) -> str:
    """Write PREFIX.bin and PREFIX.idx with one sequence a document; returns the prefix."""
    dtype = {4: np.int32, 8: np.uint16}[code]
    tokens = [np.asarray(document, dtype) for document in documents]
    lengths = np.array([len(document) for document in tokens], np.int32)
    pointers = (np.cumsum(lengths, dtype=np.int64) - lengths) * np.dtype(dtype).itemsize
    Path(f"{prefix}.bin").write_bytes(b"".join(document.tobytes() for document in tokens))
    Path(f"{prefix}.idx").write_bytes(
        b"MMIDIDX\x00\x00"
        + struct.pack("<QBQQ", 1, code, len(tokens), len(tokens) + 1)
        + lengths.tobytes()
        + pointers.tobytes()
        + np.arange(len(tokens) + 1, dtype=np.int64).tobytes()
    )
    return str(prefix)
