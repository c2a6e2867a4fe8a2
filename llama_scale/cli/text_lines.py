"""Texts that a command takes as arguments and from a file, one a line."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from llama_scale.errors import LlamaScaleError


def text_lines(
    given: Sequence[str], file: Path | None, *, option: str, missing: str, error: type[LlamaScaleError]
) -> list[str]:
    """Return the texts that were given, then the lines of a file that are not blank.

    Args:
        given: Texts of the command line.
        file: The file; ``-`` is standard input, None: there is none.
        option: What names the file, for messages.
        missing: What to say where there is no text at all.
        error: What the command raises.
    """
    texts = list(given)
    if file is not None:
        try:
            text = sys.stdin.read() if str(file) == "-" else file.read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as problem:
            raise error(f"{option} {file} cannot be read: {problem}") from problem
        texts += [line for line in text.splitlines() if line.strip()]
    if not texts:
        raise error(missing)
    return texts
