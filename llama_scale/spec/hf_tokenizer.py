"""Look into a Hugging Face tokenizer's vocabulary without the tokenizers package.

Only what decides whether the model has an embedding for every token: the largest id. A folder that is not there yet,
or a file of a form that is not known here, is no fault of the spec; a launch looks again before it starts anything.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llama_scale.errors import Problem

_MAX_BYTES = 256 * 1024 * 1024


def check_vocabulary(tokenizer: Any, vocab_size: int) -> list[Problem]:
    """Return a problem if a section ``tokenizer`` of kind hf has ids that the model does not know."""
    largest = largest_id(Path(tokenizer.path))
    if largest is None or largest < vocab_size:
        return []
    return [
        Problem(
            path=("tokenizer", "path"),
            message=f"the largest token id of {tokenizer.path} is {largest}, and the model knows the ids below "
            f"vocab_size={vocab_size}: tokens above have no embedding",
            hint=f"use a vocab_size of at least {largest + 1}, or the tokenizer that belongs to the model",
            code="tokenizer-vocabulary",
        )
    ]


def largest_id(folder: Path) -> int | None:
    """Return the largest token id in a folder's tokenizer.json; None if it cannot be told."""
    try:
        with (folder / "tokenizer.json").open("rb") as stream:
            raw = stream.read(_MAX_BYTES + 1)
        document = json.loads(raw) if len(raw) <= _MAX_BYTES else None
    except (OSError, ValueError, RecursionError):
        return None
    return max(_ids(document), default=None) if isinstance(document, dict) else None


def _ids(document: dict[str, Any]) -> Iterator[int]:
    """Yield ids: ``model.vocab`` is a mapping token -> id (BPE, WordPiece, WordLevel) or a list in order (Unigram)."""
    model = document.get("model")
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    if isinstance(vocabulary, dict):
        yield from (number for number in vocabulary.values() if isinstance(number, int))
    elif isinstance(vocabulary, list) and vocabulary:
        yield len(vocabulary) - 1
    added = document.get("added_tokens")
    for token in added if isinstance(added, list) else ():
        if isinstance(token, dict) and isinstance(token.get("id"), int):
            yield token["id"]
