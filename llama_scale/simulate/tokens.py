"""Token files of a simulation: the first documents of the spec's own file, or random tokens where it is not here."""

from __future__ import annotations

import math
from pathlib import Path

from llama_scale.errors import DataError

_LOOKED_AT = 2**26
"""Tokens of a file that are compared with the vocabulary."""
_TAKEN = 2**15
_DOCUMENTS = 128
_LONGEST = 256
"""Longer documents are cut, so that each split has some."""


def is_here(prefix: str) -> bool:
    """Tell whether a file of a .bin/.idx pair is on this machine."""
    return any(Path(prefix + suffix).exists() for suffix in (".bin", ".idx"))


def check_ids(prefix: str, *, vocab_size: int) -> None:
    """Check that a token file holds only ids that the model knows.

    Args:
        prefix: Of the .bin/.idx pair.
        vocab_size: Of the spec's model.

    Raises:
        DataError: The file is damaged, or an id is outside the vocabulary; document and position are named.
    """
    import numpy as np  # lazy: only a simulation that reads token files needs it

    from llama_scale.data.reader import TokenFile

    file = TokenFile(prefix)
    tokens = file.tokens[:_LOOKED_AT]
    bad = np.flatnonzero((tokens >= vocab_size) | (tokens < 0))
    if bad.size:
        place = int(bad[0])
        document = int(np.searchsorted(file.starts, place, side="right")) - 1
        raise DataError(
            f"{prefix}.bin: token {place - int(file.starts[document])} of document {document} is {int(tokens[place])}, "
            f"and the model knows the ids below model.vocab_size={vocab_size} ({bad.size} such tokens in the first "
            f"{len(tokens)}); build the file with the model's tokenizer, or mend model.vocab_size"
        )


def write_sample(prefix: str | None, target: Path, *, vocab_size: int, seed: int) -> None:
    """Write a small token file.

    Args:
        prefix: File whose first documents are taken, ids modulo the vocabulary; None: random ids.
        target: Prefix of the new pair.
        vocab_size: Of the simulation's model.
        seed: Of random ids.
    """
    import numpy as np  # lazy: see check_ids

    from llama_scale.data.reader import TokenFile
    from llama_scale.data.writer import TokenFileWriter

    documents: list[np.ndarray] = []
    if prefix is None:
        random = np.random.default_rng(seed)
        documents = [random.integers(0, vocab_size, _LONGEST) for _ in range(_DOCUMENTS)]
    else:
        file = TokenFile(prefix)
        left = _TAKEN
        for start, length in zip(file.starts, file.lengths, strict=True):
            tokens = np.asarray(file.tokens[start : start + min(int(length), left)], dtype=np.int64) % vocab_size
            documents += [tokens[at : at + _LONGEST] for at in range(0, len(tokens), _LONGEST)]
            left -= len(tokens)
            if left <= 0:
                break
        documents *= max(1, math.ceil(_DOCUMENTS / max(1, len(documents))))  # few: the same ones again
    with TokenFileWriter(target, vocab_size=vocab_size) as writer:
        for document in documents:
            writer.add(document, [len(document)])
        writer.commit()
