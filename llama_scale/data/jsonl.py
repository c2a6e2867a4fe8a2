"""Write JSONL files whose bytes depend on their rows alone."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from llama_scale.data.output import write_file
from llama_scale.errors import DataError


def check_jsonl_output(output: Path, *, force: bool) -> None:
    """Refuse an output before any work is done for it.

    Raises:
        DataError: It has another suffix, or exists and is not to be replaced.
    """
    if not output.name.endswith((".jsonl", ".jsonl.gz")):
        raise DataError(f"--output {output} must end in .jsonl or .jsonl.gz")
    if output.exists() and not force:
        raise DataError(f"{output} exists; choose another --output, or replace it with --force")


def write_jsonl(output: Path, rows: Iterable[Mapping[str, Any]]) -> int:
    """Write one JSON object a line, whole or not at all; gzipped if the name ends in .gz. Returns the number of rows.

    Raises:
        DataError: It cannot be written.
    """
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    content = "".join(lines).encode()
    write_file(output, gzip.compress(content, mtime=0) if output.suffix == ".gz" else content)
    return len(lines)
