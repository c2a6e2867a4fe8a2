"""How token files become samples: which documents a split has, and how many windows they are cut into. No torch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from llama_scale.data.examples import SPLITS, SplitName
from llama_scale.data.reader import TokenFile
from llama_scale.errors import DataError


def split_bounds(sizes: Sequence[float], name: SplitName, *, documents: int, prefix: str) -> tuple[int, int]:
    """Return the first document of a split and the one behind its last; splits follow each other in the file.

    Args:
        sizes: Relative sizes of the splits, in the order of ``SPLITS``.
        name: Which one.
        documents: Documents of the file.
        prefix: The file, for the message.

    Raises:
        DataError: The split gets no document.
    """
    shares = np.array(sizes)
    bounds = np.rint(np.concatenate([[0.0], np.cumsum(shares) / shares.sum()]) * documents).astype(int)
    place = SPLITS.index(name)
    first, stop = int(bounds[place]), int(bounds[place + 1])
    if stop == first:
        raise DataError(
            f"{prefix}: none of its {documents} documents falls into the {name} split (data.split gives it "
            f"{shares[place]:g} of {shares.sum():g}); give it a larger share or use a file with more documents"
        )
    return first, stop


def count_windows(file: TokenFile, documents: tuple[int, int], *, seq_length: int, split: SplitName) -> int:
    """Return the windows of ``seq_length + 1`` tokens, each overlapping the next by one, that documents are cut into.

    Args:
        file: The token file.
        documents: The first document, and the one behind the last.
        seq_length: Tokens per sample.
        split: Name of the split that they are, for the message.

    Raises:
        DataError: There is none.
    """
    first, stop = documents
    tokens = int(file.lengths[first:stop].sum())
    windows = max(0, tokens - 1) // seq_length
    if windows == 0:
        raise DataError(
            f"{file.prefix}: its {split} split holds {tokens} tokens in {stop - first} documents, fewer than the "
            f"{seq_length + 1} of one sample; change data.split, use more data or a shorter data.seq_length"
        )
    return windows
