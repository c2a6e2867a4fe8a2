"""Read token files in Megatron-Core's IndexedDataset format (.bin/.idx) through mmap.

Megatron-Core's own reader takes seconds to import and answers a damaged file with an assertion or with whatever
bytes it finds; this one checks sizes against each other first.
Format: ``megatron/core/datasets/indexed_dataset.py``, ``_IndexWriter``.
"""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np

from llama_scale.errors import DataError

_MAGIC = b"MMIDIDX\x00\x00"
_HEADER = struct.Struct("<9sQBQQ")
_DTYPES = {1: np.uint8, 2: np.int8, 3: np.int16, 4: np.int32, 5: np.int64, 8: np.uint16}
"""Codes of integer types; 6 and 7 are floats, which are no token ids."""


class TokenFile:
    """Give read-only access to the documents of one .bin/.idx pair.

    Attributes:
        lengths: int64 tokens of each document.
        starts: int64 first token of each document, counted from the start of the .bin file.
        tokens: All ids, in the file's own integer type.

    Raises:
        DataError: A file is missing, not in this format, or the two do not fit each other.
    """

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix
        index, tokens = Path(prefix + ".idx"), Path(prefix + ".bin")
        for path in (index, tokens):
            if not path.is_file():
                raise DataError(
                    f"token file {path} is missing; data.blend.path names the common prefix of a .bin/.idx pair, "
                    "which `llama-scale data build` writes"
                )
        sequence_lengths, pointers, document_ends, dtype = _read_index(index)
        _check_tokens(tokens, sequence_lengths, pointers, dtype)
        first = np.concatenate([[0], np.cumsum(sequence_lengths, dtype=np.int64)])
        bounds = first[document_ends]
        self.starts: np.ndarray = bounds[:-1]
        self.lengths: np.ndarray = np.diff(bounds)
        self.tokens: np.ndarray = (
            np.memmap(tokens, dtype=dtype, mode="r") if tokens.stat().st_size else np.zeros(0, dtype)
        )

    def __len__(self) -> int:
        return len(self.lengths)

    def read(self, document: int, start: int, stop: int) -> np.ndarray:
        """Return tokens ``start`` to ``stop`` of a document in the file's own integer type (a view)."""
        first = int(self.starts[document])
        return self.tokens[first + start : first + stop]


def _read_index(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray, type[np.integer]]:
    """Return sequence lengths, sequence byte offsets, document bounds (in sequences) and the token type."""
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(_HEADER.size)
    if len(head) < _HEADER.size or not head.startswith(_MAGIC):
        raise DataError(
            f"{path} is not an index of token files (it does not begin with {_MAGIC[:7]!r}, or is cut off in its "
            f"first {_HEADER.size} bytes); build it again with `llama-scale data build`"
        )
    _, version, code, sequences, bounds = _HEADER.unpack(head)
    if version != 1:
        raise DataError(f"{path} has index version {version}; only version 1 can be read")
    if code not in _DTYPES:
        raise DataError(f"{path} has token type code {code}; token ids need an integer type: {sorted(_DTYPES)}")
    expected = _HEADER.size + 12 * sequences + 8 * bounds
    if size not in (expected, expected + sequences):  # the second: with Megatron-Core's one byte of mode a sequence
        raise DataError(
            f"{path} has {size} bytes, but its header promises {expected} ({sequences} sequences, {bounds - 1} "
            "documents); it is truncated or damaged: copy or build it again"
        )
    buffer = np.memmap(path, mode="r")
    lengths = np.frombuffer(buffer, dtype=np.int32, count=sequences, offset=_HEADER.size)
    offset = _HEADER.size + 4 * sequences
    pointers = np.frombuffer(buffer, dtype=np.int64, count=sequences, offset=offset)
    document_ends = np.frombuffer(buffer, dtype=np.int64, count=bounds, offset=offset + 8 * sequences)
    if bounds == 0 or document_ends[0] != 0 or document_ends[-1] != sequences or np.any(np.diff(document_ends) < 0):
        raise DataError(f"{path}: document bounds do not cover its {sequences} sequences; build it again")
    return lengths, pointers, document_ends, _DTYPES[code]


def _check_tokens(path: Path, lengths: np.ndarray, pointers: np.ndarray, dtype: type[np.integer]) -> None:
    """Refuse a .bin file whose size or order differs from what its index says."""
    item = np.dtype(dtype).itemsize
    ends = np.cumsum(lengths, dtype=np.int64) * item
    total = int(ends[-1]) if len(ends) else 0
    if np.any(lengths < 0) or (len(pointers) and not np.array_equal(pointers, ends - lengths * np.int64(item))):
        raise DataError(
            f"{path.with_suffix('.idx')}: sequences do not follow each other without gaps; it is damaged: build it "
            "again"
        )
    size = path.stat().st_size
    if size != total:
        problem = "truncated" if size < total else "longer than its index says, or of another data set"
        raise DataError(
            f"{path} has {size} bytes, but its index describes {total} ({total // item} tokens of {item} bytes); "
            f"it is {problem}: copy or build both files again"
        )
