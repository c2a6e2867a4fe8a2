"""Rows of words as columns that fit a terminal: the last one, a sentence, is wrapped."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

WIDTH = 80
_LEAST = 24
"""A sentence in fewer columns than this stands below its row instead."""
_INDENT = 4


def columns(rows: Sequence[Sequence[str]], *, width: int = WIDTH) -> str:
    """Return rows of equal length as text; only a word that is wider than the terminal makes a line longer."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]) - 1)]
    left = sum(widths) + 2 * len(widths)
    below = width - left < _LEAST and left + max(len(row[-1]) for row in rows) > width
    indent = _INDENT if below else left
    lines: list[str] = []
    for row in rows:
        head = "".join(f"{cell:{size}}  " for cell, size in zip(row[:-1], widths, strict=True))
        text = textwrap.wrap(row[-1], width - indent, break_long_words=False, break_on_hyphens=False)
        if text and not below:
            head += text.pop(0)
        lines += [head.rstrip(), *(" " * indent + line for line in text)]
    return "\n".join(lines)
