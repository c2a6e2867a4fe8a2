"""Figures of a token file."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from llama_scale.data.reader import TokenFile
from llama_scale.errors import DataError

_CHUNK_TOKENS = 1 << 22


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenStatistics:
    """Describe what a .bin/.idx pair holds.

    Args:
        prefix: Its common path.
        documents: Number of documents.
        tokens: Number of ids.
        dtype: numpy's name of the stored integer type.
        max_token_id: Largest id; -1 in a file without tokens.
        distinct_tokens: Number of different ids.
        shortest_tokens: Length of the shortest document.
        longest_tokens: Length of the longest document.
        first_id: The id that every document begins with; None if they differ.
        last_id: The id that every document ends with; None if they differ.
        unigram_entropy_nats: Loss of the best model that looks at no context: what a training must beat.
    """

    prefix: str
    documents: int
    tokens: int
    dtype: str
    max_token_id: int
    distinct_tokens: int
    shortest_tokens: int
    longest_tokens: int
    first_id: int | None
    last_id: int | None
    unigram_entropy_nats: float


def entropy_nats(counts: np.ndarray) -> float:
    """Return the entropy of the distribution that counts describe: -sum p ln p.

    >>> round(entropy_nats(np.array([1, 1, 0, 2])), 4)
    1.0397
    """
    total = counts.sum()
    if total == 0:
        return 0.0
    shares = counts[counts > 0] / total
    return float(-(shares * np.log(shares)).sum())


def token_statistics(prefix: str) -> TokenStatistics:
    """Read a whole token file and count.

    Raises:
        DataError: The files are missing or damaged, or hold a negative id.
    """
    file = TokenFile(prefix)
    tokens = file.tokens
    counts: np.ndarray = np.zeros(0, np.int64)
    for start in range(0, len(tokens), _CHUNK_TOKENS):
        chunk: np.ndarray = tokens[start : start + _CHUNK_TOKENS].astype(np.int64)
        if chunk.min() < 0:
            raise DataError(f"{prefix}.bin holds the negative id {chunk.min()}; it is damaged: build it again")
        found = np.bincount(chunk, minlength=len(counts))
        found[: len(counts)] += counts
        counts = found
    used = np.flatnonzero(counts)
    held = file.lengths > 0
    firsts, lasts = file.starts[held], file.starts[held] + file.lengths[held] - 1
    return TokenStatistics(
        prefix=prefix,
        documents=len(file),
        tokens=len(tokens),
        dtype=tokens.dtype.name,
        max_token_id=int(used[-1]) if len(used) else -1,
        distinct_tokens=len(used),
        shortest_tokens=int(file.lengths.min()) if len(file) else 0,
        longest_tokens=int(file.lengths.max()) if len(file) else 0,
        first_id=_common_id(tokens[firsts]),
        last_id=_common_id(tokens[lasts]),
        unigram_entropy_nats=entropy_nats(counts),
    )


def _common_id(ids: np.ndarray) -> int | None:
    """Return the one id that all are equal to, or None."""
    return int(ids[0]) if len(ids) and (ids == ids[0]).all() else None


def verify_digests(prefix: str) -> None:
    """Compare both files with the digests in PREFIX.json.

    Raises:
        DataError: There is no such record, or a file is not the one that was built.
    """
    record = Path(prefix + ".json")
    try:
        digests: dict[str, str] = json.loads(record.read_text(encoding="utf-8"))["sha256"]
    except FileNotFoundError as error:
        raise DataError(
            f"{record} does not exist, so there is nothing to compare with; build the files anew"
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{record} is no record of `llama-scale data build`: {error}") from error
    for suffix, expected in digests.items():
        path = Path(f"{prefix}.{suffix}")
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != expected:
            raise DataError(f"{path} has SHA-256 {found}, but {expected} was built; it is damaged: build it again")
