"""What the rows of a task's files amount to, as far as a spec's numbers depend on it: how many there are and how long.

Tokens are estimated from bytes, because a spec is written on machines without the tokenizer's library. The estimate is
high on purpose: a row that turns out shorter costs little, and one that turns out longer than ``data.seq_length`` stops
the run.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from llama_scale.data.examples import Example, SplitName

_MARKERS = 8
"""Tokens that a chat template or a prompt puts around one text of a row."""
_BYTES_OF_OTHER_SCRIPTS = 1.3
"""UTF-8 bytes of a token where letters are not ASCII: of Chinese under SmolLM2's tokenizer, which is English."""
_HEAD = 32
"""Tokens that a template may write in front of a row: a default system message, an instruction."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Survey:
    """What was found.

    Args:
        rows: Split -> its rows.
        tokens: Estimated tokens of all rows.
        longest: Estimated tokens of the longest row.
        where: That row's place, for messages.
    """

    rows: Counter[str]
    tokens: int
    longest: int
    where: str


def survey(rows: Iterable[tuple[SplitName, Example]], *, vocab_size: int) -> Survey:
    """Count rows and estimate their tokens.

    Args:
        rows: Split and row, as ``extensions.examples.read_all`` yields them.
        vocab_size: The model's: tokens of a large vocabulary stand for more bytes.
    """
    letters_a_token = math.log2(max(vocab_size, 4)) / 7
    counts: Counter[str] = Counter()
    tokens, longest, where = 0, 0, ""
    for split, example in rows:
        counts[split] += 1
        texts = [_tokens(text, letters_a_token) for text in _texts(example.values)]
        here = _HEAD + _MARKERS * len(texts) + math.ceil(sum(texts))
        tokens += here
        if here > longest:
            longest, where = here, example.where
    return Survey(rows=counts, tokens=tokens, longest=longest, where=where)


def _tokens(text: str, letters_a_token: float) -> float:
    """Estimate a text's tokens: many tokenizers give every digit one, and scripts they were not made for many."""
    ascii_text = text.encode("ascii", errors="ignore")
    digits = sum(map(ascii_text.count, b"0123456789"))
    others = len(text.encode("utf-8", errors="replace")) - len(ascii_text)
    return digits + (len(ascii_text) - digits) / letters_a_token + others / _BYTES_OF_OTHER_SCRIPTS


def _texts(value: Any) -> Iterator[str]:
    """Yield every text inside a row."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _texts(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _texts(item)
