"""Replace a file at once, so that a reader or a crash never meets half of it."""

from __future__ import annotations

import os
import secrets
from pathlib import Path


def write_atomically(path: Path, text: str, *, sync: bool = True) -> None:
    """Write ``text`` as UTF-8; see :func:`write_bytes_atomically`."""
    write_bytes_atomically(path, text.encode("utf-8"), sync=sync)


def write_bytes_atomically(path: Path, data: bytes, *, sync: bool = True) -> None:
    """Write ``data`` under a temporary name beside ``path``, then rename it into place.

    Args:
        path: The file to replace or create.
        data: Its whole content.
        sync: Flush to the disk before the rename, so that a power cut leaves the old or the new content.

    Raises:
        OSError: It cannot be written; ``path`` is then unchanged and no temporary file is left.
    """
    scratch = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with scratch.open("wb") as file:
            file.write(data)
            if sync:
                file.flush()
                os.fsync(file.fileno())
        scratch.replace(path)
    except OSError:
        scratch.unlink(missing_ok=True)
        raise
